"""Safetensors files with a checksum of all tensors and other metadata. Files without a checksum are not checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.errors import DamagedError
from prefkit.store.files import unreadable, write_whole

if TYPE_CHECKING:
    from torch import Tensor

SUM = "sha256"


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors, which may be on any device, to `path` atomically. Raises StoreError."""
    import safetensors
    import safetensors.torch

    plain = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    header = dict(metadata or {})
    header |= {SUM: tensors_sum(plain, header)}

    def save(temporary: Path) -> None:
        try:
            safetensors.torch.save_file(plain, temporary, metadata=header)
        except safetensors.SafetensorError as error:  # raised for a full disk
            raise OSError(str(error)) from error

    write_whole(path, save)


def load_tensors(path: Path, remedy: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return (tensors on the CPU, metadata). Raises DamagedError, or StoreError if permission is denied."""
    import safetensors

    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise unreadable(path, error, remedy) from error
    wanted = metadata.pop(SUM, None)
    if wanted is not None and wanted != tensors_sum(tensors, metadata):
        raise DamagedError(path, f"{path} is damaged: its checksum does not match. {remedy}")
    return tensors, metadata


def tensors_sum(tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> str:
    """Return the checksum of CPU tensors and their metadata, independent of the order of the tensors."""
    import torch

    total = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for key in sorted(tensors):
        tensor = tensors[key].contiguous()
        total.update(f"\0{key}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().data if tensor.numel() else b"")
    return total.hexdigest()
