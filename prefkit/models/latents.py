"""Convert between PIL images and the scheduler's latents."""

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
    "the image is not finite: the denoiser's latents or the VAE's pixels overflowed to NaN or infinity, so it would "
    "be black. Use another dtype, --dtype bfloat16 or --dtype float32 (train: precision), or a VAE made for float16."
)


@torch.no_grad()
def encode(pipe: Any, wiring: Wiring, images: Sequence[Image]) -> Tensor:
    """Encode images of one size to latents [B, ...], float32 in the scheduler's layout, on the VAE's device.

    The latents are the mode of the VAE's posterior, so encoding is deterministic.
    """
    pixels = pipe.image_processor.preprocess(list(images))
    with _upcast(pipe.vae) as vae:
        pixels = pixels.to(vae.device, vae.dtype)
        encoded = vae.encode(pixels.unsqueeze(2) if "frame" in wiring.layout else pixels)
    if hasattr(encoded, "latent_dist"):
        z = encoded.latent_dist.mode().float()
    else:
        z = (encoded.latents if hasattr(encoded, "latents") else encoded.latent).float()
    divisor, offset = AFFINE[wiring.affine](pipe.vae, z)
    return LAYOUT[wiring.layout][1]((z - offset) * divisor)


@torch.no_grad()
def decode(pipe: Any, wiring: Wiring, latents: Tensor, size: tuple[int, int] | None = None) -> list[Image]:
    """Decode final latents [B, ...], in the scheduler's layout, to images, as the pipeline does.

    size: (height, width) in pixels; needed if latents are packed tokens and images are not square. Raises TrainingError
    if any pixel is not finite.
    """
    to_grid = LAYOUT[wiring.layout][0]
    if size is not None:
        height, width = size[0] // wiring.downscale, size[1] // wiring.downscale
    else:
        height = width = 2 * round(latents.shape[1] ** 0.5)  # a token is 2 x 2 cells; other layouts ignore this
    with _upcast(pipe.vae) as vae:
        grid = to_grid(latents.to(vae.device, vae.dtype), height, width)
        divisor, offset = AFFINE[wiring.affine](vae, grid)
        out = vae.decode(grid / divisor + offset, return_dict=False)[0]
    if not finite(out).all():
        raise TrainingError(NOT_FINITE)
    return pipe.image_processor.postprocess(out[:, :, 0] if out.ndim == 5 else out, output_type="pil")


def finite(batch: Tensor) -> Tensor:
    """Return a boolean [B]: True for samples whose numbers are all finite."""
    return torch.isfinite(batch).flatten(1).all(1)


@contextmanager
def _upcast(vae: Any) -> Iterator[Any]:
    """Yield the VAE, temporarily in float32 if it is in float16 and its config sets force_upcast."""
    upcast = vae.dtype == torch.float16 and vae.config.get("force_upcast", False)
    if upcast:
        vae.float()
    try:
        yield vae
    finally:
        if upcast:
            vae.half()
