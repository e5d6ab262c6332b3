"""A generator whose only candidate is a request's true pose, so that labelled data becomes candidates: the winners of SFT.

    generate: {truth: {use: "pipelines/mesh/truth.py:Truth", n: 1}}

The requests are those of make_data.py, which have the columns true_joints3d, true_rotations, true_betas, true_translation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prefkit.mesh.body import JOINT_NAMES
from prefkit.mesh.payload import Mesh
from prefkit.types import Candidate, Request

COLUMNS = ("true_joints3d", "true_rotations", "true_betas", "true_translation")


def true_mesh(extra: Mapping[str, Any]) -> Mesh:
    """Return the true mesh of a request's columns. Raises KeyError if one is missing."""
    joints, rotations, betas, translation = (np.array(extra[name], np.float32) for name in COLUMNS)
    return Mesh(
        joints,
        rotations=rotations,
        pose_repr="6d",
        betas=betas,
        translation=translation,
        body_model="free",
        joint_names=JOINT_NAMES,
    )


def answer(request: Request, seed: int) -> Candidate:
    if missing := [name for name in COLUMNS if name not in request.extra]:
        return Candidate("", request.request_id, 0, seed, error=f"the request has no {', '.join(missing)}")
    return Candidate("", request.request_id, 0, seed, payload=true_mesh(request.extra).pack())


class Truth:
    """Answers a request with its true mesh; a request without labels gets an error."""

    def generate(self, requests: Sequence[Request], seeds: Sequence[int]) -> list[Candidate]:
        return [answer(request, seed) for request, seed in zip(requests, seeds)]
