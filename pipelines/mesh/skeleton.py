"""Convert the joint rotations of a doll whose arms and legs hang straight down to the free body's 20 rotations.

Motion clips and procedural poses describe a body in this way. Body axes: x = the body's left, y = back, z = up.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from prefkit.mesh.body import CAMERA_FROM_BODY, FREE, Body

SIDES = ("Left", "Right")
#: a bone of a limb -> the bone at its end
LIMB_ENDS = {
    f"{side}{bone}": f"{side}{end}"
    for side in SIDES
    for bone, end in (("Arm", "ForeArm"), ("ForeArm", "Hand"), ("UpLeg", "Leg"), ("Leg", "Foot"))
}
#: a limb bone's parent within its limb
PARENTS = {end: bone for bone, end in LIMB_ENDS.items()}
#: body axes -> camera axes (x right, y down, z away from the camera); a person with identity root faces the camera
CAMERA = np.array(CAMERA_FROM_BODY)
DOWN = np.array([0.0, 0.0, -1.0])


def about(axis: int, angle: np.ndarray | float) -> np.ndarray:
    """Return the rotations [..., 3, 3] about axis 0, 1 or 2 by angles [...] in radians."""
    angle = np.asarray(angle, np.float64)
    c, s = np.cos(angle), np.sin(angle)
    first, second = (axis + 1) % 3, (axis + 2) % 3
    turn = np.zeros((*angle.shape, 3, 3))
    turn[..., axis, axis] = 1
    turn[..., first, first] = turn[..., second, second] = c
    turn[..., second, first], turn[..., first, second] = s, -s
    return turn


def to_camera(rotations: np.ndarray) -> np.ndarray:
    """Express rotations [..., 3, 3] of body axes in camera axes."""
    return CAMERA @ rotations @ CAMERA.T


def onto_down(direction: np.ndarray) -> np.ndarray:
    """Return the smallest rotation [3, 3] that takes a direction [3], not straight up, to straight down."""
    a = direction / np.linalg.norm(direction)
    x, y, z = np.cross(a, DOWN)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + cross + cross @ cross / (1 + a @ DOWN)


def rest_turns(body: Body) -> dict[str, np.ndarray]:
    """Return for each limb bone the rotation [3, 3] from its direction at rest to straight down, in body axes. A hand
    continues its forearm; feet point forward in both skeletons."""
    heads = dict(zip(body.names, body.heads.double().numpy()))
    turns = {bone: onto_down(CAMERA.T @ (heads[end] - heads[bone])) for bone, end in LIMB_ENDS.items()}
    return turns | {f"{side}Hand": turns[f"{side}ForeArm"] for side in SIDES}


def free_rotations(doll: Mapping[str, np.ndarray], rest: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the rotations [N, 20, 3, 3] of FREE in camera axes, float32, for a doll's joint rotations.

    doll: name of a bone -> [N, 3, 3] in body axes, relative to the parent; an absent bone is not rotated. rest: from
    `rest_turns`. Each limb bone is first turned to the doll's zero pose, and that turn of its parent is undone.
    """
    turns = np.tile(np.eye(3), (len(doll["Hips"]), len(FREE), 1, 1))
    for number, bone in enumerate(FREE):
        above = rest[PARENTS[bone]].T if bone in PARENTS else np.eye(3)
        turns[:, number] = above @ doll.get(bone, turns[:, number]) @ rest.get(bone, np.eye(3))
    return to_camera(turns).astype(np.float32)


def seen(rotations: np.ndarray, view: np.ndarray) -> np.ndarray:
    """Return rotations [..., 20, 3, 3] after the whole body is turned by view [..., 3, 3], both in camera axes."""
    turned = rotations.copy()
    turned[..., 0, :, :] = view @ rotations[..., 0, :, :]
    return turned


def random_view(rng: np.random.Generator) -> np.ndarray:
    """Draw a rotation [3, 3] in camera axes: any yaw, and a camera that looks a little up or down and is held askew."""
    yaw, pitch, roll = rng.uniform(-np.pi, np.pi), rng.normal(0, 0.14), rng.normal(0, 0.05)
    return (about(2, roll) @ about(0, pitch) @ about(1, yaw)).astype(np.float32)
