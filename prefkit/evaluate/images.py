"""How far images lie apart: within a request, and between two models at equal seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from prefkit.score.diversity import Thumbnails, rms, thumbnail

if TYPE_CHECKING:
    from prefkit.store import Store


def thumbnails(store: Store, generator: str, requests: set[str], seeds: int) -> dict[tuple[str, int], np.ndarray]:
    """Of every readable image of these requests with index < seeds."""
    found = {}
    columns = ["id", "request_id", "index", "seed", "image", "path"]
    for candidate in store.iter_candidates([generator], columns=columns):
        if candidate.request_id not in requests or candidate.index >= seeds:
            continue
        if candidate.image is None and candidate.path is None:
            continue
        try:
            found[candidate.request_id, candidate.index] = thumbnail(candidate.pil())
        except (OSError, ValueError):
            continue
    return found


def moved(base: Thumbnails, tuned: Thumbnails) -> float | None:
    """Mean distance of the two models' images of the same request and seed, in the units of `diversity`."""
    shared = sorted(base.keys() & tuned.keys())
    return float(np.mean([rms(base[key] / 255.0, tuned[key] / 255.0) for key in shared])) if shared else None
