"""The observed body in a request's picture: keypoints and confidences of the joints, the box and the camera.

A request's keys, in px of the picture:

    keypoints2d     list of [x, y, confidence]; the confidence is from 0 (not detected) to 1
    keypoint_names  one of CONVENTIONS, `joints` (the candidate's own order) or a list of names
    bbox            [x, y, w, h], by default the extent of the keypoints
    camera          by default, the weak-perspective camera that fits the keypoints best

For invalid values, the functions raise ValueError with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from prefkit.mesh.body import JOINT_NAMES, LIMBS
from prefkit.mesh.camera import Camera, weak_perspective_fit
from prefkit.paths import shown

if TYPE_CHECKING:
    from torch import Tensor

#: BlazePose landmark -> joint; the other landmarks (face, hands, feet) have no joint
BLAZEPOSE = {
    11: "LeftArm",
    12: "RightArm",
    13: "LeftForeArm",
    14: "RightForeArm",
    15: "LeftHand",
    16: "RightHand",
    23: "LeftUpLeg",
    24: "RightUpLeg",
    25: "LeftLeg",
    26: "RightLeg",
    27: "LeftFoot",
    28: "RightFoot",
}
CONVENTIONS: dict[str, tuple[str, ...]] = {
    "free18": tuple(JOINT_NAMES),
    "free12": tuple(LIMBS),
    "blazepose33": tuple(BLAZEPOSE.get(n, "") for n in range(33)),
}
#: joints whose midpoint is the root, in order of preference
ROOTS = (("LeftUpLeg", "RightUpLeg"), ("left_hip", "right_hip"), ("Hips",), ("pelvis",))


ROUNDING = 1e-4  # a confidence so little outside 0..1 is a rounding error and is clipped


@dataclass(frozen=True)
class Observed:
    """An observed body: keypoints [J, 2] px, their confidence [J] (0 = no keypoint), the box and the camera.

    centre: the box's centre [2] px. half: half the box's longer side in px, the unit of residuals and errors.
    """

    keypoints: Tensor
    confidence: Tensor
    centre: Tensor
    half: float
    camera: Camera | None

    def check(self, joints: np.ndarray) -> None:
        """Raise ValueError if any of the joints [J, 3] is behind the camera."""
        behind = int((joints[:, 2] <= 0).sum()) if self.camera is not None else 0
        if behind:
            raise ValueError(
                f"{behind} of {len(joints)} joints are behind the camera; joints3d must be in the camera frame"
            )

    def project(self, joints: Tensor) -> Tensor:
        """Project joints [M, J, 3] to px [M, J, 2]."""
        if self.camera is None:
            return weak_perspective_fit(joints, self.keypoints, self.confidence)
        return self.camera.project(joints)

    def residuals(self, joints: Tensor) -> Tensor:
        """Return the offsets [M, J, 2] of projected joints from keypoints, in units of `half`; 0 without a keypoint."""
        offsets = (self.project(joints) - self.keypoints) / self.half
        return torch.where(self.confidence[:, None] > 0, offsets, 0.0)

    def error(self, residuals: Tensor) -> Tensor:
        """Return the confidence-weighted mean length [M] of residuals [M, J, 2], in units of `half`."""
        return (residuals.norm(dim=-1) * self.confidence).sum(-1) / self.confidence.sum()


def names_of(names: Sequence[str], count: int) -> tuple[str, ...]:
    """Return `names` or, if empty, default names for `count` joints: the free body's for 18 joints, else numbers."""
    if names:
        return tuple(names)
    return tuple(JOINT_NAMES) if count == len(JOINT_NAMES) else tuple(map(str, range(count)))


def root_of(names: Sequence[str]) -> tuple[int, ...]:
    """Return the indices of the joints whose midpoint is the root (see ROOTS); joint 0 if no name is known."""
    for root in ROOTS:
        if set(root) <= set(names):
            return tuple(names.index(name) for name in root)
    return (0,)


