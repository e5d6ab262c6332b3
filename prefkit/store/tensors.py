"""Tensors on disk as safetensors, with a checksum in the file's metadata. Every failure to read names the file.

The checksum covers names, types, shapes and values of all tensors, and the other metadata. A file without one was written
by an earlier version or by others, and is read as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.errors import DamagedError, StoreError
from prefkit.store.files import write_whole

if TYPE_CHECKING:
    from torch import Tensor

SUM = "sha256"


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write copies on the CPU, whole or not at all. Raises StoreError."""
    import safetensors
    import safetensors.torch

    plain = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    said = dict(metadata or {})
    said |= {SUM: tensors_sum(plain, said)}

    def save(temporary: Path) -> None:
        try:
            safetensors.torch.save_file(plain, temporary, metadata=said)
        except safetensors.SafetensorError as error:  # what it makes of a full disk
            raise OSError(str(error)) from error

    write_whole(path, save)


def load_tensors(path: Path, remedy: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors on the CPU, metadata). Raises DamagedError naming the file; StoreError where permission is denied."""
    import safetensors

    try:
        with safetensors.safe_open(path, "pt") as file:
            said = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except PermissionError as error:
        raise StoreError(f"{path} could not be read: {error.strerror}. Give yourself permission to read it.") from error
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        text = " ".join(str(error).split())[:160].rstrip(".")
        raise DamagedError(path, f"{path} could not be read: {text}. {remedy}") from error
    wanted = said.pop(SUM, None)
    if wanted is not None and wanted != tensors_sum(tensors, said):
        raise DamagedError(path, f"{path} is damaged: its checksum does not match. {remedy}")
    return tensors, said


def tensors_sum(tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> str:
    """Of CPU tensors, in whichever order."""
    import torch

    seen = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for key in sorted(tensors):
        tensor = tensors[key].contiguous()
        seen.update(f"\0{key}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        seen.update(tensor.flatten().view(torch.uint8).numpy().data if tensor.numel() else b"")
    return seen.hexdigest()
