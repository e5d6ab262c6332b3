"""Exports trained weights in diffusers format: an adapter file, or a pipeline folder with the trained denoiser.

With full weights, the trained denoiser is written in the dtypes of the base model's files. The files of all other
components are copied, so those components need not be loaded.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from prefkit.config import Model
from prefkit.models.load.folder import INDEX
from prefkit.models.load.pipeline import SINGLE_FILES, load_pipeline
from prefkit.models.lora import adapters
from prefkit.models.meta import components
from prefkit.models.precision import NAMES, dtype_of
from prefkit.store.files import write_json
from prefkit.store.folders import whole_folder
from prefkit.tiny import located
from prefkit.train.policy import Policy

if TYPE_CHECKING:
    from prefkit.train.trainer import TrainingLoop

STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
#: patterns of weight files that are not copied if the component also has safetensors files
DUPLICATES = ("*.bin", "*.msgpack", "*.h5", "*.ckpt", "*.onnx", "*.pb")


def export(policy: Policy, denoiser: str, model: Model, folder: Path) -> Path:
    """Write the result to `folder`: a file with the model's adapters, including the trained one, or a full pipeline."""
    with whole_folder(folder) as temporary:
        if policy.lora is not None:
            adapters.export_adapter(policy.net, denoiser, temporary, policy.text_encoders)
        elif located(model.base).endswith(SINGLE_FILES):
            _from_single_file(policy, denoiser, model).save_pretrained(temporary, safe_serialization=True)
        else:
            base = _base_folder(model)
            _copy_parts(base, temporary, denoiser)
            _write_denoiser(policy.net, base / denoiser, temporary / denoiser)
    return folder


def write_result(trainer: TrainingLoop, values: dict[str, Any], write: Callable[[Path], Any]) -> dict[str, Any]:
    """Return the summary of a training run. If the run is done, export final/ with `write` and write result.json.

    values: entries that this trainer adds to the summary. All processes must call this function.
    """
    final = trainer.folder / "final"
    summary = {
        "name": trainer.folder.name,
        **values,
        "trainable": sum(parameter.numel() for parameter in trainer.policy.parameters()),
        "last": trainer.metrics,
        "done": trainer.done,
        "final": str(final) if trainer.done else None,
    }
    if trainer.done and trainer.processes.main:
        write(final)
        write_json(trainer.folder / "result.json", summary)
    trainer.processes.wait()
    return summary


def _base_folder(model: Model) -> Path:
    """Return the folder of the base model, which is downloaded if model.base is a Hub id."""
    from diffusers import DiffusionPipeline

    source = located(model.base)
    if Path(source).is_dir():
        return Path(source)
    options = {"revision": model.revision, "variant": model.variant, "trust_remote_code": model.trust_remote_code}
    return Path(DiffusionPipeline.download(source, use_safetensors=True, **options))


def _copy_parts(base: Path, folder: Path, denoiser: str) -> None:
    """Copy the pipeline's index, its Python files, and all components except the denoiser."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in [base / INDEX, *base.glob("*.py")]:
        shutil.copyfile(path, folder / path.name)
    for name in components(str(base), None):
        if name != denoiser and (base / name).is_dir():
            ignored = DUPLICATES if any((base / name).glob("*.safetensors")) else ()
            shutil.copytree(base / name, folder / name, ignore=shutil.ignore_patterns(*ignored))


def _write_denoiser(net: Any, base: Path, folder: Path) -> None:
    """Write the network's weights, each in its dtype in the base model's files.

    A floating-point weight whose stored dtype is unknown, or is not float32, float16 or bfloat16, gets the most common
    of these three dtypes, or float32 if the files use none of them.
    """
    stored = stored_dtypes(_weight_files(base))
    common = _commonest(stored.values())
    kinds = type(net).__mro__
    # fully_shard replaces a network's class by a subclass
    kind: Any = next((kind for kind in kinds if kind.__module__.startswith(("diffusers.", "prefkit."))), kinds[0])
    with torch.device("meta"):
        twin = kind.from_config(net.config)
    state = {
        key: value.detach().to("cpu", stored.get(key, common) if value.is_floating_point() else None)
        for key, value in net.state_dict().items()
    }
    twin.load_state_dict(state, assign=True)
    twin.save_pretrained(folder, safe_serialization=True)


def _weight_files(folder: Path) -> list[Path]:
    """Return the denoiser's weight files, or its variants (NAME.fp16.safetensors) if no plain file exists."""
    paths = sorted(folder.glob("*.safetensors"))
    return [path for path in paths if path.name.count(".") == 1] or paths


def stored_dtypes(files: Iterable[Path]) -> dict[str, torch.dtype]:
    """Return {weight name: dtype on disk} of the weights stored in float32, float16 or bfloat16."""
    import safetensors

    dtypes: dict[str, torch.dtype] = {}
    for path in files:
        with safetensors.safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118
                dtype = file.get_slice(key).get_dtype()
                if dtype in STORED:
                    dtypes[key] = STORED[dtype]
    return dtypes


def _commonest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    counts = Counter(dtypes).most_common(1)
    return counts[0][0] if counts else torch.float32


def _from_single_file(policy: Policy, denoiser: str, model: Model) -> Any:
    """Load the pipeline from a single file, in the file's most common dtype, and insert the trained weights."""
    source = located(model.base)
    files = [Path(source)] if source.endswith(".safetensors") else []
    names = {dtype_of(name): name for name in NAMES}
    pipe = load_pipeline(
        model.base,
        dtype=names[_commonest(stored_dtypes(files).values())],
        config=model.config,
        trust_remote_code=model.trust_remote_code,
    )
    getattr(pipe, denoiser).load_state_dict(policy.net.state_dict())
    return pipe
