"""Poses of recorded motion: the humanoid clips of the pybullet wheel, retargeted to the free body.

A clip holds frames of 44 numbers. DeepMimic's axes: x forward, y up, z right; quaternions (w, x, y, z) from parent to
child; knees and elbows are angles about z; in the zero pose legs and arms hang straight down.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from assets import clip_file, find
from skeleton import about, free_rotations

from prefkit.errors import UsageError
from prefkit.mesh.rotations import from_matrix, to_matrix

#: clips that pairs are made from, and clips that are only evaluated on
PAIR_CLIPS = ("backflip", "crawl", "dance_a", "getup_faceup", "jump", "punch", "roll", "run", "spin", "spinkick")
TEST_CLIPS = ("cartwheel", "dance_b", "getup_facedown", "kick", "walk")
#: DeepMimic's axes -> body axes (x = left, y = back, z = up)
BODY = np.array([[0, 0, -1], [-1, 0, 0], [0, 1, 0]], np.float64)
NUMBERS = 44
#: first number of a quaternion -> the bones that share its rotation
JOINTS = {
    4: ("Hips",),
    8: ("LowerBack", "Spine", "Spine1"),
    12: ("Neck", "Neck1"),
    16: ("RightUpLeg",),
    21: ("RightFoot",),
    25: ("RightArm",),
    30: ("LeftUpLeg",),
    35: ("LeftFoot",),
    39: ("LeftArm",),
}
HINGES = {20: "RightLeg", 29: "RightForeArm", 34: "LeftLeg", 43: "LeftForeArm"}


def read_clip(path: Path) -> np.ndarray:
    """Return a clip's frames [F, 44]. Raises UsageError if the file is not a humanoid clip."""
    try:
        frames = np.array(json.loads(path.read_text(encoding="utf-8"))["Frames"], np.float64)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a motion clip ({error}). Unpack it again with assets.py.") from error
    if frames.ndim != 2 or frames.shape[1] != NUMBERS or not len(frames) or not np.isfinite(frames).all():
        raise UsageError(
            f"{path}: the frames have shape {frames.shape}; a humanoid clip has [F, {NUMBERS}] finite numbers."
        )
    return frames


def quaternion_part(quaternions: np.ndarray, fraction: float) -> np.ndarray:
    """Return rotations [..., 3, 3] by `fraction` of the angles of quaternions [..., 4] (w, x, y, z), the short way."""
    matrices = to_matrix(torch.from_numpy(quaternions), "quaternion")
    return to_matrix(from_matrix(matrices, "axis_angle") * fraction, "axis_angle").numpy()


def doll(frames: np.ndarray) -> dict[str, np.ndarray]:
    """Return the rotations [F, 3, 3] per bone, in body axes, of frames [F, 44]; see skeleton.free_rotations."""
    turns: dict[str, np.ndarray] = {}
    for first, bones in JOINTS.items():
        turn = BODY @ quaternion_part(frames[:, first : first + 4], 1 / len(bones)) @ BODY.T
        turns |= dict.fromkeys(bones, turn)
    # the z axis of DeepMimic is -x of the body
    return turns | {bone: about(0, -frames[:, number]) for number, bone in HINGES.items()}


def rotations(frames: np.ndarray, rest: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the rotations [F, 20, 3, 3] in camera axes of frames [F, 44]. rest: from skeleton.rest_turns."""
    return free_rotations(doll(frames), rest)


def read_clips(cache: Path, names: tuple[str, ...], rest: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the rotations [F, 20, 3, 3] of each clip in the cache of assets.py."""
    files = find(cache, [clip_file(name) for name in names])
    return {name: rotations(read_clip(files[clip_file(name)]), rest) for name in names}
