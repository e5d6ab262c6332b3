"""What masks an image, and boxes and mask images as weights over latents, in the layout that the scheduler works in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from prefkit.models.capture.maps import LAYOUT
from prefkit.models.capture.wiring import Wiring
from prefkit.store import Store
from prefkit.train.data.pairs import PairImage, request_of

if TYPE_CHECKING:
    from PIL.Image import Image

SIDES = ("box_left", "box_top", "box_right", "box_bottom")
WHOLE = (0.0, 0.0, 1.0, 1.0)
COLUMNS = ("id", "request_id", "index", "seed", "extra")


class Masks:
    """What the key `name` of extra says about each image: the candidate's word, then its request's, then the pair's.

    A null is no word: whoever comes next is asked.
    """

    def __init__(self, name: str, pairs: Sequence[Any], store: Store) -> None:
        self.name = name
        self.requests = {request.request_id: request for request in store.requests()}
        ids = {side.candidate for pair in pairs for side in pair.sides if side.candidate}
        found = store.iter_candidates(ids=ids, columns=COLUMNS) if ids else ()
        self.candidates = {c.id: (c.extra, c.request_id) for c in found}

    def extras(self, pair: Any, side: PairImage) -> list[Mapping[str, Any]]:
        """In the order in which they are asked."""
        asked = [request_of(pair, self.requests).extra]
        if side.candidate in self.candidates:
            extra, request_id = self.candidates[side.candidate]
            own = self.requests.get(request_id)
            asked = [extra, *([own.extra] if own else []), *asked]
        return asked

    def said(self, pair: Any, side: PairImage) -> list[Any]:
        """[value], [None] where the whole image counts, [] where nobody knows the key."""
        values = [extra[self.name] for extra in self.extras(pair, side) if self.name in extra]
        return [value for value in values if value is not None][:1] or values[:1]


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


def weight_of(
    image: Image,
    wiring: Wiring,
    like: Tensor,
    size: tuple[int, int],
    part: tuple[float, float, float, float] = WHOLE,
    flip: bool = False,
) -> Tensor:
    """[...] float32, shaped like one sample's latents: the mask image's mean grey in every cell, white being 1.

    size: (width, height) in pixels of the image that is masked; a mask of another size is stretched over it.
    part: (left, top, right, bottom) of what is seen, in shares of the mask; flip: and is mirrored then.
    """
    from PIL import Image as pil

    width, height = size[0] // wiring.downscale, size[1] // wiring.downscale
    grey = np.asarray(image.convert("L"), np.float32) / 255
    box = (part[0] * image.width, part[1] * image.height, part[2] * image.width, part[3] * image.height)
    cells = np.array(pil.fromarray(grey).resize((width, height), pil.Resampling.BOX, box))
    return _laid_out(torch.from_numpy(cells[:, ::-1].copy() if flip else cells), wiring, like)


def _laid_out(cells: Tensor, wiring: Wiring, like: Tensor) -> Tensor:
    """[height, width] of the VAE's grid -> the scheduler's layout, the same in all channels."""
    grid = cells.expand(1, like.numel() // cells.numel(), *cells.shape)
    if "frame" in wiring.layout:
        grid = grid.unsqueeze(2)
    return LAYOUT[wiring.layout][1](grid.contiguous())[0].to(like)
