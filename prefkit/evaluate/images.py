"""Distances of images: within a request, and between two models at equal seeds."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from prefkit.score.diversity import Thumbnails, rms, thumbnail

if TYPE_CHECKING:
    from prefkit.store import Store


def thumbnails(store: Store, generator: str, requests: set[str], seeds: int) -> dict[tuple[str, int], np.ndarray]:
    """Thumbnails by (request, index) of the readable images of these requests with index < seeds."""
    images = {}
    columns = ["id", "request_id", "index", "seed", "image", "path"]
    for candidate in store.iter_candidates([generator], columns=columns):
        wanted = candidate.request_id in requests and candidate.index < seeds
        if wanted and (candidate.image is not None or candidate.path is not None):
            with suppress(OSError, ValueError):
                images[candidate.request_id, candidate.index] = thumbnail(candidate.pil())
    return images


def moved(base: Thumbnails, tuned: Thumbnails) -> float | None:
    """Mean distance of the two models' images of the same request and seed, in the units of `diversity`."""
    shared = sorted(base.keys() & tuned.keys())
    return float(np.mean([rms(base[key] / 255.0, tuned[key] / 255.0) for key in shared])) if shared else None
