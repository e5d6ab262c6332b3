"""Between PIL images and the latents that the scheduler works on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prefkit.errors import TrainingError
from prefkit.models.capture.maps import AFFINE, LAYOUT
from prefkit.models.capture.wiring import Wiring

if TYPE_CHECKING:
    from PIL.Image import Image

NOT_FINITE = (
    "the image is not finite: the denoiser's latents or the VAE's pixels overflowed to NaN or infinity, and would show as "
    "black. Use another dtype, --dtype bfloat16 or --dtype float32 (train: precision), or a VAE that is made for float16."
)


@torch.no_grad()
def encode(pipe: Any, wiring: Wiring, images: Sequence[Image]) -> Tensor:
    """Images of one size -> [B, ...] float32 in the scheduler's layout, on the VAE's device.

    The mode of the VAE's posterior, so that encoding twice gives the same; in float32 where the VAE asks for it.
    """
    pixels = pipe.image_processor.preprocess(list(images))
    with _upcast(pipe.vae) as vae:
        z = _mode(vae, wiring, pixels.to(vae.device, vae.dtype))
    divisor, offset = AFFINE[wiring.affine](pipe.vae, z.float())
    return LAYOUT[wiring.layout][1]((z.float() - offset) * divisor)


@torch.no_grad()
def decode(pipe: Any, wiring: Wiring, latents: Tensor, size: tuple[int, int] | None = None) -> list[Image]:
    """Final latents [B, ...] in the scheduler's layout -> images, as the pipeline itself would decode them.

    size: (height, width) in pixels; packed tokens do not tell it, the default is a square. Raises TrainingError where
    pixels are not finite.
    """
    to_grid = LAYOUT[wiring.layout][0]
    height, width = _cells(wiring, latents, size)
    with _upcast(pipe.vae) as vae:
        grid = to_grid(latents.to(vae.device, vae.dtype), height, width)
        divisor, offset = AFFINE[wiring.affine](vae, grid)
        out = vae.decode(grid / divisor + offset, return_dict=False)[0]
    if not finite(out).all():
        raise TrainingError(NOT_FINITE)
    return pipe.image_processor.postprocess(out[:, :, 0] if out.ndim == 5 else out, output_type="pil")


def finite(batch: Tensor) -> Tensor:
    """[B] bool: whether all numbers of each sample are."""
    return torch.isfinite(batch).flatten(1).all(1)


def _cells(wiring: Wiring, latents: Tensor, size: tuple[int, int] | None) -> tuple[int, int]:
    if size is not None:
        return size[0] // wiring.downscale, size[1] // wiring.downscale
    side = 2 * round(latents.shape[1] ** 0.5)  # tokens are squares of 2 x 2 cells; grids need no size
    return side, side


def _mode(vae: Any, wiring: Wiring, pixels: Tensor) -> Tensor:
    encoded = vae.encode(pixels.unsqueeze(2) if "frame" in wiring.layout else pixels)
    if hasattr(encoded, "latent_dist"):
        return encoded.latent_dist.mode()
    return encoded.latents if hasattr(encoded, "latents") else encoded.latent


@contextmanager
def _upcast(vae: Any) -> Iterator[Any]:
    """Some VAEs overflow in float16 and say so: those work in float32 for the while."""
    if vae.dtype != torch.float16 or not vae.config.get("force_upcast", False):
        yield vae
        return
    vae.float()
    try:
        yield vae
    finally:
        vae.half()
