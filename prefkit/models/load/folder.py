"""Check a local pipeline folder before anything is loaded: are all components and their weight files present?"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefkit.config import Model
from prefkit.errors import UsageError
from prefkit.models.meta import PARTS, part_of
from prefkit.tiny import located

INDEX = "model_index.json"
#: names of weight files, such as diffusion_pytorch_model.safetensors or model.fp16-00001-of-00002.safetensors
WEIGHTS = re.compile(
    r"(diffusion_pytorch_model|model)(\.(?P<variant>[A-Za-z]\w*))?(-\d+-of-\d+)?\.safetensors", re.ASCII
)
SIZES = re.compile(r"if height % (\d+) != 0 or width % \1 != 0:")
PICKLED = re.compile(
    r"(diffusion_pytorch_model|pytorch_model)(\.(?P<variant>[A-Za-z]\w*))?(-\d+-of-\d+)?\.bin", re.ASCII
)
SHARDS = re.compile(r"\w+\.(safetensors|bin)\.index(\.\w+)?\.json", re.ASCII)
LOOKED_FOR = ("model.safetensors", "diffusion_pytorch_model.safetensors", "pytorch_model.bin")
COPY_AGAIN = "Copy or download the whole pipeline again."


@dataclass(frozen=True)
class Files:
    """The weight files to load. variant: such as "fp16", or None. only: the folder has no plain files.

    pickled: a component has only .bin files. diffusers and transformers read them with torch.load(weights_only=True),
    which runs no code from the file.
    """

    variant: str | None = None
    only: bool = False
    pickled: bool = False


def files_of(source: str, wanted: Collection[str] = PARTS, variant: str | None = None) -> Files:
    """Return which weight files of a local pipeline folder to load. For a Hub id, only `variant` is known.

    wanted: the parts to load; the weights of other parts may be missing. variant: model.variant. Components that lack
    it are loaded from their plain files. Raises UsageError if a component is missing, or if its weights are missing or
    incomplete.
    """
    folder = Path(source)
    if not folder.is_dir():
        return Files(variant)
    found: dict[str, set[str | None]] = {}
    pickled = False
    for name, entry in _index(folder).items():
        pair = isinstance(entry, list) and len(entry) == 2 and all(isinstance(text, str) for text in entry)
        if name.startswith("_") or not pair:  # the _class_name of a custom pipeline is a pair too
            continue
        if not (folder / name).is_dir():
            raise UsageError(f"{source} is incomplete: its folder {name}, listed in {INDEX}, is missing. {COPY_AGAIN}")
        if part_of(name) in wanted:
            found[name], unsafe = _variants(folder / name, source)
            pickled |= unsafe
    if variant is not None:
        _check_variant(source, variant, found)
        return Files(variant, pickled=pickled)
    without = {name: {text for text in names if text} for name, names in found.items() if None not in names}
    if not without:
        return Files(pickled=pickled)
    common = set.intersection(*without.values())
    if not common:
        raise UsageError(
            f"{source}: no weight variant exists for all components ({_listed(without)}). Download all of them in one "
            "variant."
        )
    return Files("fp16" if "fp16" in common else min(common), only=True, pickled=pickled)


def _check_variant(source: str, variant: str, found: dict[str, set[str | None]]) -> None:
    """Raise UsageError unless some components have files of the variant and all others have plain files."""
    lacking = {name: names for name, names in found.items() if variant not in names}
    if found and (len(lacking) == len(found) or any(None not in names for names in lacking.values())):
        raise UsageError(
            f"model.variant is {variant}, but {source} has no such weight files ({_listed(lacking)}). Remove the key, "
            "or download this variant."
        )


def _listed(found: Mapping[str, Collection[str | None]]) -> str:
    return "; ".join(
        f"{name}: {', '.join(sorted(text or 'plain files' for text in names))}" for name, names in found.items()
    )


def _index(folder: Path) -> dict[str, Any]:
    """Read model_index.json in a local pipeline folder. Raises UsageError."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if not isinstance(index, dict):
            raise ValueError("it is not a JSON object")
        return index
    except (OSError, ValueError, RecursionError) as error:
        text = " ".join(str(error).split())[:160]
        raise UsageError(f"{folder / INDEX} could not be read: {text}. {COPY_AGAIN}") from error


def _variants(folder: Path, source: str) -> tuple[set[str | None], bool]:
    """Return the weight variants in a component's folder (None: plain weights), and whether they are pickled.

    Raises UsageError.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    for name in names:
        if SHARDS.fullmatch(name):
            _check_shards(folder / name)
    for pattern in (WEIGHTS, PICKLED):
        variants = {match["variant"] for name in names if (match := pattern.fullmatch(name))}
        if variants:
            return variants, pattern is PICKLED
    raise UsageError(
        f"{source} is incomplete: {folder} holds no weights (looked for {', '.join(LOOKED_FOR)}). {COPY_AGAIN}"
    )


def _check_shards(index: Path) -> None:
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{index} could not be read. {COPY_AGAIN}") from error
    missing = sorted(str(name) for name in shards if not (index.parent / str(name)).is_file())
    if missing:
        raise UsageError(
            f"{index.parent} is incomplete: it lacks {len(missing)} of its {len(shards)} weight files, for example "
            f"{missing[0]}. Let the download finish, or copy the whole folder again."
        )


def not_a_pipeline(folder: Path) -> str:
    """Return the error message for a folder without model_index.json: what the folder is, and which path to give."""
    names = {path.name for path in folder.iterdir()}
    give = (
        "Give the folder that save_pretrained wrote, a Hub id, or a single .safetensors or .ckpt file; an adapter goes "
        "under model.adapters."
    )
    if not names:
        return f"{folder} is an empty folder. {give}"
    if "pytorch_lora_weights.safetensors" in names or "adapter_config.json" in names:
        return f"{folder} is a LoRA adapter. Set model.adapters: {{{folder}: 1}}, and its base model as model.base."
    if "config.json" in names and (folder.parent / INDEX).is_file():
        return f"{folder} is only one component of a pipeline. Give the pipeline's folder: {folder.parent}."
    inside = sorted(path.parent.name for path in folder.glob(f"*/{INDEX}"))
    if inside:
        return f"{folder} is not a diffusers pipeline, but contains {', '.join(inside)}. Give {folder / inside[0]}."
    return f"{folder} is a folder without {INDEX}, so it is not a diffusers pipeline. {give}"


def check_call(model: Model, names: Collection[str], size: tuple[int | None, int | None] = (None, None)) -> None:
    """Raise UsageError if a name is not an argument of the pipeline's call, or if the pipeline will refuse the size.

    Checks local folders only. size: (height, width); None is the pipeline's own. The divisor is read from diffusers' code.
    """
    import diffusers

    from prefkit.models.capture.record import check_call_arguments

    folder = Path(located(model.base))
    kind = getattr(diffusers, str(_index(folder).get("_class_name", "")), None) if folder.is_dir() else None
    if isinstance(kind, type):
        check_call_arguments(kind, names)
        found = SIZES.search(inspect.getsource(kind.check_inputs)) if hasattr(kind, "check_inputs") else None
        divisor = int(found[1]) if found else 1
        if any((side or 0) % divisor for side in size):
            raise UsageError(
                f"height {size[0]} and width {size[1]}: {kind.__name__} needs multiples of {divisor}. Change the size."
            )
