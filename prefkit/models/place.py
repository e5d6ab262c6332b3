"""What a kind of device can compute with."""

from __future__ import annotations

from typing import Any

#: kinds of device that have no float64; sums and schedules are float32 there
WITHOUT_FLOAT64 = ("mps",)


def exact_dtype(device: Any) -> Any:
    """torch.float64 where the device has it, else torch.float32."""
    import torch

    return torch.float32 if torch.device(device).type in WITHOUT_FLOAT64 else torch.float64
