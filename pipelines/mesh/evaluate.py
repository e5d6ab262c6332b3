"""Errors of mesh models on the held-out sets of make_data.py: eight hypotheses per picture, at several numbers of steps.

Every error is over the 12 limb joints, in millimetres of the free body, with the midpoints of the hips aligned. Columns:
zero          MPJPE of hypothesis 0, which starts from zeros
zero_seen, zero_hidden   the same over the joints that are visible in the picture, and over the hidden ones
mean, best    mean and smallest MPJPE of the hypotheses (best needs the truth)
joint_mean    MPJPE of the mean hypothesis
selected      MPJPE of the hypothesis that the scorer `mesh` prefers; `ruled`: of the one that mesh_reprojection prefers
pa, mpvpe     PA-MPJPE and MPVPE (all vertices) of hypothesis 0
px, spread    reprojection error of hypothesis 0 (px of 256); RMS distance of the hypotheses from their mean (mm)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from prefkit.mesh.body import JOINT_NAMES, LIMBS, load_body
from prefkit.mesh.diffusion.condition import condition_of
from prefkit.mesh.diffusion.network import POSE, load_model
from prefkit.mesh.diffusion.sample import noise_of, sample
from prefkit.mesh.diffusion.state import meshes_of
from prefkit.mesh.errors import mpjpe, mpvpe, pa_mpjpe
from prefkit.mesh.observed import Observed, observed
from prefkit.mesh.rotations import to_matrix
from prefkit.types import Candidate, digest

SETS = ("test_procedural", "test_motion")
COUNT = 8  # hypotheses per picture
CHUNK = 64  # pictures at a time
PLACES = [JOINT_NAMES.index(name) for name in LIMBS]
HIPS = (LIMBS.index("LeftUpLeg"), LIMBS.index("RightUpLeg"))


@dataclass
class TestSet:
    """A held-out set: its requests as dicts, and the truth.

    joints: [N, 12, 3] limb joints, metres, camera frame. vertices [N, V, 3] and roots [N, 3]: of the body at the origin.
    visible: [N, 12] bool. seen: the keypoints as a scorer reads them. blazepose: the detector's own 3D limb joints.
    """

    name: str
    rows: list[dict[str, Any]]
    joints: Tensor
    vertices: Tensor
    roots: Tensor
    visible: Tensor
    seen: list[Observed]
    blazepose: Tensor | None

    @classmethod
    def read(cls, path: Path, limit: int | None = None) -> TestSet:
        rows = pq.read_table(path).slice(0, limit).to_pylist()
        body = load_body()
        turns = to_matrix(torch.tensor([row["true_rotations"] for row in rows]), "6d")
        betas = torch.tensor([row["true_betas"] for row in rows])
        vertices = [body.pose(turns[i : i + CHUNK], betas[i : i + CHUNK]).vertices for i in range(0, len(rows), CHUNK)]
        roots = root(body.joints_of(turns, betas))
        visible = torch.tensor([row["visible"] for row in rows])[:, PLACES] > 0
        joints = torch.tensor([row["true_joints3d"] for row in rows])[:, PLACES]
        seen = [observed(row, JOINT_NAMES) for row in rows]
        return cls(path.stem, rows, joints, torch.cat(vertices), roots, visible, seen, _outside(rows))


def sets(data: Path) -> list[Path]:
    """Return the files of the held-out sets; data made without motion clips has one."""
    return [path for name in SETS if (path := data / f"{name}.parquet").exists()]


def _outside(rows: Sequence[dict[str, Any]]) -> Tensor | None:
    """Return the detector's own 3D limb joints [N, 12, 3], if the rows have them."""
    from detector import JOINT_LANDMARKS

    if not all(row.get("blazepose3d") for row in rows):
        return None
    return torch.tensor([row["blazepose3d"] for row in rows])[:, [JOINT_LANDMARKS[name] for name in LIMBS]]


