"""Scorers and generators that need the truth: labels for the base model, perturbed poses for the scorer, and controls.

The recipes base.yaml, fit.yaml and study.yaml name them, as in `use: pipelines/mesh/labels.py:Label`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from truth import true_mesh

from prefkit.mesh.body import FREE, load_body
from prefkit.mesh.payload import Mesh
from prefkit.mesh.rotations import from_matrix, to_matrix
from prefkit.score.scorers.mesh_error import MeshError
from prefkit.types import Candidate, Request, Score, ScorerSpec

#: standard deviations of the rotations added to a true pose, radians (HMR-Scorer perturbs by 0.05)
NOISE = (0.05, 0.1, 0.2, 0.4)


class Perturbed:
    """Answers a request with its true pose, turned at every joint by noise of one of four sizes."""

    def generate(self, requests: Sequence[Request], seeds: Sequence[int]) -> list[Candidate]:
        return [
            Candidate("", request.request_id, 0, seed, payload=perturbed(true_mesh(request.extra), seed).pack())
            for request, seed in zip(requests, seeds)
        ]


def perturbed(mesh: Mesh, seed: int, size: float | None = None) -> Mesh:
    """Return the mesh with noise of `size` radians (drawn from NOISE if None) on every rotation, its root in place."""
    rng = torch.Generator().manual_seed(seed)
    drawn = NOISE[int(torch.randint(len(NOISE), (), generator=rng))]
    size = drawn if size is None else size
    noise = to_matrix(size * torch.randn(len(FREE), 3, generator=rng), "axis_angle")
    turns = to_matrix(torch.from_numpy(np.asarray(mesh.rotations)), "6d") @ noise
    betas, place = torch.from_numpy(np.asarray(mesh.betas)), torch.from_numpy(np.asarray(mesh.translation))
    joints = load_body().joints_of(turns[None], betas[None], place[None])[0]
    return replace(mesh, joints3d=joints.numpy(), rotations=from_matrix(turns, "6d").numpy())


class _Payload:
    """Base class of scorers that give each payload a number."""

    requires = frozenset({"payload"})
    scope = "absolute"
    name = ""
    value: Callable[[Candidate], float]

    def __init__(self, options: object = None) -> None:
        """Take no options."""

    def spec(self) -> ScorerSpec:
        return ScorerSpec(self.name, "1")

    def load(self, device: str, dtype: str) -> None:
        """Do nothing: there are no weights."""

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        return [Score(self.value(candidate)) for candidate in batch]


class Label(_Payload):
    """1 for the true mesh of the request, 0 for any other."""

    requires = frozenset({"payload", "true_joints3d"})
    name = "label"

    def value(self, candidate: Candidate) -> float:
        joints = Mesh.unpack(candidate.payload or b"").joints3d
        return float(np.array_equal(joints, np.array(candidate.extra["true_joints3d"], np.float32)))


class Chance(_Payload):
    """A number without meaning, from a hash of the candidate's id: the control of the scorers."""

    name = "chance"

    def value(self, candidate: Candidate) -> float:
        return int(hashlib.sha256(candidate.id.encode()).hexdigest()[:8], 16) / 2**32


class TrueError(MeshError):
    """The scorer mesh_error, but allowed for making pairs: the upper bound of the scorers."""

    def spec(self) -> ScorerSpec:
        return replace(super().spec(), name="true_error", evaluation_only=False)
