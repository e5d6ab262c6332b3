"""Features of one request's M mesh hypotheses, for the learned scorer `mesh`.

    request      keypoints relative to the box's centre, confidences, position and size of the box seen from the camera
    hypothesis   joints relative to the root (metres), pose (6D) if used; residuals of the projected joints, their
                 lengths and confidence-weighted mean length
    consensus    joints minus the request's mean joints, mean length of this difference, and the mean residual length
                 minus its mean over the request

Keypoints and residuals are in units of half the box's longer side (prefkit/mesh/observed.py). The consensus features
compare a hypothesis with its request's mean, so they depend on which hypotheses the request has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from prefkit.mesh.observed import Observed, names_of, root_of
from prefkit.mesh.rotations import from_matrix, to_matrix

if TYPE_CHECKING:
    from torch import Tensor

    from prefkit.mesh.payload import Mesh


@dataclass(frozen=True)
class Layout:
    """Layout of the features: the joints' names, and the number of rotations used (0 = no pose)."""

    joints: tuple[str, ...]
    rotations: int

    @classmethod
    def of(cls, mesh: Mesh, pose: bool) -> Layout:
        count = len(mesh.rotations) if pose and mesh.rotations is not None else 0
        return cls(names_of(mesh.joint_names, len(mesh.joints3d)), count)

    def check(self, mesh: Mesh) -> None:
        """Raise ValueError if the mesh lacks the joints or rotations that the features use."""
        names = names_of(mesh.joint_names, len(mesh.joints3d))
        if names != self.joints:
            raise ValueError(f"the mesh has {_shown(names)}; the scorer was fitted on {_shown(self.joints)}")
        count = 0 if mesh.rotations is None else len(mesh.rotations)
        if self.rotations and count != self.rotations:
            raise ValueError(
                f"the mesh has {count or 'no'} rotations; the scorer was fitted on {self.rotations}. Fit again without "
                "--pose true for candidates that have only joints"
            )


def _shown(names: Sequence[str]) -> str:
    return f"{len(names)} joints ({', '.join(names[:3])}, ...)"


def features(seen: Observed, meshes: Sequence[Mesh], layout: Layout) -> tuple[Tensor, Tensor]:
    """Return the features [M, F] of one request's hypotheses, and reprojection errors [M] in units of `seen.half`."""
    joints = torch.stack([torch.from_numpy(mesh.joints3d) for mesh in meshes])
    residuals = seen.residuals(joints)
    error = seen.error(residuals)
    rooted = joints - joints[:, list(root_of(layout.joints))].mean(1, keepdim=True)
    apart = rooted - rooted.mean(0)
    parts = [
        _request(seen).expand(len(meshes), -1),
        rooted.flatten(1),
        residuals.flatten(1),
        residuals.norm(dim=-1),
        error[:, None],
        apart.flatten(1),
        apart.norm(dim=-1).mean(1, keepdim=True),
        (error - error.mean())[:, None],
    ]
    if layout.rotations:
        parts.append(torch.stack([_pose(mesh) for mesh in meshes]))
    return torch.cat(parts, 1), error


def _request(seen: Observed) -> Tensor:
    """Return the features that all hypotheses of a request share: [3 J + 4]."""
    known = seen.confidence > 0
    keypoints = torch.where(known[:, None], (seen.keypoints - seen.centre) / seen.half, 0.0)
    camera = torch.zeros(4)
    if seen.camera is not None:
        axis = torch.tensor([seen.camera.cx, seen.camera.cy])
        x, y = ((seen.centre - axis) / seen.camera.focal).tolist()
        camera = torch.tensor([x, y, seen.half / seen.camera.focal, 1.0])
    return torch.cat([keypoints.flatten(), seen.confidence, camera])


def _pose(mesh: Mesh) -> Tensor:
    return from_matrix(to_matrix(torch.from_numpy(mesh.rotations), mesh.pose_repr), "6d").flatten()