def hypotheses(model: Path, test: TestSet, steps: int, seed: int = 0) -> Tensor:
    """Return the sampled states [N, 8, 130]; a picture's noise depends on its request and the seed alone."""
    net, scheduler = load_model(str(model))
    condition = torch.stack([condition_of(row, net.config.keypoints) for row in test.rows])
    states = []
    for start in range(0, len(test.rows), CHUNK):
        part = test.rows[start : start + CHUNK]
        seeds = [
            None if i == 0 else int(digest("test", seed, row["request_id"], i, length=15), 16)
            for row in part
            for i in range(COUNT)
        ]
        own = condition[start : start + CHUNK].repeat_interleave(COUNT, 0)
        states.append(sample(net, scheduler, noise_of(seeds), own, steps))
    return torch.cat(states).unflatten(0, (-1, COUNT))


def measured(test: TestSet, states: Tensor, scorer: Any = None) -> dict[str, np.ndarray]:
    """Return the columns listed above, [N] each, for states [N, 8, 130].

    scorer: a loaded scorer `mesh`, or None to leave out `selected`.
    """
    body = load_body()
    turns = to_matrix(states[..., :POSE].unflatten(-1, (-1, 6)), "6d")
    joints = body.joints_of(turns.flatten(0, 1), states[..., POSE:].flatten(0, 1))[:, PLACES].unflatten(0, (-1, COUNT))
    errors = mpjpe(joints, test.joints[:, None], HIPS)
    rooted = joints - joints[:, :, HIPS].mean(2, keepdim=True)
    zero = joints[:, 0]
    columns: dict[str, Any] = {
        "zero": errors[:, 0],
        "zero_seen": mpjpe(zero, test.joints, HIPS, test.visible),
        "zero_hidden": mpjpe(zero, test.joints, HIPS, ~test.visible),
        "mean": errors.mean(1),
        "best": errors.min(1).values,
        "joint_mean": mpjpe(rooted.mean(1), test.joints, HIPS),
        "pa": pa_mpjpe(zero, test.joints),
        "mpvpe": vertex_errors(test, turns[:, 0], states[:, 0, POSE:]),
        "spread": 1000 * (rooted - rooted.mean(1, keepdim=True)).square().sum(-1).mean((1, 2)).sqrt(),
    }
    columns |= chosen(test, states, errors, scorer)
    return {name: torch.as_tensor(values).double().numpy() for name, values in columns.items()}


def vertex_errors(test: TestSet, turns: Tensor, betas: Tensor) -> Tensor:
    """Return the MPVPE [N] in mm, with the midpoints of the hips aligned."""
    body, found = load_body(), []
    for start in range(0, len(turns), CHUNK):
        part = slice(start, start + CHUNK)
        own = body.pose(turns[part], betas[part])
        found.append(mpvpe(own.vertices, test.vertices[part], root(own.joints), test.roots[part]))
    return torch.cat(found)


def root(joints: Tensor) -> Tensor:
    """Return the midpoint of the hips [N, 3] of the body's joints [N, 18, 3]."""
    return joints[:, [PLACES[i] for i in HIPS]].mean(1)


def chosen(test: TestSet, states: Tensor, errors: Tensor, scorer: Any) -> dict[str, list[float]]:
    """Return the errors of the hypotheses that the scorer and the reprojection rule prefer, and that of hypothesis 0 in px."""
    columns: dict[str, list[float]] = {"selected": [], "ruled": [], "px": []}
    for n, (row, seen) in enumerate(zip(test.rows, test.seen, strict=True)):
        meshes = meshes_of(states[n], [seen] * COUNT)
        joints = torch.stack([torch.from_numpy(mesh.joints3d) for mesh in meshes])
        rule = seen.error(seen.residuals(joints)) * seen.half
        columns["px"].append(float(rule[0]))
        columns["ruled"].append(float(errors[n, rule.argmin()]))
        if scorer is not None:
            batch = [
                Candidate(str(i), row["request_id"], i, 0, payload=m.pack(), extra=row) for i, m in enumerate(meshes)
            ]
            values = [score.value for score in scorer.score(batch)]
            columns["selected"].append(float(errors[n, int(np.argmax(np.array(values, float)))]))
    return {name: values for name, values in columns.items() if values}


def outside(test: TestSet) -> dict[str, np.ndarray]:
    """Return MPJPE and PA-MPJPE [N] of the detector's own 3D joints."""
    assert test.blazepose is not None
    found = {"zero": mpjpe(test.blazepose, test.joints, HIPS), "pa": pa_mpjpe(test.blazepose, test.joints)}
    return {name: values.double().numpy() for name, values in found.items()}
