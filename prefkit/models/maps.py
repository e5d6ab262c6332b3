"""The short lists of named maps that a capture tries on the numbers it saw.

Adding a name here teaches every part of prefkit a new kind of pipeline; nothing else knows them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# scheduler's sample -> x_t, given the variance-exploding noise level sigma
STATE: dict[str, Callable[[Tensor, float], Tensor]] = {
    "identity": lambda sample, sigma: sample,
    "over_sqrt_sigma2_plus_1": lambda sample, sigma: sample / (sigma**2 + 1) ** 0.5,
}

# x_t [B, ...] -> what the denoiser is called with
INPUT: dict[str, Callable[[Tensor], Any]] = {
    "identity": lambda x: x,
    "frame": lambda x: x.unsqueeze(2),
    "list": lambda x: list(x.unbind(0)),
    "list_of_frames": lambda x: list(x.unsqueeze(2).unbind(0)),
}


def _only_frame(x: Tensor) -> Tensor:
    """[B, C, 1, H, W] -> [B, C, H, W]"""
    if x.ndim != 5 or x.shape[2] != 1:
        raise ValueError(f"{tuple(x.shape)} is not a film of one frame")
    return x[:, :, 0]


# what the denoiser returns (a tensor, or lists stacked) -> model_output of scheduler.step, shaped like x_t
OUTPUT: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda out: out,
    "negated": lambda out: -out,
    "first_half": lambda out: out.chunk(2, dim=1)[0],
    "frame": _only_frame,
    "frame_negated": lambda out: -_only_frame(out),
}

# time of the schedule (index for epsilon and v, sigma in 0..1 for flow) -> what the denoiser is called with
CLOCK: dict[str, Callable[[Tensor, int], Tensor]] = {
    "index": lambda time, steps: time,
    "sigma": lambda time, steps: time.float(),
    "steps_sigma": lambda time, steps: time.float() * steps,
    "1-sigma": lambda time, steps: 1 - time.float(),
}
CLOCKS_OF = {"epsilon": ("index",), "v_prediction": ("index",), "flow": ("sigma", "steps_sigma", "1-sigma")}


def pack(x: Tensor) -> Tensor:
    """[B, C, H, W] -> tokens [B, H/2 * W/2, 4 C], each a 2 x 2 square, channel slowest."""
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h // 2 * (w // 2), 4 * c)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `pack` for a grid of height x width cells."""
    b, _, c = tokens.shape
    squares = tokens.view(b, height // 2, width // 2, c // 4, 2, 2)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(b, c // 4, height, width)


# scheduler's latents <-> the VAE's grid [B, C, H, W] or [B, C, 1, H, W]: name -> (to grid, from grid)
LAYOUT: dict[str, tuple[Callable[[Tensor, int, int], Tensor], Callable[[Tensor], Tensor]]] = {
    "plain": (lambda z, h, w: z, lambda x: x),
    "frame": (lambda z, h, w: z.unsqueeze(2), _only_frame),
    "packed": (unpack, pack),
    "packed_frame": (lambda z, h, w: unpack(z, h, w).unsqueeze(2), lambda x: pack(_only_frame(x))),
}


def _per_channel(values: Any, like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, *[1] * (like.ndim - 2))


# grid -> input of vae.decode, as z / divisor + offset: name -> (config, z) -> (divisor, offset)
AFFINE: dict[str, Callable[[Any, Tensor], tuple[Any, Any]]] = {
    "mean_std": lambda config, z: (1 / _per_channel(config.latents_std, z), _per_channel(config.latents_mean, z)),
    "mean_std_scale": lambda config, z: (
        config.scaling_factor / _per_channel(config.latents_std, z),
        _per_channel(config.latents_mean, z),
    ),
    "scale_shift": lambda config, z: (config.scaling_factor, config.shift_factor),
    "scale": lambda config, z: (config.scaling_factor, 0.0),
    "none": lambda config, z: (1.0, 0.0),
}


def stacked(out: Any) -> Tensor:
    """A denoiser's output as one tensor: unwraps ModelOutput and tuples, stacks a list with one entry per sample."""
    while not isinstance(out, Tensor):
        if isinstance(out, list):
            return torch.stack(out)
        out = out[0]
    return out


def same(a: Any, b: Any, tolerance: float) -> bool:
    """Whether two tensors, or lists of tensors, agree in shape and, relative to b's elements, in value.

    Small elements decide between an offset and none where the tolerance is wide.
    """
    if isinstance(a, list) or isinstance(b, list):
        both = isinstance(a, list) and isinstance(b, list) and len(a) == len(b)
        return both and all(same(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or a.shape != b.shape:
        return False
    a, b = a.cpu().double(), b.cpu().double()
    return bool(((a - b).abs() <= tolerance * (b.abs() + 0.1 * b.abs().max())).all())


def tolerance_of(dtype: torch.dtype) -> float:
    """How far two ways of computing the same numbers may lie apart, relative to their size."""
    return 1e-4 if dtype in (torch.float32, torch.float64) else 2e-2
