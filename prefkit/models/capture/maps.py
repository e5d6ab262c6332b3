"""Named maps (conversions) that a capture tries on recorded numbers. For a new kind of pipeline, add one here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# (scheduler's sample, variance-exploding noise level sigma) -> x_t
STATE: dict[str, Callable[[Tensor, float], Tensor]] = {
    "identity": lambda sample, sigma: sample,
    "over_sqrt_sigma2_plus_1": lambda sample, sigma: sample / (sigma**2 + 1) ** 0.5,
}

# x_t [B, ...] -> sample argument of the denoiser
INPUT: dict[str, Callable[[Tensor], Any]] = {
    "identity": lambda x: x,
    "frame": lambda x: x.unsqueeze(2),
    "list": lambda x: list(x.unbind(0)),
    "list_of_frames": lambda x: list(x.unsqueeze(2).unbind(0)),
}

# sample arguments that are x_t followed by a condition: name -> (number of dimensions, dimension of concatenation)
EXTRA_INPUT: dict[str, tuple[int, int]] = {
    "extra_channels": (4, 1),  # inpainting: mask and masked image
    "extra_tokens": (3, 1),  # editing: the tokens of the image to edit
    "extra_features": (3, 2),  # FLUX Fill and Control: more numbers in every token
}
#: key of the extra input in the condition
EXTRA_INPUT_KEY = "behind_sample"


def extra_input_of(name: str, argument: Any, x: Tensor) -> Tensor | None:
    """Return the part of the sample argument that follows x_t; None if there is none. name: key in EXTRA_INPUT."""
    dims, dim = EXTRA_INPUT.get(name, (0, 0))
    if not isinstance(argument, Tensor) or not argument.ndim == x.ndim == dims or argument.shape[dim] <= x.shape[dim]:
        return None
    return argument.narrow(dim, x.shape[dim], argument.shape[dim] - x.shape[dim])


def denoiser_input(name: str, x: Tensor, extra: Tensor | None = None) -> Any:
    """Return the denoiser's sample argument for x_t. extra: what follows x_t, if `name` is in EXTRA_INPUT."""
    if name in INPUT:
        return INPUT[name](x)
    assert extra is not None, "the condition lacks its extra input"
    return torch.cat([x, extra.to(x)], dim=EXTRA_INPUT[name][1])


def _only_frame(x: Tensor) -> Tensor:
    """Remove the frame dimension: [B, C, 1, H, W] -> [B, C, H, W]."""
    if x.ndim != 5 or x.shape[2] != 1:
        raise ValueError(f"{tuple(x.shape)} is not a video of one frame")
    return x[:, :, 0]


def _first(out: Tensor, x: Tensor, dims: int) -> Tensor:
    """Return the output's channels or tokens that belong to x_t. Raises ValueError if all of them do."""
    if out.ndim != dims or out.shape[1] <= x.shape[1]:
        raise ValueError(f"{tuple(out.shape)} holds nothing beyond {tuple(x.shape)}")
    return out[:, : x.shape[1]]


# (denoiser's output as one tensor, x_t) -> the scheduler's model_output, shaped like x_t
OUTPUT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "identity": lambda out, x: out,
    "negated": lambda out, x: -out,
    "first_half": lambda out, x: _first(out, x, 4),
    "first_half_negated": lambda out, x: -_first(out, x, 4),
    "first_tokens": lambda out, x: _first(out, x, 3),
    "frame": lambda out, x: _only_frame(out),
    "frame_negated": lambda out, x: -_only_frame(out),
}

# (time: index for epsilon and v, sigma in 0..1 for flow; number of training steps) -> the denoiser's time argument
CLOCK: dict[str, Callable[[Tensor, int], Tensor]] = {
    "index": lambda time, steps: time,
    "sigma": lambda time, steps: time.float(),
    "steps_sigma": lambda time, steps: time.float() * steps,
    "1-sigma": lambda time, steps: 1 - time.float(),
}
CLOCKS_OF = {"epsilon": ("index",), "v_prediction": ("index",), "flow": ("sigma", "steps_sigma", "1-sigma")}


def pack(x: Tensor) -> Tensor:
    """Pack [B, C, H, W] into tokens [B, H/2 * W/2, 4 C]. Each token is a square of 2 x 2 cells, channel slowest."""
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h // 2 * (w // 2), 4 * c)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Invert `pack` for a grid of height x width cells."""
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


def _per_square(values: Tensor, like: Tensor) -> Tensor:
    """Repeat the values [4 C] of a 2 x 2 square (channel slowest) over the grid. Returns [1, C, H, W]."""
    height, width = like.shape[-2:]
    return values.to(like).view(1, -1, 2, 2).repeat(1, 1, height // 2, width // 2)


# the input of vae.decode is z / divisor + offset, with z on the grid: name -> function (vae, z) -> (divisor, offset)
AFFINE: dict[str, Callable[[Any, Tensor], tuple[Any, Any]]] = {
    "mean_std": lambda vae, z: (1 / _per_channel(vae.config.latents_std, z), _per_channel(vae.config.latents_mean, z)),
    "mean_std_scale": lambda vae, z: (
        vae.config.scaling_factor / _per_channel(vae.config.latents_std, z),
        _per_channel(vae.config.latents_mean, z),
    ),
    "batch_norm": lambda vae, z: (  # FLUX.2: batch norm over 2 x 2 squares
        _per_square((vae.bn.running_var + vae.config.batch_norm_eps).rsqrt(), z),
        _per_square(vae.bn.running_mean, z),
    ),
    "scale_shift": lambda vae, z: (vae.config.scaling_factor, vae.config.shift_factor),
    "scale": lambda vae, z: (vae.config.scaling_factor, 0.0),
    "none": lambda vae, z: (1.0, 0.0),
}


def stacked(out: Any) -> Tensor:
    """Return a denoiser's output as one tensor: unwrap ModelOutput and tuples, stack a list of samples."""
    while not isinstance(out, Tensor):
        if isinstance(out, list):
            return torch.stack(out)
        out = out[0]
    return out


def same(a: Any, b: Any, tolerance: float) -> bool:
    """True if two tensors, or lists of tensors, have equal shapes and close values.

    Elements may differ by `tolerance` times (the element's size in b + 0.1 times the largest), so an offset is found.
    """
    if isinstance(a, list) or isinstance(b, list):
        both = isinstance(a, list) and isinstance(b, list) and len(a) == len(b)
        return both and all(same(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or a.shape != b.shape:
        return False
    a, b = (torch.view_as_real(x) if x.is_complex() else x for x in (a, b))
    a, b = a.cpu().double(), b.cpu().double()
    return bool(((a - b).abs() <= tolerance * (b.abs() + 0.1 * b.abs().max())).all())


def tolerance_of(dtype: torch.dtype) -> float:
    """Return the relative difference allowed between two computations in this dtype."""
    return 1e-4 if dtype in (torch.float32, torch.float64) else 2e-2
