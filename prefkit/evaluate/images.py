"""How far images lie apart: within a request, and between two models at equal seed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from prefkit.evaluate.statistics import diversity, rms

if TYPE_CHECKING:
    from prefkit.store import Store

SIDE = 32
#: (request id, index) -> [32, 32, 3] uint8
Thumbnails = Mapping[tuple[str, int], np.ndarray]


def thumbnails(store: Store, generator: str, requests: set[str], seeds: int) -> dict[tuple[str, int], np.ndarray]:
    """Every readable image of these requests with index < seeds, box-downsampled to 32 x 32 RGB."""
    from PIL import Image

    found = {}
    columns = ["id", "request_id", "index", "seed", "image", "path"]
    for candidate in store.iter_candidates([generator], columns=columns):
        if candidate.request_id not in requests or candidate.index >= seeds:
            continue
        if candidate.image is None and candidate.path is None:
            continue
        try:
            small = candidate.pil().resize((SIDE, SIDE), Image.Resampling.BOX)
        except (OSError, ValueError):
            continue
        found[candidate.request_id, candidate.index] = np.asarray(small)
    return found


def mean_diversity(found: Thumbnails) -> float | None:
    """Mean over requests of the diversity within the request."""
    groups = defaultdict(list)
    for (request, _), image in found.items():
        groups[request].append(image / 255.0)
    values = [d for images in groups.values() if (d := diversity(np.stack(images))) is not None]
    return float(np.mean(values)) if values else None


def moved(base: Thumbnails, tuned: Thumbnails) -> float | None:
    """Mean distance of the two models' images of the same request and seed, in the units of `diversity`."""
    shared = sorted(base.keys() & tuned.keys())
    return float(np.mean([rms(base[key] / 255.0, tuned[key] / 255.0) for key in shared])) if shared else None
