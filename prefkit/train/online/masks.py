"""Boxes in an image as masks over latents, in the layout that the scheduler works in."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from prefkit.models.maps import LAYOUT
from prefkit.models.wiring import Wiring

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
    channels = like.numel() // (width * height)
    grid = torch.zeros(1, channels, height, width)
    left, top = max(0, math.floor(box[0] * width)), max(0, math.floor(box[1] * height))
    grid[..., top : max(top + 1, math.ceil(box[3] * height)), left : max(left + 1, math.ceil(box[2] * width))] = 1
    if "frame" in wiring.layout:
        grid = grid.unsqueeze(2)
    return LAYOUT[wiring.layout][1](grid)[0].to(like)
