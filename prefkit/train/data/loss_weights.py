"""Loss weights of masked images: one factor of the squared error for each latent element.

Loss weights are computed once per image and cached separately from the latents, so that images need not be encoded
again if the mask changes.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, ones_like, zeros_like

from prefkit.config import Train
from prefkit.errors import UsageError
from prefkit.images import rgb
from prefkit.models.trees import Tree
from prefkit.store import Store
from prefkit.train.data.aspect_buckets import crop_box
from prefkit.train.data.batches import PART_ROWS, PairData
from prefkit.train.data.cache import in_share
from prefkit.train.data.masks import EDGES, box_mask, image_mask
from prefkit.train.data.pairs import PairImage
from prefkit.types import digest


def folder_of(config: Train) -> str | None:
    """Return the loss weights' cache folder, relative to the latents' folder; None without train.mask."""
    return None if config.mask is None else f"weights/{digest(config.mask)}"


def fill(data: PairData, family: Any, store: Store, share: tuple[int, int]) -> None:
    """Cache this process's share of the missing loss weights. share: (rank, processes). Raises UsageError."""
    assert data.weights is not None and data.masks is not None
    images = {data.weight_key(group, image): (group, image) for group in data.pairs for image in group.images}
    missing = {key: each for key, each in images.items() if key not in data.weights and in_share(key, share)}
    ids = {value for each in missing.values() for value in data.masks.lookup(*each) if isinstance(value, str)}
    mask_images: dict[str, bytes] = {}
    for batch in store.inputs().batches(["id", "bytes"]) if ids else ():
        mask_images |= {row["id"]: row["bytes"] for row in batch.to_pylist() if row["id"] in ids}
    part: dict[str, Tree] = {}
    for key, (group, image) in missing.items():
        part[key] = {"weight": _weight(data, family, mask_images, group, image)}
        if len(part) == PART_ROWS:
            data.weights.append(part)
            part = {}
    data.weights.append(part)


def _weight(data: PairData, family: Any, mask_images: dict[str, bytes], group: Any, image: PairImage) -> Tensor:
    """Return the loss weights of an image, shaped like its latents."""
    assert data.masks is not None
    name, values = data.masks.name, data.masks.lookup(group, image)
    latents, (height, width) = data.latents.get(image.key)["latents"], data.size(group)
    where = f"train.mask: row {group.row} of the pairs, image {image.column}"
    if not values:
        keys = ", ".join(dict.fromkeys(key for extra in data.masks.extras(group, image) for key in extra))
        raise UsageError(
            f"{where}: neither the candidate nor its request has the key {name!r} in `extra` (keys: {keys or 'none'}). "
            "Add the key, with the value null if the whole image counts."
        )
    if values[0] is None:
        return ones_like(latents)
    if isinstance(values[0], str):
        mask = values[0]
        if mask not in mask_images:
            raise UsageError(f"{where}: {name} is {mask[:80]!r}, but the run has no input image with that id.")
        try:
            pixels = rgb(mask_images[mask])
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{where}: the mask {mask[:80]} cannot be read as an image ({error}). Replace the image."
            ) from error
        weight = image_mask(pixels, family.wiring, latents, (width, height), crop_box(image), image.flip)
    else:
        box = _visible(_box(values[0], where), image)
        weight = box_mask(box, family.wiring, latents, (width, height)) if box else zeros_like(latents)
    if not weight.any():
        raise UsageError(
            f"{where}: the mask is 0 everywhere in the part of the image that remains after cropping, so nothing "
            "would be learned. Fix the mask, or remove the row."
        )
    return weight


def _box(value: Any, where: str) -> list[float]:
    numbers = isinstance(value, list) and len(value) == 4 and all(isinstance(v, (int, float)) for v in value)
    if not numbers or not (0 <= value[0] < value[2] <= 1 and 0 <= value[1] < value[3] <= 1):
        raise UsageError(
            f"{where}: {value!r} is neither a box [left, top, right, bottom] in fractions of the image, 0 to 1, nor "
            "the id of an input image. Fix the value."
        )
    return [float(v) for v in value]


def _visible(box: list[float], image: PairImage) -> dict[str, float]:
    """Return the box as fractions of the cropped image; empty if the box is outside the crop."""
    left, top, right, bottom = crop_box(image)
    x0, x1 = (min(1.0, max(0.0, (edge - left) / (right - left))) for edge in (box[0], box[2]))
    y0, y1 = (min(1.0, max(0.0, (edge - top) / (bottom - top))) for edge in (box[1], box[3]))
    if x0 == x1 or y0 == y1:
        return {}
    if image.flip:
        x0, x1 = 1 - x1, 1 - x0
    return dict(zip(EDGES, (x0, y0, x1, y1), strict=True))
