"""Diversity of the images generated for a request: their mean pixel distance, coarse but independent of any model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 32
#: (request id, index) -> [32, 32, 3] uint8
Thumbnails = Mapping[tuple[str, int], np.ndarray]


def thumbnail(image: Image) -> np.ndarray:
    """Return the image in RGB, downsampled with a box filter to [32, 32, 3] uint8."""
    from PIL import Image as pil

    return np.asarray(image.convert("RGB").resize((SIDE, SIDE), pil.Resampling.BOX))


def mean_diversity(thumbnails: Thumbnails) -> float | None:
    """Return the mean `diversity` of the requests; None if no request has two images."""
    groups = defaultdict(list)
    for (request, _), image in thumbnails.items():
        groups[request].append(image / 255.0)
    values = [d for images in groups.values() if (d := diversity(np.stack(images))) is not None]
    return float(np.mean(values)) if values else None


def diversity(thumbnails: np.ndarray) -> float | None:
    """Return the mean distance over all pairs of a request's n thumbnails [n, 32, 32, 3], in 0..1; None if n < 2.

    Thumbnails have values in [0, 1]. The distance between two of them is their root mean square difference.
    """
    n = len(thumbnails)
    if n < 2:
        return None
    flat = np.asarray(thumbnails, np.float64).reshape(n, -1)
    return float(np.mean([rms(flat[i], flat[j]) for i, j in zip(*np.triu_indices(n, 1))]))


def rms(a: np.ndarray, b: np.ndarray) -> float:
    """Return the root mean square difference between two arrays of equal shape."""
    gap = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return float(np.sqrt(np.mean(gap * gap)))
