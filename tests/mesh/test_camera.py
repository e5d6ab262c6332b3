"""Cameras: projection, reading a request's camera, and the weak-perspective fit against least squares."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prefkit.mesh.camera import NEAR, Camera, weak_perspective_fit

CAMERA = Camera(500.0, 120.0, 130.0, 256, 200)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_projection_in_torch_and_numpy():
    points = np.array([[[0.0, 0.0, 2.0], [0.2, -0.4, 4.0]]], np.float32)
    expected = [[[120.0, 130.0], [120 + 500 * 0.05, 130 - 500 * 0.1]]]
    np.testing.assert_allclose(CAMERA.project(points), expected, rtol=1e-6)
    torch.testing.assert_close(CAMERA.project(torch.from_numpy(points)), torch.tensor(expected))
    assert CAMERA.project(points).dtype == np.float32


def test_points_behind_the_camera_stay_finite():
    for depth in (-1.0, 0.0):
        assert CAMERA.project(torch.tensor([1.0, 0.0, depth])).tolist() == pytest.approx([120 + 500 / NEAR, 130])


def test_a_request_states_its_camera_or_has_none():
    assert Camera.of({"camera": {"focal": 500, "principal": [120, 130], "size": [256, 200]}}) == CAMERA
    assert Camera.of({}) is None and Camera.of({"camera": None}) is None


@pytest.mark.parametrize(
    "camera",
    [
        {"focal": 500, "principal": [120, 130]},
        {"focal": "wide", "principal": [120, 130], "size": [256, 200]},
        {"focal": 500, "principal": [120], "size": [256, 200]},
        {"focal": 500, "principal": 120, "size": [256, 200]},
        {"focal": 0, "principal": [120, 130], "size": [256, 200]},
        {"focal": float("nan"), "principal": [120, 130], "size": [256, 200]},
        {"focal": 500, "principal": [120, 130], "size": [256, 0]},
        {"focal": 500, "principal": [120, 130], "size": [float("inf"), 200]},
        {"focal": 500, "principal": [120, 130], "size": [100_000, 100_000]},
        "pinhole",
        [500],
    ],
)
def test_an_invalid_camera_is_named(camera):
    with pytest.raises(ValueError, match="a request's `camera` .* (is invalid|needs)"):
        Camera.of({"camera": camera})


def test_the_weak_perspective_fit_equals_weighted_least_squares():
    generator = torch.Generator().manual_seed(0)
    joints = torch.randn(3, 18, 3, generator=generator, dtype=torch.float64)
    keypoints = 80 * joints[0, :, :2] + torch.tensor([100.0, 90.0]) + 5 * torch.randn(18, 2, generator=generator)
    confidence = torch.rand(18, generator=generator)
    confidence[3] = 0
    for own, body in zip(weak_perspective_fit(joints, keypoints, confidence), joints.numpy(), strict=True):
        rows = np.concatenate([np.stack([body[:, k], np.full(18, k == 0), np.full(18, k == 1)], 1) for k in (0, 1)])
        root = np.tile(np.sqrt(confidence.numpy()), 2)
        target = keypoints.numpy().T.ravel()
        (scale, x, y), *_ = np.linalg.lstsq(rows * root[:, None], target * root, rcond=None)
        if scale > 0:
            np.testing.assert_allclose(own, scale * body[:, :2] + [x, y], rtol=1e-6)
        else:
            assert own.std(0).max() < 1e-9


def test_the_fit_recovers_a_weak_perspective_picture_and_never_turns_a_body_over():
    joints = torch.randn(1, 18, 3).double()
    keypoints = 70 * joints[0, :, :2] + torch.tensor([120.0, 100.0])
    torch.testing.assert_close(weak_perspective_fit(joints, keypoints, torch.ones(18))[0], keypoints)
    mirrored = weak_perspective_fit(joints, -keypoints, torch.ones(18))[0]  # the best scale >= 0 is 0
    torch.testing.assert_close(mirrored, -keypoints.mean(0).expand(18, 2))
    assert weak_perspective_fit(joints, keypoints, torch.zeros(18)).isnan().all()
