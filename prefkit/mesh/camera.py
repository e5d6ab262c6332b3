"""The pinhole camera of a picture, and a weak-perspective fit for requests without a camera."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from prefkit.paths import shown

#: points nearer than this (metres), or behind the camera, are projected as if they were at this depth
NEAR = 0.01
LARGEST = 16_384  # px of a picture's width or height
Points = TypeVar("Points", Tensor, np.ndarray)
FORM = '{"focal": 500.0, "principal": [128, 128], "size": [256, 256]}'


@dataclass(frozen=True)
class Camera:
    """A pinhole camera without distortion. focal, cx, cy: pixels; width, height: the picture's size in pixels."""

    focal: float
    cx: float
    cy: float
    width: int
    height: int

    @classmethod
    def of(cls, extra: Mapping[str, Any]) -> Camera | None:
        """Return a request's camera, or None if the request has none.

        extra: the request's columns; `camera` is {"focal": px, "principal": [cx, cy], "size": [width, height]}.
        Raises ValueError if a part is missing, is not a number, or is out of range.
        """
        given = extra.get("camera")
        if given is None:
            return None
        try:
            (cx, cy), (width, height) = given["principal"], given["size"]
            camera = cls(float(given["focal"]), float(cx), float(cy), int(width), int(height))
        except (TypeError, ValueError, KeyError, IndexError, OverflowError):
            raise ValueError(f"a request's `camera` {shown(repr(given))} is invalid; write it as {FORM}") from None
        if not camera._valid():
            raise ValueError(
                f"a request's `camera` {shown(repr(given))} needs a finite focal length above 0 and a size of 1 to "
                f"{LARGEST:,} px"
            )
        return camera

    def _valid(self) -> bool:
        finite = all(math.isfinite(value) for value in (self.focal, self.cx, self.cy))
        return finite and self.focal > 0 and all(1 <= side <= LARGEST for side in (self.width, self.height))

    def project(self, points: Points) -> Points:
        """Return pixel positions [..., 2] of points [..., 3] in the camera frame, metres. Torch or numpy."""
        if isinstance(points, Tensor):
            depth = points[..., 2].clamp_min(NEAR)
            return torch.stack(self._pixels(points, depth), -1)
        return np.stack(self._pixels(points, np.maximum(points[..., 2], NEAR)), -1)

    def _pixels(self, points: Any, depth: Any) -> list[Any]:
        x, y = (points[..., axis] / depth * self.focal for axis in (0, 1))
        return [x + self.cx, y + self.cy]


def weak_perspective_fit(joints: Tensor, keypoints: Tensor, confidence: Tensor) -> Tensor:
    """Project joints with the weak-perspective camera that fits the keypoints best: [M, J, 2] px.

    The scale (>= 0) and the offset of each hypothesis minimise the squared pixel distance to the keypoints, weighted
    by confidence. joints: [M, J, 3] metres, camera frame; keypoints: [J, 2] px; confidence: [J], >= 0. With a total
    confidence of 0 the result is NaN.
    """
    weight = confidence.to(joints.dtype).unsqueeze(-1)
    flat, keypoints = joints[..., :2], keypoints.to(joints.dtype)
    centre = (weight * flat).sum(-2, keepdim=True) / weight.sum()
    target = (weight * keypoints).sum(-2, keepdim=True) / weight.sum()
    moved = flat - centre
    size = (weight * moved.square()).sum((-1, -2)).clamp_min(torch.finfo(joints.dtype).tiny)
    scale = ((weight * moved * (keypoints - target)).sum((-1, -2)) / size).clamp_min(0.0)
    return scale[:, None, None] * moved + target
