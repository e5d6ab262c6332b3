"""Distance of a body mesh's projected joints from the request's 2D keypoints: a rule without weights.

    value = -sum c_j |p_j - k_j| / sum c_j / (half the box's longer side)

p_j is joint j projected with the request's camera. A request without a camera gets the weak-perspective camera (scale
and offset) that fits its keypoints k_j best, weighted by their confidences c_j. The aspects are `reproj_px`, the mean
distance in px, and `n_visible`, the number of keypoints with a confidence of at least 0.5. The score fails if the
payload is not a mesh, no keypoint matches a joint, or a joint is behind the camera. Columns: prefkit/mesh/observed.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefkit.types import Candidate, Score, ScorerSpec

if TYPE_CHECKING:
    from prefkit.mesh.payload import Mesh

VISIBLE = 0.5


@dataclass(frozen=True)
class MeshReprojectionOptions:
    pass


class MeshReprojection:
    Options = MeshReprojectionOptions
    requires = frozenset({"payload", "keypoints2d"})
    scope = "absolute"

    def __init__(self, options: MeshReprojectionOptions) -> None:
        self.options = options

    def spec(self) -> ScorerSpec:
        return ScorerSpec(
            "mesh_reprojection",
            "1",
            preprocessing="joints3d in metres, keypoints in px",
            formula="-confidence-weighted mean distance / half the box's longer side",
            range=(None, 0.0),
            licence="Apache-2.0",
            verified="no weights",
        )

    def load(self, device: str, dtype: str) -> None:
        """Do nothing: this scorer has no weights."""

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        from prefkit.mesh.candidates import each_mesh
        from prefkit.mesh.ranking.threads import one_thread

        with one_thread():
            return each_mesh(batch, self._score)

    def _score(self, candidate: Candidate, mesh: Mesh) -> Score:
        """Return the score. Raises ValueError if the mesh or the request is unusable."""
        import torch

        from prefkit.mesh.observed import names_of, observed

        seen = observed(candidate.extra, names_of(mesh.joint_names, len(mesh.joints3d)))
        seen.check(mesh.joints3d)
        error = float(seen.error(seen.residuals(torch.from_numpy(mesh.joints3d)[None]))[0])
        visible = int((seen.confidence >= VISIBLE).sum())
        return Score(-error, {"reproj_px": error * seen.half, "n_visible": visible})


plugin = MeshReprojection
