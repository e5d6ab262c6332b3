"""Aspect buckets for imported images: one size for all images of a request, so that no pair has two.

The images of a request are brought to the size of about resolution x resolution pixels whose aspect is nearest to theirs (the
geometric mean): scaled without distortion until they cover it, then cropped around the centre.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from prefkit.images import size as size_of
from prefkit.output import warn
from prefkit.store import Store
from prefkit.train.data.pairs import PairImage, PairRow, PairSource
from prefkit.types import digest

if TYPE_CHECKING:
    from PIL.Image import Image

LOST = 0.2  # share of an image beyond which cropping is told


def assign_buckets(pairs: list[PairRow], source: PairSource, store: Store, resolution: int) -> list[PairRow]:
    """The pairs with a frame on every side, and keys that tell images in different frames apart."""
    sizes = dict(_sizes(pairs, source, store))
    by_request: dict[tuple[str | None, str], list[float]] = {}
    for pair in pairs:
        known = [sizes[side.key] for side in pair.sides if side.key in sizes]  # what is missing is told when encoding
        aspects = by_request.setdefault((pair.request_id, pair.prompt), [0.0])
        aspects += [math.log(width / height) for height, width in known]
    frames = {request: bucket(math.exp(sum(a) / max(1, len(a) - 1)), resolution) for request, a in by_request.items()}
    found = []
    cut: set[str] = set()
    for pair in pairs:
        frame = frames[pair.request_id, pair.prompt]
        cut |= {side.key for side in pair.sides if _lost(sizes.get(side.key, frame), frame) > LOST}
        win, lose = (_fitted_to(side, frame, sizes.get(side.key)) for side in pair.sides)
        found.append(replace(pair, win=win, lose=lose))
    if cut:
        warn(f"pairs {source.name}: {len(cut)} of {len(sizes)} images lose more than {LOST:.0%} to cropping, because the "
             "images of their request differ in aspect. Crop them by hand, or remove their pairs.")  # fmt: skip
    return found


def bucket(aspect: float, resolution: int) -> tuple[int, int]:
    """(height, width): multiples of 64 px (less below 512) with about resolution^2 pixels. aspect: width / height."""
    step = min(64, max(16, resolution // 8 // 16 * 16))
    height, width = resolution / math.sqrt(aspect), resolution * math.sqrt(aspect)
    return tuple(max(step, round(edge / step) * step) for edge in (height, width))  # type: ignore[return-value]


def fit(image: Image, side: PairImage) -> Image:
    """Scaled until it covers the side's frame, and cropped there; mirrored where the view says so. As it is without."""
    from PIL import Image as pil
    from PIL import ImageOps

    if side.frame is not None:
        image = ImageOps.fit(image, side.frame[::-1], pil.Resampling.LANCZOS)
    return ImageOps.mirror(image) if side.flip else image


def shown(side: PairImage) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of what `fit` leaves, in shares of the whole image, before it is mirrored."""
    if side.frame is None or side.whole is None:
        return 0.0, 0.0, 1.0, 1.0
    ratio = (side.whole[1] / side.whole[0]) / (side.frame[1] / side.frame[0])  # above 1: wider than the frame
    width, height = min(1.0, 1 / ratio), min(1.0, ratio)
    left, top = (1 - width) / 2, (1 - height) / 2
    return left, top, left + width, top + height


def _fitted_to(side: PairImage, frame: tuple[int, int], whole: tuple[int, int] | None) -> PairImage:
    return replace(side, key=digest(side.key, frame, length=40), frame=frame, whole=whole)


def _lost(size: tuple[int, int], frame: tuple[int, int]) -> float:
    """The share of the image that cropping takes."""
    ratio = (size[1] / size[0]) / (frame[1] / frame[0])
    return 1 - min(ratio, 1 / ratio)


def _sizes(pairs: Sequence[PairRow], source: PairSource, store: Store) -> Iterator[tuple[str, tuple[int, int]]]:
    """(key, (height, width)) of every image that can be read; only headers are."""
    places = {(pair.row, side.column): side for pair in pairs for side in pair.sides}
    left = {side.candidate: side.key for side in places.values() if side.candidate}
    for row, *images in source.images():
        for column, image in enumerate(images):
            side = places.get((row, column))
            if image is None or side is None:
                continue
            try:
                yield side.key, size_of(image)[::-1]
            except (OSError, ValueError):
                continue
            left.pop(side.candidate or "", None)
    if left:
        for candidate in store.iter_candidates(ids={id for id in left if id}):
            if candidate.error is None:
                decoded = candidate.pil()
                yield left[candidate.id], (decoded.height, decoded.width)
