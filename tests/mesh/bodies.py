"""People with known poses: requests with their keypoints, and plug-ins that give true and perturbed meshes."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from prefkit.mesh.body import load_body
from prefkit.mesh.camera import Camera
from prefkit.mesh.rotations import from_matrix, to_matrix

PLUGINS = '''
from dataclasses import replace

import torch

from prefkit.mesh.body import JOINT_NAMES, load_body
from prefkit.mesh.payload import Mesh
from prefkit.mesh.rotations import from_matrix, to_matrix
from prefkit.score.scorers.mesh_error import plugin
from prefkit.types import Candidate


class Truth:
    noise = 0.0

    def generate(self, requests, seeds):
        return [Candidate("", r.request_id, 0, s, payload=self.mesh(r, s)) for r, s in zip(requests, seeds)]

    def mesh(self, request, seed):
        g = torch.Generator().manual_seed(seed)
        turns = to_matrix(torch.tensor(request.extra["true_rotations"]), "6d")
        turns = turns @ to_matrix(self.noise * torch.randn(20, 3, generator=g), "axis_angle")
        betas = torch.tensor(request.extra["true_betas"])
        move = torch.tensor(request.extra["true_joints3d"][0])
        joints = load_body().joints_of(turns[None], betas[None], move[None])[0]
        pose = from_matrix(turns, "6d").numpy()
        return Mesh(joints.numpy(), rotations=pose, betas=betas.numpy(), joint_names=JOINT_NAMES).pack()


class Perturbed(Truth):
    noise = 0.3


class TrueError(plugin):
    """mesh_error as a score to pair by: labels, not a reward."""

    def spec(self):
        return replace(super().spec(), name="true_error", evaluation_only=False)
'''


def people(count: int, seed: int = 0) -> list[dict]:
    """Requests with the 18 joints of random bodies, seen by a camera, with 2 px of noise."""
    g = torch.Generator().manual_seed(seed)
    turns = 0.35 * torch.randn(count, 20, 3, generator=g)
    turns[:, 0] = torch.tensor([0.0, 1.0, 0.0]) * torch.randn(count, 1, generator=g)
    rotations, betas = to_matrix(turns, "axis_angle"), 0.3 * torch.randn(count, 10, generator=g)
    joints = load_body().joints_of(rotations, betas, torch.tensor([0.0, 0.0, 4.0]).expand(count, 3))
    keypoints = Camera(400.0, 128.0, 128.0, 256, 256).project(joints) + 2 * torch.randn(count, 18, 2, generator=g)
    return [
        {
            "prompt": f"person {seed}-{i:04d}",
            "keypoints2d": [[float(x), float(y), 1.0] for x, y in keypoints[i]],
            "keypoint_names": "free18",
            "bbox": [28, 8, 200, 240],
            "camera": {"focal": 400.0, "principal": [128, 128], "size": [256, 256]},
            "true_joints3d": joints[i].tolist(),
            "true_rotations": from_matrix(rotations[i], "6d").tolist(),
            "true_betas": betas[i].tolist(),
        }
        for i in range(count)
    ]


def write_requests(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
