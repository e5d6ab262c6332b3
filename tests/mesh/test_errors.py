"""MPJPE, PA-MPJPE and MPVPE, against loops in numpy and scipy's own alignment, and what they must not depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from scipy.spatial import procrustes as scipy_procrustes
from scipy.spatial.transform import Rotation

from prefkit.mesh.body import HIPS
from prefkit.mesh.errors import mpjpe, mpvpe, pa_mpjpe, procrustes

MIRROR = torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def joints(*shape, seed=0, noise=0.1):
    """Return predicted and true joints [*shape, 18, 3], float64."""
    generator = torch.Generator().manual_seed(seed)
    true = 0.4 * torch.randn(*shape, 18, 3, generator=generator, dtype=torch.float64)
    return true + noise * torch.randn(true.shape, generator=generator, dtype=torch.float64), true


def aligned_by_scipy(pred, true, weights=None):
    """Align by scipy's Kabsch rotation (never a reflection); the scale is the least-squares one along it."""
    weights = np.ones(len(pred)) if weights is None else weights
    centre, target = np.average(pred, 0, weights), np.average(true, 0, weights)
    rotation, _ = Rotation.align_vectors(true - target, pred - centre, weights=weights)
    turned = rotation.apply(pred - centre)
    scale = (weights[:, None] * turned * (true - target)).sum() / (weights[:, None] * turned**2).sum()
    return scale * turned + target


def distance(a, b):
    return 1000 * np.mean(
        [np.sqrt(sum((x - y) ** 2 for x, y in zip(p, q, strict=True))) for p, q in zip(a, b, strict=True)]
    )


def test_mpjpe_equals_a_loop():
    pred, true = joints(4)
    expected = [
        distance(p - p[list(HIPS)].mean(0), t - t[list(HIPS)].mean(0)) for p, t in zip(pred.numpy(), true.numpy())
    ]
    np.testing.assert_allclose(mpjpe(pred, true, HIPS), expected)
    np.testing.assert_allclose(mpjpe(pred, true), [distance(p, t) for p, t in zip(pred.numpy(), true.numpy())])


def test_pa_mpjpe_equals_scipy_for_bodies_and_for_mirrored_bodies():
    pred, true = joints(20)
    for prediction in (pred, pred * MIRROR):
        pairs = list(zip(prediction.numpy(), true.numpy(), strict=True))
        expected = [distance(aligned_by_scipy(p, t), t) for p, t in pairs]
        np.testing.assert_allclose(pa_mpjpe(prediction, true), expected, rtol=1e-6)


def test_the_alignment_equals_scipy_procrustes_where_no_reflection_is_better():
    pred, true = (side.numpy() for side in joints())
    centre, target = pred - pred.mean(0), true - true.mean(0)
    rotation, trace = orthogonal_procrustes(centre, target)
    assert np.linalg.det(rotation) > 0
    expected = trace / (centre**2).sum() * centre @ rotation + true.mean(0)
    own = procrustes(torch.from_numpy(pred), torch.from_numpy(true)).numpy()
    np.testing.assert_allclose(own, expected)
    disparity = scipy_procrustes(true, pred)[2]
    assert ((own - true) ** 2).sum() / (target**2).sum() == pytest.approx(disparity)


def test_pa_mpjpe_ignores_similarity_transforms_but_not_reflections():
    pred, true = joints(5)
    turn = torch.from_numpy(Rotation.random(5, random_state=0).as_matrix())
    moved = 0.3 * pred @ turn.transpose(1, 2) + torch.randn(5, 1, 3).double()
    torch.testing.assert_close(pa_mpjpe(moved, true), pa_mpjpe(pred, true))
    assert pa_mpjpe(2 * true @ turn + 1, true).max() < 1e-9
    assert pa_mpjpe(true * MIRROR, true).min() > 50  # mm: a mirrored body stays wrong
    assert (pa_mpjpe(pred, true) <= mpjpe(pred, true, tuple(range(18)))).all()


def test_joints_that_are_not_visible_do_not_count():
    pred, true = joints(3)
    visible = torch.ones(3, 18)
    visible[:, 4:9] = 0
    seen = [*range(4), *range(9, 18)]
    for error in (mpjpe, pa_mpjpe):
        torch.testing.assert_close(error(pred, true, visible=visible), error(pred[:, seen], true[:, seen]))
        assert error(pred, true, visible=torch.zeros(3, 18)).isnan().all()
    assert mpjpe(pred, true, HIPS, visible) != pytest.approx(mpjpe(pred[:, seen], true[:, seen]))  # the root still does
    weights = visible[0].double()
    np.testing.assert_allclose(
        procrustes(pred, true, weights)[0],
        aligned_by_scipy(pred[0].numpy(), true[0].numpy(), weights.numpy()),
        rtol=1e-6,
    )


def test_hypotheses_broadcast_against_one_truth_in_float32():
    pred, true = (side.float() for side in joints(4, 7))
    for error in (lambda p, t: mpjpe(p, t, HIPS), pa_mpjpe):
        both = error(pred, true[:, :1])
        assert both.shape == (4, 7) and both.dtype == torch.float32
        torch.testing.assert_close(both[2, 3], error(pred[2, 3], true[2, 0]))


def test_mpvpe_compares_positions_relative_to_the_roots():
    pred, true = joints(2)
    np.testing.assert_allclose(mpvpe(pred, true), [distance(p, t) for p, t in zip(pred.numpy(), true.numpy())])
    root = torch.tensor([[0.1, 0.2, 3.0], [1.0, 0.0, 5.0]]).double()
    torch.testing.assert_close(mpvpe(pred + root[:, None], true, root, torch.zeros(2, 3).double()), mpvpe(pred, true))


def test_degenerate_predictions_give_finite_errors():
    _, true = joints()
    assert pa_mpjpe(torch.zeros(18, 3).double(), true) == pytest.approx(float(mpjpe(true.mean(0), true)))
    flat = true * torch.tensor([1.0, 1.0, 0.0])
    assert pa_mpjpe(flat, true).isfinite() and pa_mpjpe(flat, flat) < 1e-9
