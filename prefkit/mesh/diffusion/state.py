"""Conversion between the denoiser's state and meshes of the free body."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefkit.mesh.body import FREE, JOINT_NAMES, load_body
from prefkit.mesh.diffusion.network import POSE, SHAPE
from prefkit.mesh.observed import Observed
from prefkit.mesh.payload import Mesh
from prefkit.mesh.rotations import from_matrix, to_matrix

DISTANCE = 4.0  # metres from the camera, if the distance cannot be estimated


def state_of(mesh: Mesh) -> Tensor:
    """Return a mesh's state [130], not standardised. Raises ValueError if it has no pose of 20 rotations."""
    if mesh.rotations is None or len(mesh.rotations) != len(FREE):
        held = "no pose" if mesh.rotations is None else f"a pose of {len(mesh.rotations)} rotations"
        raise ValueError(
            f"the mesh has {held}, but training needs the {len(FREE)} rotations of the free body. "
            "Build the pairs from generators that store rotations"
        )
    pose = torch.from_numpy(np.asarray(mesh.rotations, np.float32))
    if mesh.pose_repr != "6d":
        pose = from_matrix(to_matrix(pose, mesh.pose_repr), "6d")
    betas = torch.zeros(SHAPE)
    if mesh.betas is not None:
        count = min(SHAPE, len(mesh.betas))
        betas[:count] = torch.from_numpy(np.asarray(mesh.betas[:count], np.float32))
    return torch.cat([pose.flatten(), betas])


def meshes_of(states: Tensor, seen: Sequence[Observed | None], vertices: bool = False) -> list[Mesh]:
    """Return the meshes of unstandardised states [B, 130], each placed where its joints fit the keypoints best.

    seen: the observation of each state's request, or None. vertices: also compute the skinned vertices.
    """
    body = load_body()
    rotations = to_matrix(states[:, :POSE].unflatten(-1, (len(FREE), 6)), "6d")
    betas = states[:, POSE:]
    joints = body.joints_of(rotations, betas)
    moves = torch.stack([placed(own, each) for own, each in zip(joints, seen, strict=True)])
    skin = body.pose(rotations, betas, moves).vertices.numpy() if vertices else [None] * len(states)
    pose = from_matrix(rotations, "6d").numpy()
    placed_joints = (joints + moves[:, None]).numpy()
    facts: dict[str, Any] = {"body_model": "free", "joint_names": JOINT_NAMES}
    return [
        Mesh(j, vertices=v, rotations=p, betas=b, translation=t, **facts)
        for j, v, p, b, t in zip(placed_joints, skin, pose, betas.numpy(), moves.numpy(), strict=True)
    ]


def placed(joints: Tensor, seen: Observed | None) -> Tensor:
    """Return the translation [3] that brings the joints [J, 3] onto their keypoints, by weighted linear least squares.

    Each keypoint gives two linear equations in t: f (X + t_x) = u (Z + t_z), where u is its x offset from the principal
    point, and the same for y. Without a camera, or with a joint nearer than 1 m, t_z is 4 m.
    """
    if seen is None or seen.camera is None:
        return torch.tensor([0.0, 0.0, DISTANCE])
    camera = seen.camera
    offsets = (seen.keypoints - torch.tensor([camera.cx, camera.cy])) / camera.focal
    weight = seen.confidence.sqrt()
    rows, values = [], []
    for axis in (0, 1):
        row = torch.zeros(len(joints), 3)
        row[:, axis], row[:, 2] = 1.0, -offsets[:, axis]
        rows.append(weight[:, None] * row)
        values.append(weight * (offsets[:, axis] * joints[:, 2] - joints[:, axis]))
    a, b = torch.cat(rows).double(), torch.cat(values).double()
    move = torch.linalg.lstsq(a, b[:, None]).solution[:, 0].float()
    if not move.isfinite().all() or float((joints[:, 2] + move[2]).min()) < 1.0:
        centre = (weight[:, None] * offsets).sum(0) / weight.sum()
        return torch.tensor([float(centre[0]) * DISTANCE, float(centre[1]) * DISTANCE, DISTANCE])
    return move
