"""Errors of meshes against the ground truth in a request: MPJPE, PA-MPJPE and MPVPE, in millimetres.

A request's keys (metres, camera frame): `true_joints3d` [J][3], in the order of the candidate's joints; `visible` [J] 0/1,
optional; for MPVPE `true_vertices` [V][3], or `true_rotations` (6D, [20][6]) and optionally `true_betas` of the free body.
Functions raise ValueError with the reason for a missing or invalid truth.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from prefkit.mesh.body import load_body
from prefkit.mesh.errors import mpjpe, mpvpe, pa_mpjpe
from prefkit.mesh.observed import array, names_of, root_of
from prefkit.mesh.rotations import to_matrix

if TYPE_CHECKING:
    from torch import Tensor

    from prefkit.mesh.payload import Mesh


@dataclass(frozen=True)
class Truth:
    """A true body: joints [J, 3] in metres, visible [J] bool, and vertices [V, 3] with their root point [3]."""

    joints: Tensor
    visible: Tensor | None
    vertices: Tensor | None
    root: Tensor | None


def truth_of(extra: Mapping[str, Any], mesh: Mesh) -> Truth:
    """Read the ground truth for a candidate's mesh. extra: the request's columns."""
    joints = _finite(array(extra, "true_joints3d", 3), "true_joints3d")
    count = len(mesh.joints3d)
    if len(joints) != count:
        raise ValueError(f"true_joints3d has {len(joints)} joints, but the candidate has {count}")
    visible = extra.get("visible")
    if visible is not None and (not isinstance(visible, Sequence) or len(visible) != count):
        raise ValueError(f"`visible` must be a list of {count} numbers, one for each joint")
    mask = None if visible is None else torch.tensor([bool(value) for value in visible])
    root = joints[list(root_of(names_of(mesh.joint_names, count)))].mean(0)
    return Truth(joints, mask, *_surface(extra, mesh, root))


def _surface(extra: Mapping[str, Any], mesh: Mesh, root: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return the true vertices and their root point; (None, None) if the request has none for this mesh."""
    if extra.get("true_vertices") is not None:
        return _finite(array(extra, "true_vertices", 3), "true_vertices"), root
    if extra.get("true_rotations") is None or not _is_free(mesh):
        return None, None
    rotations = _finite(array(extra, "true_rotations", 6), "true_rotations")
    betas = extra.get("true_betas")
    return posed(rotations, "6d", None if betas is None else _finite(np.asarray(betas, np.float32), "true_betas"))


def posed(rotations: Tensor, pose_repr: str, betas: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the vertices [V, 3] and root point [3] of the free body in a pose, without translation."""
    body = load_body()
    if len(rotations) != 20:
        raise ValueError(f"a pose of the free body has 20 rotations, not {len(rotations)}")
    posed = body.pose(to_matrix(rotations, pose_repr)[None], None if betas is None else betas[None], None)
    return posed.vertices[0], posed.joints[0, list(root_of(names_of((), posed.joints.shape[1])))].mean(0)


def surface_of(mesh: Mesh) -> tuple[Tensor, Tensor] | None:
    """Return a mesh's vertices and root point: the stored ones, else those of the free body in its pose, else None."""
    if mesh.vertices is not None:
        joints = torch.from_numpy(mesh.joints3d)
        root = joints[list(root_of(names_of(mesh.joint_names, len(joints))))].mean(0)
        return torch.from_numpy(mesh.vertices), root
    if mesh.rotations is None or not _is_free(mesh):
        return None
    betas = None if mesh.betas is None else torch.from_numpy(mesh.betas)
    return posed(torch.from_numpy(mesh.rotations), mesh.pose_repr, betas)


def _is_free(mesh: Mesh) -> bool:
    return mesh.body_model == "free"


def errors_of(meshes: Sequence[Mesh], truths: Sequence[Truth]) -> list[dict[str, float]]:
    """Return each mesh's errors in mm: mpjpe, pa_mpjpe and, if computable, mpvpe, mpjpe_visible and mpjpe_hidden."""
    found: list[dict[str, float]] = [{} for _ in meshes]
    alike: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for n, mesh in enumerate(meshes):
        alike[names_of(mesh.joint_names, len(mesh.joints3d))].append(n)
    for names, rows in alike.items():
        predicted = torch.stack([torch.from_numpy(meshes[n].joints3d) for n in rows])
        true = torch.stack([truths[n].joints for n in rows])
        plain = mpjpe(predicted, true, root=root_of(names)).tolist()
        aligned = pa_mpjpe(predicted, true).tolist()
        for n, a, b in zip(rows, plain, aligned):
            found[n] |= {"mpjpe": a, "pa_mpjpe": b} | _of_parts(meshes[n], truths[n], root_of(names))
    return found


def _of_parts(mesh: Mesh, truth: Truth, root: tuple[int, ...]) -> dict[str, float]:
    """Return the MPVPE, and the MPJPE over visible and over hidden joints, where they can be computed."""
    found: dict[str, float] = {}
    surface = surface_of(mesh) if truth.vertices is not None else None
    if surface is not None and truth.vertices is not None and len(surface[0]) == len(truth.vertices):
        found["mpvpe"] = float(mpvpe(surface[0], truth.vertices, surface[1], truth.root))
    for name, mask in (("visible", truth.visible), ("hidden", None if truth.visible is None else ~truth.visible)):
        if mask is not None and mask.any():
            joints = torch.from_numpy(mesh.joints3d)
            found[f"mpjpe_{name}"] = float(mpjpe(joints, truth.joints, root=root, visible=mask))
    return found


def _finite(values: np.ndarray, key: str) -> Tensor:
    if not np.isfinite(values).all():
        raise ValueError(f"{key} has NaN or infinity")
    return torch.from_numpy(values)
