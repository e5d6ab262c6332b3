"""The dtypes that recipes can name, and each device's most exact dtype. Importing this module does not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefkit.errors import UsageError

if TYPE_CHECKING:
    import torch

#: dtype name in a recipe -> dtype name in torch
NAMES = {name: name for name in ("float32", "bfloat16", "float16")}
NAMES |= {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
#: device types without float64; sums and schedules are float32 there
WITHOUT_FLOAT64 = ("mps",)


def check_dtype(name: str) -> None:
    """Raise UsageError for an unknown dtype name."""
    if name not in NAMES:
        raise UsageError(f"dtype {name!r} is not known; choose one of {', '.join(NAMES)}.")


def dtype_of(name: str) -> torch.dtype:
    """Return the torch dtype for a name in a recipe. Raises UsageError for an unknown name."""
    import torch

    check_dtype(name)
    dtype: torch.dtype = getattr(torch, NAMES[name])
    return dtype


def exact_dtype(device: Any) -> torch.dtype:
    """Return torch.float64 if the device supports it, else torch.float32."""
    import torch

    return torch.float32 if torch.device(device).type in WITHOUT_FLOAT64 else torch.float64
