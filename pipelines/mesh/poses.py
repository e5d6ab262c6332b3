"""Procedural poses: a wide prior of whole-body modes, six modes per arm, and noise. No motion data is used.

A pose is a dict of angles in degrees; legs and arms have one value for each side (left, right):
pitch, roll        the pelvis leans forward, or to its left, from upright
bend, side, twist  of the spine: forward, to the left, to the left
nod, tilt, look    of the neck, likewise
hip, spread, turn  of a thigh: forward, outward, and about its own axis, inward
knee, ankle        bend back; toes up
arm, raised, spin  of an upper arm: forward, outward, and about its own axis, inward
elbow, wrist, shrug
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from skeleton import SIDES, about, free_rotations

Pose = dict[str, Any]
Rng = np.random.Generator
#: names of the angles of the torso, and of each limb
TORSO = ("pitch", "roll", "bend", "side", "twist", "nod", "tilt", "look")
LIMBS = ("hip", "spread", "turn", "knee", "ankle", "arm", "raised", "spin", "elbow", "wrist", "shrug")
#: std of the noise on every angle, degrees
NOISE = 6.0
#: fraction of poses whose torso twists widely
TWISTED = 0.25


def both(rng: Rng, low: float, high: float) -> np.ndarray:
    """Draw one value for each side."""
    return rng.uniform(low, high, 2)


def standing(rng: Rng) -> Pose:
    return {"hip": both(rng, -8, 15), "spread": both(rng, 0, 18), "knee": both(rng, 0, 20), "bend": rng.normal(5, 18)}


def walking(rng: Rng) -> Pose:
    """Walking and running; the arms swing against the legs in most of them."""
    stride = rng.uniform(8, 55)
    legs = {
        "hip": np.array([stride * rng.uniform(0.6, 1.3), -stride * rng.uniform(0.1, 0.7)]),
        "spread": both(rng, -3, 8),
        "knee": np.array([rng.uniform(0, 60), rng.uniform(5, 60 + stride)]),
        "pitch": rng.uniform(-3, 5 + stride / 2),
    }
    swing = {"arm": np.array([-stride, stride]) * both(rng, 0.3, 1.1), "raised": both(rng, 0, 15)}
    return legs | (swing | {"elbow": both(rng, 5, 30 + stride)} if rng.random() < 0.7 else {})


def sitting(rng: Rng) -> Pose:
    """Sitting on a chair, or on the floor with any bend of the knees."""
    knee = both(rng, 60, 110) if rng.random() < 0.6 else both(rng, 0, 120)
    return {"hip": both(rng, 60, 115), "spread": both(rng, 0, 40), "knee": knee, "pitch": rng.uniform(-25, 20)}


def reclining(rng: Rng) -> Pose:
    """Reclining on the floor, leaning back on the hands or getting up."""
    arms = {"arm": both(rng, -70, 10), "raised": both(rng, 0, 40), "elbow": both(rng, 0, 60)}
    legs = {"hip": both(rng, 20, 110), "spread": both(rng, 0, 35), "knee": both(rng, 0, 130)}
    return legs | arms | {"pitch": rng.uniform(-75, -15), "roll": rng.normal(0, 20), "bend": rng.uniform(0, 45)}


def squatting(rng: Rng) -> Pose:
    low = rng.uniform(50, 130)
    legs = {"hip": low + both(rng, -10, 15), "spread": both(rng, 0, 45), "knee": low + both(rng, -10, 25)}
    return legs | {"pitch": rng.uniform(0, 45), "bend": rng.uniform(0, 40)}


def lunging(rng: Rng) -> Pose:
    hip, knee = np.array([rng.uniform(40, 110), rng.uniform(-40, 15)]), np.array([rng.uniform(30, 115), 0])
    knee[1] = rng.uniform(0, 115)
    return {"hip": hip, "spread": both(rng, 0, 25), "knee": knee, "pitch": rng.uniform(-10, 40)}


def kicking(rng: Rng) -> Pose:
    """One leg is lifted to the front, the side or the back, up to above the head, and the body leans away from it."""
    lift, away, kind = rng.uniform(45, 140), rng.uniform(0, 1), rng.integers(3)
    leg = ((lift, rng.uniform(-15, 40)), (rng.uniform(0, 70), min(lift, 105)), (-lift / 2.5, rng.uniform(0, 40)))[kind]
    pose = {
        "hip": np.array([leg[0], rng.uniform(-20, 25)]),
        "spread": np.array([leg[1], rng.uniform(0, 20)]),
        "turn": np.array([rng.uniform(-20, 50), 0.0]),
        "knee": np.array([rng.uniform(0, 100) * rng.random(), rng.uniform(0, 45)]),
    }
    lean = ({"pitch": -40 * away}, {"roll": -60 * away}, {"pitch": 75 * away})[kind]
    return pose | lean


def relaxed_legs(rng: Rng) -> Pose:
    """The legs of a lying body: both straight, both bent, or each for itself."""
    bent = (np.zeros(2), np.full(2, rng.uniform(0, 1)), both(rng, 0, 1))[rng.integers(3)]
    return {"hip": 95 * bent + both(rng, -15, 20), "spread": both(rng, -5, 35), "knee": 115 * bent + both(rng, 0, 30)}


def lying_on_back(rng: Rng) -> Pose:
    return relaxed_legs(rng) | {"pitch": rng.normal(-88, 14), "roll": rng.normal(0, 12), "bend": rng.normal(8, 15)}


def lying_on_front(rng: Rng) -> Pose:
    legs = relaxed_legs(rng)
    legs["hip"] = legs["hip"] * 0.3
    return legs | {"pitch": rng.normal(88, 12), "roll": rng.normal(0, 12), "nod": rng.uniform(-50, 10)}


def lying_on_side(rng: Rng) -> Pose:
    return relaxed_legs(rng) | {"roll": rng.choice([-1, 1]) * rng.normal(88, 14), "pitch": rng.normal(0, 15)}


def crawling(rng: Rng) -> Pose:
    """Crawling on hands or elbows and knees, on hands and feet, or in a push-up."""
    kneeling = rng.random() < 0.6
    legs = {"hip": both(rng, 45, 120), "knee": both(rng, 55, 130)} if kneeling else {}
    feet = {"hip": both(rng, -15, 75), "knee": both(rng, 0, 60)}
    arms = {"arm": both(rng, 45, 130), "raised": both(rng, -5, 35), "spin": both(rng, -20, 40)}
    torso = {"pitch": rng.uniform(50, 115), "roll": rng.normal(0, 12), "nod": rng.uniform(-60, 15)}
    elbow = both(rng, 0, 40) if rng.random() < 0.6 else both(rng, 30, 120)
    return feet | legs | arms | torso | {"elbow": elbow, "spread": both(rng, 0, 30)}


def inverted(rng: Rng) -> Pose:
    """Handstands, cartwheels and somersaults: the head is below the hips."""
    over = {("pitch", "roll")[rng.integers(2)]: rng.uniform(90, 270)}
    legs = {"hip": both(rng, -40, 80), "spread": both(rng, 0, 75), "knee": both(rng, 0, 90) * rng.random()}
    arms = {"arm": both(rng, 110, 185), "raised": both(rng, -5, 50), "elbow": both(rng, 0, 45)}
    return over | legs | (arms if rng.random() < 0.8 else {}) | {"bend": rng.normal(0, 20)}


def tucked(rng: Rng) -> Pose:
    """A rolled-up body at any angle."""
    legs = {"hip": both(rng, 70, 140), "spread": both(rng, 0, 30), "knee": both(rng, 60, 150)}
    torso = {"pitch": rng.uniform(-180, 180), "bend": rng.uniform(10, 60), "nod": rng.uniform(0, 50)}
    return legs | torso | {"arm": both(rng, 10, 110), "elbow": both(rng, 0, 130)}


def anything(rng: Rng) -> Pose:
    legs = {"hip": both(rng, -40, 120), "spread": both(rng, -10, 65), "turn": both(rng, -40, 40)}
    return legs | {"knee": both(rng, 0, 140), "pitch": rng.normal(0, 35), "roll": rng.normal(0, 25)}


#: mode -> fraction of the poses
MODES: dict[Callable[[Rng], Pose], float] = {
    standing: 0.13,
    walking: 0.14,
    sitting: 0.08,
    reclining: 0.06,
    squatting: 0.06,
    lunging: 0.07,
    kicking: 0.11,
    lying_on_back: 0.05,
    lying_on_front: 0.04,
    lying_on_side: 0.04,
    crawling: 0.07,
    inverted: 0.07,
    tucked: 0.03,
    anything: 0.05,
}
#: an arm's mode -> its fraction, and the ranges of (arm, raised, spin, elbow)
ARMS = {
    "hanging": (0.25, ((-25, 25), (0, 25), (-20, 30), (0, 45))),
    "forward": (0.17, ((45, 115), (-25, 40), (-30, 40), (0, 95))),
    "sideways": (0.13, ((-35, 35), (45, 115), (-60, 60), (0, 110))),
    "overhead": (0.12, ((125, 185), (-10, 45), (-40, 40), (0, 80))),
    "bent": (0.19, ((-30, 75), (0, 55), (-15, 85), (70, 145))),
    "any": (0.14, ((-60, 180), (-10, 100), (-80, 80), (0, 140))),
}


def arms(rng: Rng) -> Pose:
    """Draw a mode for each arm; with probability 0.3 both have the same one."""
    chosen = rng.choice(len(ARMS), 2, p=[fraction for fraction, _ in ARMS.values()])
    if rng.random() < 0.3:
        chosen[1] = chosen[0]
    ranges = np.array([bounds for _, bounds in ARMS.values()], np.float64)[chosen]
    return dict(zip(("arm", "raised", "spin", "elbow"), rng.uniform(ranges[..., 0], ranges[..., 1]).T))


def mirrored(pose: Pose) -> Pose:
    """Swap left and right."""
    swapped = {name: value[::-1] if name in LIMBS else value for name, value in pose.items()}
    return swapped | {name: -swapped[name] for name in ("roll", "side", "twist", "tilt", "look")}


def draw(rng: Rng) -> tuple[str, Pose]:
    """Draw a mode and a pose of it with noise; half of the poses are mirrored."""
    mode = list(MODES)[rng.choice(len(MODES), p=list(MODES.values()))]
    pose: Pose = dict.fromkeys(TORSO, 0.0) | {name: np.zeros(2) for name in LIMBS}
    pose |= {"bend": rng.normal(6, 12), "nod": rng.normal(4, 14), "look": rng.normal(0, 22)} | arms(rng) | mode(rng)
    pose["twist"] += rng.uniform(-60, 60) if rng.random() < TWISTED else rng.normal(0, 12)
    pose["side"] += rng.normal(0, 9)
    pose["ankle"] += rng.normal(-5, 18, 2)
    pose = {name: value + rng.normal(0, NOISE, np.shape(value)) for name, value in pose.items()}
    # a knee or an elbow does not bend the other way
    pose |= {name: np.maximum(pose[name], -3) for name in ("knee", "elbow")}
    return mode.__name__, mirrored(pose) if rng.random() < 0.5 else pose


def doll(pose: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the rotations [N, 3, 3] per bone, in body axes, for angles [N] (torso) and [N, 2] (limbs) in degrees."""
    a = {name: np.deg2rad(value) for name, value in pose.items()}
    spine = about(0, a["bend"] / 3) @ about(1, a["side"] / 3) @ about(2, a["twist"] / 3)
    neck = about(0, a["nod"] / 2) @ about(1, a["tilt"] / 2) @ about(2, a["look"] / 2)
    turns = {"Hips": about(0, a["pitch"]) @ about(1, a["roll"])}
    turns |= dict.fromkeys(("LowerBack", "Spine", "Spine1"), spine) | dict.fromkeys(("Neck", "Neck1"), neck)
    for k, (side, sign) in enumerate(zip(SIDES, (1, -1))):
        one = {name: a[name][:, k] for name in LIMBS}
        limb = {
            "UpLeg": about(0, -one["hip"]) @ about(1, -sign * one["spread"]) @ about(2, -sign * one["turn"]),
            "Leg": about(0, one["knee"]),
            "Foot": about(0, -one["ankle"]),
            "Shoulder": about(1, -sign * one["shrug"]),
            "Arm": about(0, -one["arm"]) @ about(1, -sign * one["raised"]) @ about(2, -sign * one["spin"]),
            "ForeArm": about(0, -one["elbow"]),
            "Hand": about(0, -one["wrist"]),
        }
        turns |= {side + bone: turn for bone, turn in limb.items()}
    return turns


def poses(seed: list[int], numbers: range, rest: Mapping[str, np.ndarray]) -> tuple[list[str], np.ndarray]:
    """Return the modes and rotations [N, 20, 3, 3] in camera axes of the poses with these numbers.

    A pose depends on the seed and its own number only. rest: from skeleton.rest_turns.
    """
    drawn = [draw(np.random.default_rng([*seed, number])) for number in numbers]
    stacked = {name: np.stack([pose[name] for _, pose in drawn]) for name in (*TORSO, *LIMBS)}
    return [mode for mode, _ in drawn], free_rotations(doll(stacked), rest)
