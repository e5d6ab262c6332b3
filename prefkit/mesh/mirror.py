"""Mirror a request and its hypotheses, which doubles the training data of a ranker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from prefkit.mesh.body import FREE
from prefkit.mesh.rotations import from_matrix, to_matrix

if TYPE_CHECKING:
    from prefkit.mesh.observed import Observed
    from prefkit.mesh.payload import Mesh
    from prefkit.mesh.ranking.features import Layout

SIDES = (("Left", "Right"), ("left", "right"))
FLIP = np.array([-1.0, 1.0, 1.0], np.float32)


def partners(names: Sequence[str]) -> list[int] | None:
    """Return the index of each name's counterpart on the other side; a name without a side is its own counterpart.

    None if a counterpart is missing, or if no name has a side.
    """
    found = []
    for name in names:
        other = name
        for left, right in SIDES:
            other = name.replace(left, right) if left in name else name.replace(right, left) if right in name else other
        if other not in names:
            return None
        found.append(names.index(other))
    return found if found != list(range(len(found))) else None


def can_mirror(layout: Layout) -> bool:
    """True if the joint names have left and right sides, and the features use the free body's rotations or none."""
    return partners(layout.joints) is not None and layout.rotations in (0, len(FREE))


def mirrored(seen: Observed, meshes: Sequence[Mesh], layout: Layout) -> tuple[Observed, list[Mesh]]:
    """Return the request and its hypotheses as seen in the mirrored picture: x becomes -x, and left and right swap."""
    swap = partners(layout.joints) or []
    twice = 2 * (seen.camera.cx if seen.camera is not None else float(seen.centre[0]))
    flip, offset = torch.tensor([-1.0, 1.0]), torch.tensor([twice, 0.0])
    picture = replace(
        seen,
        keypoints=(seen.keypoints * flip + offset)[swap],
        confidence=seen.confidence[swap],
        centre=seen.centre * flip + offset,
    )
    return picture, [_mesh(mesh, swap, layout.rotations) for mesh in meshes]


def _mesh(mesh: Mesh, swap: list[int], rotations: int) -> Mesh:
    turned = None
    if rotations and mesh.rotations is not None:
        flip = torch.from_numpy(np.diag(FLIP))
        matrices = flip @ to_matrix(torch.from_numpy(mesh.rotations), mesh.pose_repr)[partners(FREE)] @ flip
        turned = from_matrix(matrices, mesh.pose_repr).numpy()
    return replace(mesh, joints3d=mesh.joints3d[swap] * FLIP, rotations=turned, vertices=None, faces=None)