def observed(extra: Mapping[str, Any], names: Sequence[str]) -> Observed:
    """Read a request's keypoints, box and camera for the joints `names`."""
    rows = keypoints_of(extra)
    labels = _labels(extra.get("keypoint_names"), len(rows), names)
    keypoints, confidence = np.zeros((len(names), 2), np.float32), np.zeros(len(names), np.float32)
    for label, (x, y, c) in zip(labels, rows):
        if label in names and c > 0:
            keypoints[names.index(label)], confidence[names.index(label)] = (x, y), c
    if not confidence.any():
        raise ValueError("no joint of the candidate has a keypoint with a confidence above 0; check keypoint_names")
    centre, half = box_of(extra.get("bbox"), keypoints[confidence > 0])
    place = torch.from_numpy(centre)
    return Observed(torch.from_numpy(keypoints), torch.from_numpy(confidence), place, half, Camera.of(extra))


def keypoints_of(extra: Mapping[str, Any]) -> np.ndarray:
    """Return a request's keypoints [K, 3] float32: x and y in px, and the confidence from 0 (not detected) to 1.

    Raises ValueError if a confidence is missing or outside 0..1, if none is above 0, or if the position of a keypoint
    with a confidence above 0 is not finite.
    """
    rows = array(extra, "keypoints2d", 3).copy()
    confidence = rows[:, 2]
    wrong = np.flatnonzero(~((confidence >= -ROUNDING) & (confidence <= 1 + ROUNDING)))
    if len(wrong):
        raise ValueError(
            f"keypoints2d: the confidence of keypoint {wrong[0]} is {confidence[wrong[0]]:g}; it must be from 0 (not "
            "detected) to 1"
        )
    rows[:, 2] = confidence.clip(0.0, 1.0)
    seen = rows[rows[:, 2] > 0]
    if not len(seen):
        raise ValueError("keypoints2d: no keypoint has a confidence above 0, but at least one must")
    if not np.isfinite(seen).all():
        raise ValueError("keypoints2d has NaN or infinity where the confidence is above 0")
    return rows


def array(extra: Mapping[str, Any], key: str, width: int) -> np.ndarray:
    """Return the list of rows in a request's column `key` as float32 [N, width]; a missing number is NaN."""
    try:
        values = np.asarray(extra[key], np.float32)
    except KeyError:
        raise ValueError(f"the request has no {key}") from None
    except (TypeError, ValueError):
        raise ValueError(f"{key} must be a list of rows of {width} numbers") from None
    if values.ndim != 2 or values.shape[1] != width or not len(values):
        raise ValueError(f"{key} must be a list of rows of {width} numbers; its shape is {list(values.shape)}")
    return values


def _labels(convention: Any, count: int, names: Sequence[str]) -> Sequence[str]:
    """Return the name of each keypoint's joint; "" for a keypoint without a joint."""
    if convention == "joints":  # in the order of the candidate's own joints
        labels = names
    elif convention is None:
        labels = names if count == len(names) else CONVENTIONS["free18"]
    elif isinstance(convention, str):
        if convention not in CONVENTIONS:
            raise ValueError(
                f"keypoint_names {convention!r} is unknown; use {', '.join(CONVENTIONS)}, joints, or a list of names"
            )
        labels = CONVENTIONS[convention]
    elif isinstance(convention, Sequence | np.ndarray):
        labels = list(convention)
    else:
        raise ValueError(f"keypoint_names {convention!r} must be one of {', '.join(CONVENTIONS)}, joints, or a list")
    if len(labels) != count:
        default = " (unset: free18)" if convention is None else ""
        raise ValueError(f"keypoints2d has {count} rows, but keypoint_names{default} defines {len(labels)} keypoints")
    return labels


def box_of(box: Any, keypoints: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the centre [2] and half the longer side of the box [x, y, w, h], or of the keypoints' extent."""
    if box is None:
        low, high = keypoints.min(0), keypoints.max(0)
    else:
        try:
            x, y, w, h = np.asarray(box, np.float32)
        except (TypeError, ValueError):
            raise ValueError(f"bbox must be four numbers [x, y, width, height]; it is {shown(str(box))}") from None
        low, high = np.array([x, y], np.float32), np.array([x + w, y + h], np.float32)
    half = float((high - low).max()) / 2
    if box is not None and not (np.isfinite([*low, *high]).all() and (high > low).all()):
        raise ValueError(f"bbox must be [x, y, width, height] with a width and height above 0; it is {shown(str(box))}")
    if not half > 0:
        raise ValueError("all keypoints are at one point, so the request needs a bbox")
    return (low + high) / 2, half
