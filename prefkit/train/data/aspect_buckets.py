"""Aspect buckets for imported images: all images of a request, and so both images of a pair, get the same size.

A bucket is an image size of about resolution x resolution pixels. The aspect ratio of a request's bucket is about the
geometric mean of its images' aspect ratios. Each image is scaled without distortion until it covers the bucket, then
cropped around the centre.
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

MAX_CROPPED = 0.2  # fraction of an image that may be cropped without a warning


def assign_buckets(pairs: list[PairRow], source: PairSource, store: Store, resolution: int) -> list[PairRow]:
    """Assign a bucket to every image of the pairs; the bucket becomes part of the image's key."""
    sizes = dict(_sizes(pairs, source, store))  # unreadable images are left out here and reported when they are encoded
    log_aspects: dict[tuple[str | None, str], list[float]] = {}
    for pair in pairs:
        known = [sizes[image.key] for image in pair.images if image.key in sizes]
        aspects = log_aspects.setdefault((pair.request_id, pair.prompt), [])
        aspects += [math.log(width / height) for height, width in known]
    buckets = {key: bucket(math.exp(sum(a) / max(1, len(a))), resolution) for key, a in log_aspects.items()}
    cropped: set[str] = set()
    fitted = []
    for pair in pairs:
        size = buckets[pair.request_id, pair.prompt]
        cropped |= {i.key for i in pair.images if 1 - math.prod(_visible(sizes.get(i.key, size), size)) > MAX_CROPPED}
        images = (
            replace(i, key=digest(i.key, size, length=40), bucket=size, original_size=sizes.get(i.key))
            for i in pair.images
        )
        fitted.append(replace(pair, images=tuple(images)))
    if cropped:
        warn(
            f"pairs {source.name}: {len(cropped)} of {len(sizes)} images lose more than {MAX_CROPPED:.0%} to cropping, "
            "because the images of a request differ in aspect ratio. Crop these images by hand, or remove their pairs."
        )
    return fitted


def bucket(aspect: float, resolution: int) -> tuple[int, int]:
    """Return a bucket's (height, width), about resolution^2 pixels. aspect: width / height.

    Both sides are multiples of 64 px or, if the resolution is below 512, of 16, 32 or 48 px.
    """
    step = min(64, max(16, resolution // 8 // 16 * 16))
    height, width = resolution / math.sqrt(aspect), resolution * math.sqrt(aspect)
    return tuple(max(step, round(edge / step) * step) for edge in (height, width))  # type: ignore[return-value]


def fit(picture: Image, image: PairImage) -> Image:
    """Scale and crop the picture to the image's bucket, if it has one; mirror it if the image is flipped."""
    from PIL import Image as pil
    from PIL import ImageOps

    if image.bucket is not None:
        picture = ImageOps.fit(picture, image.bucket[::-1], pil.Resampling.LANCZOS)
    return ImageOps.mirror(picture) if image.flip else picture


def crop_box(image: PairImage) -> tuple[float, float, float, float]:
    """Return the part (left, top, right, bottom) that `fit` keeps, as fractions of the unflipped original."""
    if image.bucket is None or image.original_size is None:
        return 0.0, 0.0, 1.0, 1.0
    width, height = _visible(image.original_size, image.bucket)
    left, top = (1 - width) / 2, (1 - height) / 2
    return left, top, left + width, top + height


def _visible(size: tuple[int, int], target: tuple[int, int]) -> tuple[float, float]:
    """Return the fractions of (width, height) that remain after fitting. size, target: (height, width)."""
    ratio = (size[1] / size[0]) / (target[1] / target[0])  # above 1 if the image is wider than the target
    return min(1.0, 1 / ratio), min(1.0, ratio)


def _sizes(pairs: Sequence[PairRow], source: PairSource, store: Store) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield (key, (height, width)) of every readable image."""
    images = {(pair.row, image.column): image for pair in pairs for image in pair.images}
    unread = {image.candidate: image.key for image in images.values() if image.candidate}
    for row, *encoded in source.images():
        for column, data in enumerate(encoded):
            image = images.get((row, column))
            if data is None or image is None:
                continue
            try:
                yield image.key, size_of(data)[::-1]
            except (OSError, ValueError):
                continue
            unread.pop(image.candidate or "", None)
    if unread:
        for candidate in store.iter_candidates(ids=set(unread)):
            if candidate.error is None:
                picture = candidate.pil()
                yield unread[candidate.id], (picture.height, picture.width)
