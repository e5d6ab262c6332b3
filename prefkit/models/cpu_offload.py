"""`generate.NAME.offload`: diffusers' hooks that keep a pipeline in CPU memory and move parts to the device when called.

model       a whole part (a text encoder, the denoiser, the VAE) is on the device from its call to the next part's call
sequential  a single layer is on the device at a time: least memory, but slow, because every step moves all weights
A denoiser in training stays on the device, and its hooks are never set, so training and capture are not affected.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from prefkit.distributed import device_of
from prefkit.errors import UsageError

MODES = ("none", "model", "sequential")


def check_offload(where: str, mode: str, device: str | None) -> None:
    """Raise UsageError for an unknown mode, or if the device (null: the best available one) is the CPU.

    where: key in the recipe.
    """
    if mode not in MODES:
        raise UsageError(f"{where}: {mode!r} is not known; choose {', '.join(MODES)}.")
    if mode != "none" and device_of(device).startswith("cpu"):
        raise UsageError(
            f"{where} is {mode}, but sampling runs on the CPU, where nothing can be offloaded. Set it to none."
        )


def place(pipe: Any, device: str, mode: str = "none", resident: str | None = None) -> Any:
    """Move `pipe` to `device` or, if `mode` is not none, set diffusers' hooks that do so when a part is called.

    resident: name of a component without hooks, which stays on the device. Returns `pipe`. Raises UsageError.
    """
    if mode == "none" or device.startswith("cpu"):
        return pipe.to(device)
    if resident is not None:
        pipe._exclude_from_cpu_offload = [*pipe._exclude_from_cpu_offload, resident]
        order = (pipe.model_cpu_offload_seq or "").split("->")
        pipe.model_cpu_offload_seq = "->".join(name for name in order if name != resident) or None
        if mode == "model":  # diffusers' own would move the resident component to the CPU and back after each call
            pipe.maybe_free_model_hooks = partial(_offload_hooked, pipe)
    try:
        if mode == "model":
            pipe.enable_model_cpu_offload(device=device)
        else:
            pipe.enable_sequential_cpu_offload(device=device)
    except (ValueError, NotImplementedError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"{type(pipe).__name__} does not support offload: {mode} ({reason}). Set generate.NAME.offload to none."
        ) from error
    return pipe


def _offload_hooked(pipe: Any) -> None:
    for hook in pipe._all_hooks:
        hook.offload()
