"""Diversity of the images generated for a request: their mean distance in pixels or in an encoder's embeddings.

The pixel distance is coarse, but does not depend on a model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 32
#: (request id, index) -> thumbnail [32, 32, 3] uint8
Thumbnails = Mapping[tuple[str, int], np.ndarray]
#: (request id, index) -> embedding [D]
Embeddings = Mapping[tuple[str, int], np.ndarray]


def thumbnail(image: Image) -> np.ndarray:
    """Return the image in RGB, downsampled with a box filter to [32, 32, 3] uint8."""
    from PIL import Image as pil

    return np.asarray(image.convert("RGB").resize((SIDE, SIDE), pil.Resampling.BOX))


def mean_diversity(thumbnails: Thumbnails) -> float | None:
    """Return the mean `diversity` of the requests; None if no request has two images."""
    return _mean({key: image / 255.0 for key, image in thumbnails.items()}, diversity)


def mean_cosine_diversity(embeddings: Embeddings) -> float | None:
    """Return the mean `cosine_diversity` of the requests, from unit vectors; None if no request has two images."""
    return _mean(embeddings, cosine_diversity)


def _mean(rows: Mapping[tuple[str, int], np.ndarray], measure: Callable[[np.ndarray], float | None]) -> float | None:
    groups = defaultdict(list)
    for (request, _), row in rows.items():
        groups[request].append(row)
    values = [d for group in groups.values() if (d := measure(np.stack(group))) is not None]
    return float(np.mean(values)) if values else None


def cosine_diversity(embeddings: np.ndarray) -> float | None:
    """Return the mean of 1 - cosine over all pairs of a request's n unit vectors [n, D], in 0..2; None if n < 2."""
    n = len(embeddings)
    if n < 2:
        return None
    rows = np.asarray(embeddings, np.float64)
    return float(1 - (rows @ rows.T)[np.triu_indices(n, 1)].mean())


def diversity(thumbnails: np.ndarray) -> float | None:
    """Return the mean `rms` over all pairs of a request's n thumbnails [n, 32, 32, 3] in 0..1; None if n < 2."""
    n = len(thumbnails)
    if n < 2:
        return None
    flat = np.asarray(thumbnails, np.float64).reshape(n, -1)
    return float(np.mean([rms(flat[i], flat[j]) for i, j in zip(*np.triu_indices(n, 1))]))


def rms(a: np.ndarray, b: np.ndarray) -> float:
    """Return the root mean square difference between two arrays of equal shape."""
    gap = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return float(np.sqrt(np.mean(gap * gap)))
