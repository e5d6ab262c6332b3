"""What lies beside the latents of an image: the weight of its errors, and the noise that its own sampling began with.

Each is worked out once per image and kept in a cache of its own, so that other weights encode no image again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, ones_like, zeros_like

from prefkit.config import Train
from prefkit.errors import UsageError
from prefkit.images import rgb
from prefkit.models.trees import Tree
from prefkit.store import Store
from prefkit.train import own_noise
from prefkit.train.data.aspect_buckets import shown
from prefkit.train.data.batches import PART_ROWS, PairData
from prefkit.train.data.masks import COLUMNS, SIDES, Masks, mask_of, weight_of
from prefkit.train.data.pairs import PairImage
from prefkit.types import digest


def folder_of(config: Train) -> str | None:
    """Of the cache, below that of the latents. None where nothing lies beside them."""
    if config.mask is None and config.noise == "shared":
        return None
    return f"beside/{digest(config.mask, config.noise)}"


def fill(
    data: PairData,
    family: Any,
    config: Train,
    store: Store,
    generators: Sequence[str],
    share: tuple[int, int],
) -> None:
    """Whatever is missing of this process's share (rank, processes). Raises UsageError, CaptureError."""
    assert data.beside is not None
    rank, processes = share
    wanted = {data.beside_key(pair, side): (pair, side) for pair in data.pairs for side in pair.sides}
    own = {k: v for k, v in wanted.items() if k not in data.beside and int(k[:8], 16) % processes == rank}
    makers: dict[str, Callable[[Any, PairImage], Tensor]] = {}
    if data.masks is not None:
        makers["weight"] = _weights(data, family, data.masks, store, own.values())
    if config.noise == "own" and own:
        makers["noise"] = _noises(data, family, store, generators, own.values())
    part: dict[str, Tree] = {}
    for key, both in own.items():
        part[key] = {leaf: make(*both) for leaf, make in makers.items()}
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


def _noises(
    data: PairData, family: Any, store: Store, generators: Sequence[str], sides: Any
) -> Callable[[Any, PairImage], Tensor]:
    ids = {side.candidate for _, side in sides if side.candidate}
    dtypes = own_noise.dtypes(store, generators)
    known = {c.id: c for c in store.iter_candidates(generators, ids, COLUMNS)} if ids and generators else {}
    first, side = next(iter(sides))
    own_noise.prove(family, data.latents.get(side.key)["latents"], data.size(first))

    def noise(pair: Any, side: PairImage) -> Tensor:
        candidate = known.get(side.candidate or "")
        if candidate is None:
            raise UsageError(f"train.noise: row {pair.row} of the pairs, image {side.column}: the run holds no candidate "
                             "for it that this very model generated, so its noise is unknown. Set noise: shared.")  # fmt: skip
        latents = data.latents.get(side.key)["latents"]
        return own_noise.initial_noise(family.wiring, latents, data.size(pair), candidate.seed, dtypes[candidate.id])

    return noise
