"""Loss weights: the weight of each latent in the error of a masked image.

They are computed once per image and cached apart from the latents, so that another mask encodes no image again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, ones_like, zeros_like

from prefkit.config import Train
from prefkit.errors import UsageError
from prefkit.images import rgb
from prefkit.models.trees import Tree
from prefkit.store import Store
from prefkit.train.data.aspect_buckets import shown
from prefkit.train.data.batches import PART_ROWS, PairData
from prefkit.train.data.masks import SIDES, Masks, mask_of, weight_of
from prefkit.train.data.pairs import PairImage
from prefkit.types import digest


def folder_of(config: Train) -> str | None:
    """The folder of this cache, relative to that of the latents; None without a mask."""
    return None if config.mask is None else f"beside/{digest(config.mask)}"


def fill(data: PairData, family: Any, store: Store, share: tuple[int, int]) -> None:
    """Compute the missing weights of this process's share (rank, processes). Raises UsageError."""
    assert data.beside is not None and data.masks is not None
    rank, processes = share
    wanted = {data.beside_key(pair, side): (pair, side) for pair in data.pairs for side in pair.sides}
    own = {k: v for k, v in wanted.items() if k not in data.beside and int(k[:8], 16) % processes == rank}
    weight = _weights(data, family, data.masks, store, own.values())
    part: dict[str, Tree] = {}
    for key, both in own.items():
        part[key] = {"weight": weight(*both)}
        if len(part) == PART_ROWS:
            data.beside.append(part)
            part = {}
    data.beside.append(part)


def _weights(data: PairData, family: Any, masks: Masks, store: Store, sides: Any) -> Callable[[Any, PairImage], Tensor]:
    wanted = {value for both in sides for value in masks.said(*both) if isinstance(value, str)}
    images: dict[str, bytes] = {}
    for batch in store.inputs().batches(["id", "bytes"]) if wanted else ():
        images |= {row["id"]: row["bytes"] for row in batch.to_pylist() if row["id"] in wanted}

    def weight(pair: Any, side: PairImage) -> Tensor:
        latents, (height, width) = data.latents.get(side.key)["latents"], data.size(pair)
        where = f"train.mask: row {pair.row} of the pairs, image {side.column}"
        said = masks.said(pair, side)
        if not said:
            there = ", ".join(dict.fromkeys(key for extra in masks.extras(pair, side) for key in extra))
            raise UsageError(f"{where}: neither the candidate nor its request has {masks.name!r} in its extra (there is "
                             f"{there or 'nothing'}). Give it, or null where the whole image counts.")  # fmt: skip
        value = said[0]
        if value is None:
            return ones_like(latents)
        if isinstance(value, str):
            if value not in images:
                raise UsageError(f"{where}: {masks.name} is {value[:80]!r}, and the run's inputs hold no such image.")
            try:
                image = rgb(images[value])
            except (OSError, ValueError) as error:
                raise UsageError(f"{where}: the mask {value[:80]} is no image that can be read ({error}).") from error
            found = weight_of(image, family.wiring, latents, (width, height), shown(side), side.flip)
        else:
            box = _seen(_box(value, where), side)
            found = mask_of(box, family.wiring, latents, (width, height)) if box else zeros_like(latents)
        if not found.any():
            raise UsageError(f"{where}: nothing of the image counts, so there is nothing to learn from.")
        return found

    return weight


def _box(value: Any, where: str) -> dict[str, float]:
    numbers = isinstance(value, list) and len(value) == 4 and all(isinstance(v, (int, float)) for v in value)
    if not numbers or not (0 <= value[0] < value[2] <= 1 and 0 <= value[1] < value[3] <= 1):
        raise UsageError(f"{where}: {value!r} is no box [left, top, right, bottom] in shares of the image, 0 to 1, and no "
                         "inputs id.")  # fmt: skip
    return dict(zip(SIDES, map(float, value), strict=True))


def _seen(box: dict[str, float], side: PairImage) -> dict[str, float]:
    """The box in shares of what the side's view shows; empty where it shows nothing of it."""
    left, top, right, bottom = shown(side)
    x = [min(1.0, max(0.0, (box[edge] - left) / (right - left))) for edge in ("box_left", "box_right")]
    y = [min(1.0, max(0.0, (box[edge] - top) / (bottom - top))) for edge in ("box_top", "box_bottom")]
    if x[0] == x[1] or y[0] == y[1]:
        return {}
    x = [1 - x[1], 1 - x[0]] if side.flip else x
    return dict(zip(SIDES, (x[0], y[0], x[1], y[1]), strict=True))
