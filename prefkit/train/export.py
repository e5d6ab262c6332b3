"""The result, as diffusers reads it: an adapter file, or a whole pipeline with the new denoiser in it.

Full weights: the denoiser is written from the trained network in the dtypes that the base has on disk; every other part is
copied file by file, so nothing but the trained network is in memory and nothing else changes its dtype or size.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from prefkit.config import Model
from prefkit.errors import DamagedError
from prefkit.models.load.folder import INDEX
from prefkit.models.load.pipeline import SINGLE_FILES, load_pipeline
from prefkit.models.lora import adapters
from prefkit.models.meta import components
from prefkit.models.precision import NAMES, dtype_of
from prefkit.output import warn
from prefkit.store.checksums import check_folder
from prefkit.store.files import read_json, set_aside
from prefkit.store.folders import whole_folder
from prefkit.tiny import located
from prefkit.train.policy import Policy

STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
#: other formats of weights that are there as safetensors too
TWICE = ("*.bin", "*.msgpack", "*.h5", "*.ckpt", "*.onnx", "*.pb")


def export(policy: Policy, denoiser: str, model: Model, folder: Path) -> Path:
    """Replace `folder` by the result: the start's adapters and the new one in one file, or a pipeline folder."""
    with whole_folder(folder) as temporary:
        if policy.lora is not None:
            adapters.export_adapter(policy.net, denoiser, temporary)
        elif located(model.base).endswith(SINGLE_FILES):
            _from_single_file(policy, denoiser, model).save_pretrained(temporary, safe_serialization=True)
        else:
            base = _folder_of(model)
            _copy_parts(base, temporary, denoiser)
            _write_denoiser(policy.net, base / denoiser, temporary / denoiser)
    return folder


def sound_result(folder: Path, aside: bool = True) -> dict[str, Any] | None:
    """result.json of a training whose final/ is there; None where either is missing or damaged.

    What is damaged is set aside, unless aside is False. The training then goes on from its last checkpoint, and exports
    its result again.
    """
    path, final = folder / "result.json", folder / "final"
    if not path.exists():
        return None
    damaged = path
    try:
        found = read_json(path)
        damaged = final
        check_folder(final, "It is exported again.")
    except DamagedError as error:
        if aside:
            warn(f"{damaged} is set aside as {set_aside(damaged).name}, and made again: {error}")
        return None
    return found if final.is_dir() else None


def _folder_of(model: Model) -> Path:
    """The base's folder, or where the Hub's files lie on this machine."""
    from diffusers import DiffusionPipeline

    source = located(model.base)
    if Path(source).is_dir():
        return Path(source)
    given = {"revision": model.revision, "use_safetensors": True, "trust_remote_code": model.trust_remote_code}
    return Path(DiffusionPipeline.download(source, **given))


def _copy_parts(base: Path, folder: Path, denoiser: str) -> None:
    """Copy what the pipeline's index names, and code that comes along, without the denoiser."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in [base / INDEX, *base.glob("*.py")]:
        shutil.copyfile(path, folder / path.name)
    for name in components(str(base), None):
        if name != denoiser and (base / name).is_dir():
            twice = TWICE if any((base / name).glob("*.safetensors")) else ()
            shutil.copytree(base / name, folder / name, ignore=shutil.ignore_patterns(*twice))


def _write_denoiser(net: Any, base: Path, folder: Path) -> None:
    """Write the network's weights as the base's denoiser has them on disk: dtypes by name, the commonest for new names."""
    stored = stored_dtypes(_weight_files(base))
    common = _commonest(stored.values())
    kinds = type(net).__mro__
    kind: Any = next((kind for kind in kinds if kind.__module__.startswith("diffusers.")), kinds[0])
    with torch.device("meta"):
        twin = kind.from_config(net.config)
    state = {
        key: value.detach().to("cpu", stored.get(key, common) if value.is_floating_point() else None)
        for key, value in net.state_dict().items()
    }
    twin.load_state_dict(state, assign=True)
    twin.save_pretrained(folder, safe_serialization=True)


def _weight_files(folder: Path) -> list[Path]:
    """Those of the denoiser that diffusers reads: without the variants (NAME.fp16.safetensors), where there are others."""
    found = sorted(folder.glob("*.safetensors"))
    plain = [path for path in found if path.name.count(".") == 1]
    return plain or found


def stored_dtypes(files: Iterable[Path]) -> dict[str, torch.dtype]:
    """Name of a weight -> its dtype on disk, of those that are float32, float16 or bfloat16."""
    import safetensors

    dtypes: dict[str, torch.dtype] = {}
    for path in files:
        with safetensors.safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118
                said = file.get_slice(key).get_dtype()
                if said in STORED:
                    dtypes[key] = STORED[said]
    return dtypes


def _commonest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    counts = Counter(dtypes).most_common(1)
    return counts[0][0] if counts else torch.float32


def _from_single_file(policy: Policy, denoiser: str, model: Model) -> Any:
    """A file in another code's layout: its parts have to be loaded to be written, in the dtype that most of it has."""
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
