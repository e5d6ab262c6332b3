"""The free body: skinning equals Anny's, its gradients equal finite differences, and the mesh is closed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from prefkit.errors import UsageError
from prefkit.mesh.body import ASSET, CAMERA_FROM_BODY, FREE, HIPS, JOINT_NAMES, LIMBS, load_body
from prefkit.mesh.rotations import to_matrix

GOLDEN = Path(__file__).with_name("golden_body.npz")
MICROMETRE = 1e-6


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN, allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name].astype(np.int64 if name == "index" else np.float32)) for name in file}


def random_pose(count, dtype=torch.float32, std=0.4):
    generator = torch.Generator().manual_seed(0)
    return std * torch.randn(count, len(FREE), 3, generator=generator, dtype=dtype)


def identity(count=1):
    return torch.eye(3).expand(count, len(FREE), 3, 3)


def test_posed_vertices_and_joints_equal_anny_at_the_mean_shape(golden):
    """Compare with what Anny 0.6.2 itself returns for 100 random poses, within 1 micrometre (the issue asks for 10).

    Anny ran in float64, on its full mesh of 13,718 vertices, at the mean of the 600 bodies that the shape basis was
    made from. Every vertex of the free body is one of those 13,718, so nothing is interpolated. The file holds 61
    vertices and all 18 joints of each pose; together the poses cover each of the 1,229 vertices at least four times.
    This does not test other shapes: the basis keeps ten components; NOTICE.md states the error of the rest.
    """
    posed = load_body().pose(to_matrix(golden["axis_angles"], "axis_angle"))
    vertices = torch.take_along_dim(posed.vertices, golden["index"][..., None], 1)
    assert (vertices - golden["vertices"]).norm(dim=-1).max() < MICROMETRE
    assert (posed.joints - golden["joints"]).norm(dim=-1).max() < MICROMETRE
    assert golden["index"].flatten().bincount(minlength=1229).min() >= 4


def test_joints_without_skinning_are_the_joints_of_the_posed_body():
    body, rotations = load_body(), to_matrix(random_pose(3), "axis_angle")
    shape, translation = torch.randn(3, 10), torch.randn(3, 3)
    posed = body.pose(rotations, shape, translation)
    torch.testing.assert_close(body.joints_of(rotations, shape, translation), posed.joints)
    torch.testing.assert_close(body.pose(rotations, shape).vertices + translation[:, None], posed.vertices)
    torch.testing.assert_close(posed.joints[:, 0], translation)  # the root is where the translation says


@pytest.mark.parametrize("std", [0.0, 0.4])
def test_gradients_equal_central_differences(std):
    body = load_body().to(dtype=torch.float64)
    values = [random_pose(2, torch.float64, std), torch.randn(2, 10).double(), torch.randn(2, 3).double()]
    weight = torch.randn(2, 1229 + 18, 3).double()

    def loss(axis_angles, shape, translation):
        posed = body.pose(to_matrix(axis_angles, "axis_angle"), shape, translation)
        return (torch.cat([posed.vertices, posed.joints], 1) * weight).sum()

    gradients = torch.autograd.grad(loss(*[value.requires_grad_() for value in values]), values)
    for which, gradient in enumerate(gradients):
        for entry in torch.randperm(values[which].numel())[:12].tolist():
            step = torch.zeros(values[which].numel(), dtype=torch.float64)
            step[entry] = 1e-5
            ends = [
                loss(*[v + sign * step.view_as(v) if k == which else v for k, v in enumerate(values)])
                for sign in (1, -1)
            ]
            difference = (ends[0] - ends[1]).item() / 2e-5
            assert float(gradient.flatten()[entry]) == pytest.approx(difference, rel=1e-6, abs=1e-6)


def test_a_bone_turns_what_hangs_on_it_and_nothing_else():
    body, rotations = load_body(), identity().clone()
    rotations[0, FREE.index("LeftForeArm")] = to_matrix(torch.tensor([0.0, 0.0, 1.0]), "axis_angle")
    moved = (body.joints_of(rotations) - body.joints_of(identity())).norm(dim=-1)[0] > 1e-4
    assert [name for name, is_moved in zip(JOINT_NAMES, moved, strict=True) if is_moved] == ["LeftHand"]


def test_the_body_at_rest_stands_upright_and_faces_the_camera():
    joints = dict(zip(JOINT_NAMES, load_body().joints_of(identity())[0], strict=True))
    assert joints["Head"][1] < joints["Hips"][1] < joints["LeftFoot"][1]  # y is down
    assert joints["LeftHand"][0] > 0.3 and joints["RightHand"][0] < -0.3  # its left is on the picture's right
    assert joints["LeftToeBase"][2] < joints["LeftFoot"][2]  # the toes point to the camera


def test_more_of_the_first_component_is_a_taller_body():
    shape = torch.zeros(3, 10)
    shape[:, 0] = torch.tensor([-1.0, 0.0, 1.0])
    vertices = load_body().pose(identity(3), shape).vertices
    small, mean, tall = (vertices[..., 1].amax(1) - vertices[..., 1].amin(1)).tolist()
    assert 1.3 < small < mean - 0.1 and mean + 0.1 < tall < 2.2
    torch.testing.assert_close(vertices[1], load_body().pose(identity()).vertices[0])


def test_the_mesh_is_closed_and_its_normals_point_outwards():
    body = load_body()
    edges = Counter((int(a), int(b)) for face in body.faces for a, b in zip(face, face.roll(-1), strict=True))
    assert set(edges.values()) == {1} and all((b, a) in edges for a, b in edges)
    assert len(body.vertices) - len(edges) // 2 + len(body.faces) == 2
    a, b, c = body.vertices[body.faces].unbind(1)
    assert 0.04 < float((a * torch.linalg.cross(b, c)).sum()) / 6 < 0.09  # m3


def test_names_weights_and_size():
    body = load_body()
    assert len(body.names) == 31 and len(FREE) == 20 and len(JOINT_NAMES) == 18 and set(LIMBS) < set(JOINT_NAMES)
    assert all(parent < index for index, parent in enumerate(body.parents))
    assert [body.names[i] for i in body.free] == list(FREE) and body.free == sorted(body.free)
    assert [JOINT_NAMES[i] for i in HIPS] == ["LeftUpLeg", "RightUpLeg"]
    assert body.carriers[body.names.index("LHipJoint")] == 0
    torch.testing.assert_close(body.weights.sum(1), torch.ones(1229))
    assert ASSET.stat().st_size < 150_000 and GOLDEN.stat().st_size < 150_000
    axes = torch.tensor(CAMERA_FROM_BODY)
    assert torch.linalg.det(axes) == 1 and (axes @ torch.tensor([1.0, 2.0, 3.0])).tolist() == [1, -3, 2]


def test_wrong_shapes_are_refused():
    body = load_body()
    with pytest.raises(UsageError, match=r"\[B, 20, 3, 3\], not \[2, 20, 6\]"):
        body.pose(torch.zeros(2, 20, 6))
    with pytest.raises(UsageError, match=r"must be \[2, 10\], not \[2, 9\]"):
        body.joints_of(identity(2), torch.zeros(2, 9))
