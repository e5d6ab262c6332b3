"""Error of a body mesh against the ground truth in the request: MPJPE, with PA-MPJPE and MPVPE as aspects, in mm.

    value = -MPJPE    mean distance of the joints, with the roots (midpoints of the hips) aligned
    aspects           mpjpe; pa_mpjpe (after the best similarity transform); mpvpe (vertices, roots aligned);
                      mpjpe_visible and mpjpe_hidden, over the joints that `visible` marks with 1 and with 0

The score is for evaluation, and labels the candidates on which `prefkit fit mesh` trains. The candidate's payload is a
mesh (prefkit/mesh/payload.py), and the request has the ground truth (prefkit/mesh/truth.py). An aspect that cannot be
computed is left out; without `true_joints3d` the score fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prefkit.types import Candidate, Score, ScorerSpec


@dataclass(frozen=True)
class MeshErrorOptions:
    pass


class MeshError:
    Options = MeshErrorOptions
    requires = frozenset({"payload", "true_joints3d"})
    scope = "absolute"

    def __init__(self, options: MeshErrorOptions) -> None:
        self.options = options

    def spec(self) -> ScorerSpec:
        return ScorerSpec(
            "mesh_error",
            "1",
            preprocessing="joints3d in metres, roots aligned",
            formula="-MPJPE in mm",
            range=(None, 0.0),
            licence="Apache-2.0",
            verified="no weights",
            evaluation_only=True,
        )

    def load(self, device: str, dtype: str) -> None:
        """Do nothing: this scorer has no weights."""

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        from prefkit.mesh.candidates import each_mesh
        from prefkit.mesh.ranking.threads import one_thread
        from prefkit.mesh.truth import errors_of, truth_of

        with one_thread():
            read = each_mesh(batch, lambda candidate, mesh: (mesh, truth_of(candidate.extra, mesh)))
            found = iter(errors_of(*zip(*good)) if (good := [r for r in read if not isinstance(r, Score)]) else [])
        return [item if isinstance(item, Score) else _score(next(found)) for item in read]


def _score(errors: dict[str, float]) -> Score:
    return Score(-errors["mpjpe"], errors)


plugin = MeshError
