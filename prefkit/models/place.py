"""Where work runs: the device, and this process's share under a launcher."""

from __future__ import annotations

import os
from typing import Any

from prefkit.errors import UsageError

#: kinds of device that have no float64; sums and schedules are float32 there
WITHOUT_FLOAT64 = ("mps",)


def exact_dtype(device: Any) -> Any:
    """torch.float64 where the device has it, else torch.float32."""
    import torch

    return torch.float32 if torch.device(device).type in WITHOUT_FLOAT64 else torch.float64


def check_device(wanted: str) -> None:
    """Raises UsageError for a device that torch does not know, or that is not there."""
    import torch

    kind = wanted.partition(":")[0]
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind not in there:
        raise UsageError(f"device {wanted!r} is not known; choose cpu, cuda or mps.")
    if not there[kind]:
        raise UsageError(f"device {wanted!r}: this machine, or its torch, has no {kind}; leave device out or give cpu.")


def device_of(wanted: str | None) -> str:
    """The device asked for, else the best there is; under a launcher each process takes its own GPU."""
    import torch

    if wanted:
        check_device(wanted)
        return wanted
    if torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def rank() -> tuple[int, int]:
    """(rank, number of processes) under `accelerate launch` or torchrun, else (0, 1)."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
