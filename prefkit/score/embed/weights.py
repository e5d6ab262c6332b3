"""A scorer's weights as single files: where they are, which exactly, what is in them, and the heads made of them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

HEAD = (1024, 128, 64, 16, 1)  # widths after the embedding's
PLACES = (0, 2, 4, 6, 7)  # where the linear layers stand between the dropouts they were trained with


def weights_file(source: str, name: str) -> Path:
    """`source` itself if it is a file, the file `name` in a folder, or `name` of a Hub id. Raises UsageError."""
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        if not (path / name).is_file():
            raise UsageError(f"{source} holds no {name}. Give the file itself, or the folder that it lies in.")
        return path / name
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(huggingface_hub.hf_hub_download(source, name))
    except HFValidationError as error:
        raise UsageError(f"{source} is neither an existing path nor a Hub id such as owner/name.") from error
    except Exception as error:  # the Hub's own errors, and those of whatever transport its client uses
        raise UsageError(
            f"{name} of {source} is not in the local Hub cache, and the Hub did not answer for it "
            f"({type(error).__name__}). Check the name, the network, or your access to it."
        ) from error


def file_revision(source: str, name: str) -> str:
    """Hash of the local file, or the commit of the Hub id. Raises UsageError."""
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


def read_state(path: Path) -> dict[str, Tensor]:
    """A state dict from safetensors, or from a torch file that needs no code to be read. Raises UsageError."""
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, ValueError, SafetensorError, pickle.UnpicklingError) as error:
        raise UsageError(f"{path} could not be read as weights: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(state, dict):
        raise UsageError(f"{path} holds a {type(state).__name__}; a state dict is needed.")
    return state.get("state_dict", state)


def linear_head(state: dict[str, Tensor], prefix: str, path: Path) -> nn.Sequential:
    """Five linear layers without activations, D-1024-128-64-16-1, as LAION's aesthetic predictor v2 and ImageReward
    have them; `layers.N` under `prefix`. Raises UsageError for other layers."""
    import torch

    found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    first = found.get("layers.0.weight")
    widths = [first.shape[1] if first is not None else 0, *HEAD]
    layers = [torch.nn.Linear(a, b) for a, b in pairwise(widths)]
    wanted = {
        f"layers.{at}.{part}": getattr(layer, part) for at, layer in zip(PLACES, layers) for part in ("weight", "bias")
    }
    wrong = [
        k
        for k in wanted.keys() | found.keys()
        if k not in wanted or k not in found or wanted[k].shape != found[k].shape
    ]
    if wrong:
        raise UsageError(f"{path} holds no linear head D-1024-128-64-16-1: {', '.join(sorted(wrong)[:4])} differ.")
    with torch.no_grad():
        for key, parameter in wanted.items():
            parameter.copy_(found[key])
    return torch.nn.Sequential(*layers).float().eval()
