"""Looks up the masks of images, and converts boxes and mask images to weights of latent elements."""

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
    """Looks up an image's mask: the value of key `name` in the `extra` of its candidate or request.

    The order is: candidate, the candidate's request, the pair's request. The first value that is not null is used.
    """

    def __init__(self, name: str, pairs: Sequence[Any], store: Store) -> None:
        self.name = name
        self.requests = {request.request_id: request for request in store.requests()}
        ids = {image.candidate for pair in pairs for image in pair.images if image.candidate}
        columns = ("id", "request_id", "index", "seed", "extra")
        candidates = store.iter_candidates(ids=ids, columns=columns) if ids else ()
        self.candidates = {c.id: (c.extra, c.request_id) for c in candidates}

    def extras(self, group: Any, image: PairImage) -> list[Mapping[str, Any]]:
        """Return the `extra` mappings that may hold the image's mask, in order of precedence."""
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
    """Return a mask, float32, shaped like one sample's latents `like`: 1 in latent cells that the box touches, else 0.

    aspects: the box as fractions of width and height; without a box, or with an empty one, the mask is 1 everywhere.
    size: (width, height) of the image in pixels.
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
    """Return weights shaped like the latents `like`: the mask image's mean grey level in each latent cell (white: 1).

    size: (width, height) of the masked image in pixels; the mask is stretched to this size. part: the part of the mask
    that training sees, (left, top, right, bottom) as fractions. flip: mirror the result.
    """
    from PIL import Image as pil

    width, height = size[0] // wiring.downscale, size[1] // wiring.downscale
    grey = np.asarray(image.convert("L"), np.float32) / 255
    box = (part[0] * image.width, part[1] * image.height, part[2] * image.width, part[3] * image.height)
    cells = np.array(pil.fromarray(grey).resize((width, height), pil.Resampling.BOX, box))
    return _spread(torch.from_numpy(cells[:, ::-1].copy() if flip else cells), wiring, like)


def _spread(cells: Tensor, wiring: Wiring, like: Tensor) -> Tensor:
    """Repeat latent cells [height, width] over all channels, in the scheduler's layout."""
    grid = cells.expand(1, like.numel() // cells.numel(), *cells.shape)
    if "frame" in wiring.layout:
        grid = grid.unsqueeze(2)
    return LAYOUT[wiring.layout][1](grid.contiguous())[0].to(like)
