"""Rotation representations, against scipy.spatial.transform.Rotation."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.spatial.transform import Rotation

from prefkit.errors import UsageError
from prefkit.mesh.rotations import SIZES, from_matrix, to_matrix

ANGLES = (0.0, 1e-9, 1e-5, 0.1, 1.0, 3.0, math.pi - 1e-4, math.pi - 1e-7, math.pi)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def vectors(dtype=torch.float64):
    """Return axis-angle vectors [9, 30, 3]: every angle of ANGLES about random axes and the coordinate axes."""
    axes = torch.randn(24, 3, generator=torch.Generator().manual_seed(0), dtype=dtype)
    axes = torch.cat([axes / axes.norm(dim=1, keepdim=True), torch.eye(3, dtype=dtype), -torch.eye(3, dtype=dtype)])
    return torch.tensor(ANGLES, dtype=dtype)[:, None, None] * axes


def reference(values):
    return torch.from_numpy(Rotation.from_rotvec(values.reshape(-1, 3).numpy()).as_matrix()).view(*values.shape, 3)


def test_axis_angle_and_quaternion_equal_scipy():
    values = vectors()
    matrices = reference(values)
    torch.testing.assert_close(to_matrix(values, "axis_angle"), matrices, atol=1e-12, rtol=0)
    xyzw = torch.from_numpy(Rotation.from_matrix(matrices.view(-1, 3, 3).numpy()).as_quat())
    quaternions = xyzw[:, [3, 0, 1, 2]].view(*values.shape[:2], 4)
    torch.testing.assert_close(to_matrix(3 * quaternions, "quaternion"), matrices, atol=1e-12, rtol=0)
    own = from_matrix(matrices, "quaternion")
    same = (own * quaternions).sum(-1).abs()  # q and -q are one rotation
    torch.testing.assert_close(same, torch.ones_like(same), atol=1e-12, rtol=0)
    assert own[..., 0].min() >= 0


@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-12), (torch.float32, 2e-6)])
@pytest.mark.parametrize("repr", SIZES)
def test_round_trips_from_0_to_pi(repr, dtype, bound):
    matrices = reference(vectors()).to(dtype)
    values = from_matrix(matrices, repr)
    assert values.shape == (9, 30, *SIZES[repr]) and values.dtype == dtype
    torch.testing.assert_close(to_matrix(values, repr), matrices, atol=bound, rtol=0)


def test_axis_angle_itself_comes_back_up_to_just_below_pi():
    values = vectors()[:-1]
    torch.testing.assert_close(from_matrix(to_matrix(values, "axis_angle"), "axis_angle"), values, atol=1e-8, rtol=0)
    turn = from_matrix(to_matrix(vectors()[-1] * 1.2, "axis_angle"), "axis_angle")  # 216 degrees are -144
    torch.testing.assert_close(turn, vectors()[-1] * -0.8, atol=1e-8, rtol=0)


def test_6d_is_the_first_two_columns_and_any_6_numbers_give_a_rotation():
    matrices = reference(vectors())
    torch.testing.assert_close(from_matrix(matrices, "6d")[..., 3:], matrices[..., 1])
    made = to_matrix(torch.randn(100, 6).double(), "6d")
    torch.testing.assert_close(made.transpose(1, 2) @ made, torch.eye(3).double().expand(100, 3, 3))
    torch.testing.assert_close(torch.linalg.det(made), torch.ones(100).double())


@pytest.mark.parametrize("repr", ["axis_angle", "6d", "quaternion"])
def test_gradients_are_right_even_without_a_rotation(repr):
    for values in (torch.zeros(1, 3), torch.tensor([[0.3, -1.0, 0.2]])):
        start = from_matrix(to_matrix(values.double(), "axis_angle"), repr).requires_grad_()
        assert torch.autograd.gradcheck(lambda v: to_matrix(v, repr), start)
    matrix = to_matrix(torch.zeros(1, 3).double(), "axis_angle").requires_grad_()
    from_matrix(matrix, "axis_angle").sum().backward()
    assert matrix.grad.isfinite().all()


def test_unknown_representations_and_wrong_sizes_are_refused():
    with pytest.raises(UsageError, match="'euler' is not a rotation representation; use one of axis_angle, 6d"):
        to_matrix(torch.zeros(3), "euler")
    with pytest.raises(UsageError, match="'euler' is not"):
        from_matrix(torch.eye(3), "euler")
    with pytest.raises(UsageError, match=r"6d rotations must have the last dimensions \[6\], not \[20, 3\]"):
        to_matrix(torch.zeros(20, 3), "6d")
    with pytest.raises(UsageError, match=r"matrix rotations must have the last dimensions \[3, 3\]"):
        from_matrix(torch.zeros(9), "6d")
