"""Diversity of the images of a request: their mean pixel distance, coarse but without a learned judge."""

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
    """[32, 32, 3] uint8, box-downsampled."""
    from PIL import Image as pil

    return np.asarray(image.convert("RGB").resize((SIDE, SIDE), pil.Resampling.BOX))


def mean_diversity(thumbnails: Thumbnails) -> float | None:
    """Mean over requests of the diversity within a request."""
    groups = defaultdict(list)
    for (request, _), image in thumbnails.items():
        groups[request].append(image / 255.0)
    values = [d for images in groups.values() if (d := diversity(np.stack(images))) is not None]
    return float(np.mean(values)) if values else None


def diversity(thumbnails: np.ndarray) -> float | None:
    """Mean distance of the pairs among [n, 32, 32, 3] images of one request, in 0..1; None if n < 2.

    The distance of two images is the root mean square difference of their 32 x 32 RGB versions in [0, 1].
    """
    n = len(thumbnails)
    if n < 2:
        return None
    flat = np.asarray(thumbnails, np.float64).reshape(n, -1)
    return float(np.mean([rms(flat[i], flat[j]) for i, j in zip(*np.triu_indices(n, 1))]))


def rms(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square difference of two arrays of one shape."""
    gap = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return float(np.sqrt(np.mean(gap * gap)))
