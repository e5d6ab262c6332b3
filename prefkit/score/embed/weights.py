"""Weight files of scorers: their location, revision and tensors, and linear heads made from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from prefkit.errors import UsageError
from prefkit.verified import claim

if TYPE_CHECKING:
    from torch import Tensor, nn

HEAD = (1024, 128, 64, 16, 1)  # output widths of the linear layers
INDICES = (0, 2, 4, 6, 7)  # indices of the linear layers; the others are dropout layers


def weights_file(source: str, name: str) -> Path:
    """Return `source` if it is a file, else the file `name` in the folder or Hub id `source`. Raises UsageError."""
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        if not (path / name).is_file():
            raise UsageError(f"{source} has no file {name}. Give the path of the weight file, or its folder.")
        return path / name
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(huggingface_hub.hf_hub_download(source, name))
    except HFValidationError as error:
        raise UsageError(f"{source} is neither an existing path nor a Hub id such as owner/name.") from error
    except Exception as error:  # the Hub's own errors, and those of its HTTP client
        raise UsageError(
            f"{name} of {source} is not in the local Hub cache, and its download failed ({type(error).__name__}). Check the "
            "Hub id, the network, and your access to the repository."
        ) from error


def file_revision(source: str, name: str) -> str:
    """Return the hash of a local file or the commit of a Hub id. Raises UsageError."""
    from prefkit.models.load.revision import weights_revision

    if Path(source).expanduser().exists():
        return weights_revision(weights_file(source, name))
    import huggingface_hub

    try:
        return weights_revision(source)
    except UsageError:
        cached = huggingface_hub.try_to_load_from_cache(source, name) if source.count("/") == 1 else None
        if not isinstance(cached, str):
            raise
        return Path(cached).parts[Path(cached).parts.index("snapshots") + 1]


def verified_as(known: Mapping[str, Sequence[str]], files: Iterable[Path]) -> str:
    """Return the claim of prefkit/verified.py if `known` lists exactly these files, else "". known: {name: hashes}."""
    from prefkit.models.load.revision import file_hash

    found = {file_hash(path) for path in files}
    return next((claim(what, hashes) for what, hashes in known.items() if set(hashes) == found), "")


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a safetensors file, or in a torch file without pickled code. Raises UsageError."""
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's unpickler raises errors of many types for a file that is not a checkpoint
        raise UsageError(f"{path} could not be read as weights: {_why_unread(error)}") from error
    inner = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(inner, dict):
        raise UsageError(f"{path} has a {type(inner).__name__} instead of a state dict.")
    if wrong := [key for key in inner if not isinstance(key, str)]:
        raise UsageError(f"{path} has no state dict: its key {wrong[0]!r} is not the name of a tensor.")
    return inner


def _why_unread(error: Exception) -> str:
    """Return why a file could not be read, without torch's advice to load pickled code."""
    text = " ".join(str(error).split())
    if not isinstance(error, UnpicklingError):
        return text[:300] or "the file is empty or incomplete."
    if "unsupported global" in text.lower():
        return (
            "it contains pickled Python objects besides tensors, which prefkit does not load, because they can run code. "
            "Save only the tensors: torch.save(model.state_dict(), PATH)."
        )
    return "it is not a torch file of tensors."


def linear_head(state: dict[str, Tensor], prefix: str, path: Path) -> nn.Sequential:
    """Return the head of LAION's aesthetic predictor v2 and of ImageReward: five linear layers without activations,
    D-1024-128-64-16-1, with the keys `layers.N` after `prefix`. Raises UsageError for other layers."""
    import torch

    head = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    first = head.get("layers.0.weight")
    widths = [first.shape[1] if first is not None else 0, *HEAD]
    layers = [torch.nn.Linear(a, b) for a, b in pairwise(widths)]
    parameters = {f"layers.{n}.{k}": p for n, layer in zip(INDICES, layers) for k, p in layer.named_parameters()}
    shapes, actual = ({k: tuple(v.shape) for k, v in tensors.items()} for tensors in (parameters, head))
    wrong = [k for k in shapes | actual if shapes.get(k) != actual.get(k)]
    if wrong:
        raise UsageError(f"{path} has no linear head D-1024-128-64-16-1. Wrong: {', '.join(sorted(wrong)[:4])}.")
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(head[key])
    return torch.nn.Sequential(*layers).float().eval()
