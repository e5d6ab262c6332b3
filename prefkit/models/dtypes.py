"""Precisions by name; torch is imported only where one of its dtypes is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefkit.errors import UsageError

if TYPE_CHECKING:
    import torch

#: name in a recipe -> name in torch
NAMES = {
    "float32": "float32",
    "fp32": "float32",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
}


def check_dtype(name: str) -> None:
    """Raises UsageError for a name that is not known."""
    if name not in NAMES:
        raise UsageError(f"dtype {name!r} is not known; choose one of {', '.join(NAMES)}.")


def dtype_of(name: str) -> torch.dtype:
    """torch dtype by name. Raises UsageError."""
    import torch

    check_dtype(name)
    found: torch.dtype = getattr(torch, NAMES[name])
    return found
