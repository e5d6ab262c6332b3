"""The pose denoiser's condition, made from a request's keypoints, and the mask of state entries that count in a loss.

The condition of K keypoints has 3 K + 3 numbers: the keypoints relative to their mean, divided by `size`, the largest
distance from the mean; the K confidences; the mean relative to the box's centre (2 numbers), and the logarithm of
`size`, both in units of half the box's longer side.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefkit.mesh.body import FREE
from prefkit.mesh.diffusion.network import POSE, SHAPE, STATE
from prefkit.mesh.observed import box_of, keypoints_of

#: column of a request that holds a mask -> number of entries in the mask
MASKS = {"pose_mask": len(FREE), "shape_mask": 1}


def condition_of(extra: Mapping[str, Any], keypoints: int) -> Tensor:
    """Return the condition [3 * keypoints + 3] of a request. Raises ValueError if its keypoints are unusable."""
    rows = keypoints_of(extra)
    if len(rows) != keypoints:
        raise ValueError(
            f"the request has {len(rows)} keypoints, but the model was made for {keypoints}. Use the detector that the "
            "model was trained with"
        )
    seen = rows[rows[:, 2] > 0]
    middle, half = box_of(extra.get("bbox"), seen[:, :2])
    centre = seen[:, :2].mean(0)
    offsets = np.where(rows[:, 2:] > 0, rows[:, :2] - centre, 0.0)
    size = max(float(np.linalg.norm(offsets, axis=1).max()), 1e-6 * half)
    place = [*(centre - middle) / half, np.log(size / half)]
    return torch.from_numpy(np.concatenate([(offsets / size).ravel(), rows[:, 2], place]).astype(np.float32))


def mask_of(extra: Mapping[str, Any]) -> Tensor:
    """Return the loss weights [130] of the state entries: 0 where the request's masks mark a label as unknown, else 1.

    `pose_mask` has 20 numbers, one per rotation, and `shape_mask` has one. A missing mask counts as all 1. Raises
    ValueError if the number of entries is wrong, an entry is not 0 or 1, or all entries are 0.
    """
    values = {}
    for name, count in MASKS.items():
        given = np.ones(count) if extra.get(name) is None else extra[name]
        try:
            values[name] = torch.from_numpy(np.array(given, np.float32).reshape(count))
        except (TypeError, ValueError):
            values[name] = torch.full((count,), torch.nan)
        if not ((values[name] == 0) | (values[name] == 1)).all():
            raise ValueError(f"{name} must be {'0 or 1' if count == 1 else f'{count} numbers, each 0 or 1'}")
    mask = torch.cat([values["pose_mask"].repeat_interleave(POSE // len(FREE)), values["shape_mask"].repeat(SHAPE)])
    assert len(mask) == STATE
    if not mask.any():
        raise ValueError(
            "pose_mask and shape_mask are 0 everywhere, so nothing can be learned from the request. Remove its pairs, or "
            "set the known entries to 1"
        )
    return mask
