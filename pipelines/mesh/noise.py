"""Keypoints made without a pose network (convention "free18"): projected joints with the errors of such a network.

The noise is modelled on BlazePose (full) on renders, at 256 px of the crop: median errors of 5, 9 and 21 px for
visible, self-occluded and hidden joints; 12, 27 and 62 % of their errors exceed 15 px. The errors in one picture are
correlated, left and right are swapped in 2 to 9 % of the pictures, and the confidence of hidden joints is hardly lower.
"""

from __future__ import annotations

import numpy as np

VISIBLE, SELF_OCCLUDED, HIDDEN = 0, 1, 2
#: state -> std per axis in px of a crop of 256 px, and mean confidence
STD = np.array([4.5, 7.6, 17.5])
CONFIDENCE = np.array([0.94, 0.73, 0.71])
CROP = 256.0
#: std of the logarithm of a picture's factor on all its errors
SPREAD = 0.65


def swap_chance(states: np.ndarray) -> float:
    """Return the chance that left and right are swapped: 2 % in a clean picture, up to 9 % with hidden joints."""
    return min(0.02 + 0.15 * float(np.mean(states == HIDDEN)), 0.09)


def swapped(names: tuple[str, ...]) -> list[int]:
    """Return for each joint the index of its counterpart on the other side."""
    other = {"Left": "Right", "Right": "Left"}
    return [
        names.index(next((new + n[len(old) :] for old, new in other.items() if n.startswith(old)), n)) for n in names
    ]


def noisy(
    joints: np.ndarray, states: np.ndarray, names: tuple[str, ...], crop: float, rng: np.random.Generator
) -> np.ndarray:
    """Return keypoints [J, 3] (x, y px, confidence 0..1) made from projected joints [J, 2].

    states: [J] of VISIBLE, SELF_OCCLUDED, HIDDEN. names: the joints' names. crop: side of the body's crop in px.
    """
    factor = np.exp(rng.normal(0, SPREAD)) * crop / CROP
    offsets = rng.normal(0, 1, joints.shape) * STD[states][:, None] * factor
    mean = CONFIDENCE[states]
    confidence = rng.beta(8 * mean, 8 * (1 - mean))
    points = np.c_[joints + offsets, confidence]
    return points[swapped(names)] if rng.random() < swap_chance(states) else points
