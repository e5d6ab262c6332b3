"""Boxes and mask images as weights over latents, in the layout that the scheduler works in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from prefkit.models.maps import LAYOUT
from prefkit.models.wiring import Wiring

if TYPE_CHECKING:
    from PIL.Image import Image

SIDES = ("box_left", "box_top", "box_right", "box_bottom")


def mask_of(aspects: Mapping[str, float], wiring: Wiring, like: Tensor, size: tuple[int, int]) -> Tensor:
    """[...] float32, shaped like one sample's latents: 1 in every cell that the box touches, 0 elsewhere.

    aspects: the box as shares of width and height; without one, or with an empty one, the whole image counts.
    size: (width, height) of the image in pixels.
    """
    box = [aspects.get(side, math.nan) for side in SIDES]
    if not all(map(math.isfinite, box)) or box[2] <= box[0] or box[3] <= box[1]:
        return torch.ones_like(like)
    width, height = size[0] // wiring.downscale, size[1] // wiring.downscale
    cells = torch.zeros(height, width)
    left, top = max(0, math.floor(box[0] * width)), max(0, math.floor(box[1] * height))
    cells[top : max(top + 1, math.ceil(box[3] * height)), left : max(left + 1, math.ceil(box[2] * width))] = 1
    return _laid_out(cells, wiring, like)


def weight_of(image: Image, wiring: Wiring, like: Tensor, size: tuple[int, int]) -> Tensor:
    """[...] float32, shaped like one sample's latents: the mask image's mean grey in every cell, white being 1.

    size: (width, height) in pixels of the image that is masked; a mask of another size is stretched over it.
    """
    from PIL import Image as pil

    width, height = size[0] // wiring.downscale, size[1] // wiring.downscale
    grey = image.convert("L").resize((width, height), pil.Resampling.BOX)
    return _laid_out(torch.from_numpy(np.asarray(grey, np.float32) / 255), wiring, like)


def _laid_out(cells: Tensor, wiring: Wiring, like: Tensor) -> Tensor:
    """[height, width] of the VAE's grid -> the scheduler's layout, the same in all channels."""
    grid = cells.expand(1, like.numel() // cells.numel(), *cells.shape)
    if "frame" in wiring.layout:
        grid = grid.unsqueeze(2)
    return LAYOUT[wiring.layout][1](grid.contiguous())[0].to(like)
