"""A learned score that ranks the body meshes of a request, which are hypotheses about the same person.

A network reads the request's 2D keypoints with confidences, the hypothesis (its joints, the residuals of its projected
joints and, if the fit used it, its pose), and the difference between the hypothesis and the mean of the request's
usable hypotheses (prefkit/mesh/ranking/features.py). `prefkit fit mesh` trains it on hypotheses with known errors, with
the pairwise loss of ADHMR's HMR-Scorer (arXiv 2505.10250), and compares it with `mesh_reprojection`.

sigmoid(5 (a - b)) is the probability that the hypothesis with value a has a smaller error than the one with value b.
Values are comparable only within one request and one set of hypotheses. The score fails if the payload is not a mesh,
the joints differ from those of the fit, or the mesh lacks the pose that the fit used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prefkit.score.fitted import Fitted
from prefkit.types import Candidate, Score, ScorerSpec


@dataclass(frozen=True)
class MeshOptions:
    #: folder written by `prefkit fit mesh`, or its Hub id
    model: str = ""
    #: Hub revision (branch, tag or commit) of the model
    revision: str | None = None


class MeshScorer:
    Options = MeshOptions
    requires = frozenset({"payload", "keypoints2d"})
    scope = "within_request"

    def __init__(self, options: MeshOptions) -> None:
        self.options = options
        self.fitted = Fitted("mesh", options.model, options.revision)

    def spec(self) -> ScorerSpec:
        layout = self.fitted.spec["features"]
        pose = f"{layout['rotations']} rotations" if layout["rotations"] else "no pose"
        return ScorerSpec(
            "mesh",
            "1",
            weights=self.fitted.shown,
            revision=self.fitted.revision(),
            preprocessing=f"{len(layout['joints'])} joints, {pose}, keypoints in units of half the box's longer side; "
            "standardised as fitted",
            formula="network on the request, the hypothesis and its difference from the request's mean hypothesis",
            scope="within_request",
            licence="that of the data it was fitted on",
        )

    def load(self, device: str, dtype: str) -> None:
        """Load the network. Raises UsageError if the weights do not fit it."""
        from prefkit.mesh.ranking.features import Layout
        from prefkit.mesh.ranking.ranker import MeshRanker

        stored = self.fitted.spec["features"]
        self.layout = Layout(tuple(stored["joints"]), stored["rotations"])
        self.net = MeshRanker.of(self.fitted.state(), str(self.fitted.folder))

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        from prefkit.mesh.candidates import requests_of
        from prefkit.mesh.ranking.threads import one_thread

        scores: dict[int, Score] = {}
        with one_thread():
            for positions in requests_of(batch):
                scores |= dict(zip(positions, self._request([batch[n] for n in positions])))
        return [scores[n] for n in range(len(batch))]

    def _request(self, batch: Sequence[Candidate]) -> list[Score]:
        """Score the hypotheses of one request."""
        import torch

        from prefkit.mesh.candidates import hypotheses
        from prefkit.mesh.ranking.features import features

        seen, meshes = hypotheses(batch, self.layout)
        usable = [mesh for mesh in meshes if not isinstance(mesh, Score)]
        if seen is None or not usable:
            return [mesh for mesh in meshes if isinstance(mesh, Score)]
        with torch.inference_mode():
            rows, errors = features(seen, usable, self.layout)
            found = iter(zip(self.net(rows).tolist(), (errors * seen.half).tolist()))
        return [mesh if isinstance(mesh, Score) else _score(*next(found)) for mesh in meshes]


def _score(value: float, pixels: float) -> Score:
    return Score(value, {"reproj_px": pixels})


plugin = MeshScorer
