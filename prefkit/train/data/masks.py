"""Masks of images, and conversion of boxes and mask images to weights over latents in the scheduler's layout."""

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

EDGES = ("box_left", "box_top", "box_right", "box_bottom")
WHOLE = (0.0, 0.0, 1.0, 1.0)


class Masks:
    """Looks up each image's mask: the value of the key `name` in an `extra` of its candidate or request.

    The candidate's `extra` comes first, then that of the candidate's request, then that of the pair's request. A null
    is used only if no later `extra` has a value.
    """

    def __init__(self, name: str, pairs: Sequence[Any], store: Store) -> None:
        self.name = name
        self.requests = {request.request_id: request for request in store.requests()}
        ids = {image.candidate for pair in pairs for image in pair.images if image.candidate}
        columns = ("id", "request_id", "index", "seed", "extra")
        candidates = store.iter_candidates(ids=ids, columns=columns) if ids else ()
        self.candidates = {c.id: (c.extra, c.request_id) for c in candidates}

    def extras(self, group: Any, image: PairImage) -> list[Mapping[str, Any]]:
        """Return the `extra`s that may hold the image's mask, in order of precedence."""
        extras = [request_of(group, self.requests).extra]
        if image.candidate in self.candidates:
            extra, request_id = self.candidates[image.candidate]
            request = self.requests.get(request_id)
            extras = [extra, *([request.extra] if request else []), *extras]
        return extras

    def lookup(self, group: Any, image: PairImage) -> list[Any]:
        """Return the image's mask value as [value]; [None] if the whole image counts; [] if no `extra` has the key."""
        values = [extra[self.name] for extra in self.extras(group, image) if self.name in extra]
        return [value for value in values if value is not None][:1] or values[:1]


def box_mask(aspects: Mapping[str, float], wiring: Wiring, like: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a box as a mask, float32, shaped like one sample's latents `like`.

    It is 1 in every cell that the box touches, 0 elsewhere. aspects: the box as fractions of width and height; if it is
    missing or empty, the mask is 1 everywhere. size: (width, height) of the image in pixels.
    """
    box = [aspects.get(edge, math.nan) for edge in EDGES]
    if not all(map(math.isfinite, box)) or box[2] <= box[0] or box[3] <= box[1]:
        return torch.ones_like(like)
    width, height = size[0] // wiring.downscale, size[1] // wiring.downscale
    cells = torch.zeros(height, width)
    left, top = max(0, math.floor(box[0] * width)), max(0, math.floor(box[1] * height))
    cells[top : max(top + 1, math.ceil(box[3] * height)), left : max(left + 1, math.ceil(box[2] * width))] = 1
    return _spread(cells, wiring, like)


def image_mask(
    image: Image,
    wiring: Wiring,
    like: Tensor,
    size: tuple[int, int],
    part: tuple[float, float, float, float] = WHOLE,
    flip: bool = False,
) -> Tensor:
    """Return a mask image as weights shaped like the latents `like`: each cell's mean grey level, with white as 1.

    size: (width, height) in pixels of the masked image; a mask of a different size is stretched over it. part: visible
    part (left, top, right, bottom), as fractions of the mask. flip: mirror the result.
    """
    from PIL import Image as pil

    width, height = size[0] // wiring.downscale, size[1] // wiring.downscale
    grey = np.asarray(image.convert("L"), np.float32) / 255
    box = (part[0] * image.width, part[1] * image.height, part[2] * image.width, part[3] * image.height)
    cells = np.array(pil.fromarray(grey).resize((width, height), pil.Resampling.BOX, box))
    return _spread(torch.from_numpy(cells[:, ::-1].copy() if flip else cells), wiring, like)


def _spread(cells: Tensor, wiring: Wiring, like: Tensor) -> Tensor:
    """Repeat [height, width] cells of the VAE's grid over all channels, in the scheduler's layout."""
    grid = cells.expand(1, like.numel() // cells.numel(), *cells.shape)
    if "frame" in wiring.layout:
        grid = grid.unsqueeze(2)
    return LAYOUT[wiring.layout][1](grid.contiguous())[0].to(like)
