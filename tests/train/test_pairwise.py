"""Every objective on errors against its formula in float64, its gradient, and its limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from prefkit.config import plugin_options
from prefkit.errors import UsageError
from prefkit.train.objectives._pairwise import sides
from prefkit.types import Errors, Groups

BETA = 300.0
PAIRWISE = {
    "dpo": {},
    "dpo smoothed": {"label_smoothing": 0.1},
    "dpo robust": {"label_smoothing": 0.1, "robust": True},
    "dpo soft": {"labels": "soft", "label_smoothing": 0.05},
    "dpo margin": {"labels": "margin"},
    "dpo sft": {"sft": 0.7},
    "ipo": {},
    "hinge": {},
    "capo": {},
    "capo score_gap": {"target": "score_gap"},
    "poly": {"alpha": 3.0},
    "dpop": {"strength": 2.0},
}


def make(name, **options):
    beta = {} if name.split()[0] in ("mapo", "sft") else {"beta": BETA}
    return plugin_options.make("objective", name.split()[0], beta | options)


def batch(count=6, members=2, seed=0, p=None):
    """Errors [members, count] float64 of policy and reference, and groups; samples ordered as the loop does."""
    rng = np.random.default_rng(seed)
    reference = rng.uniform(0.5, 1.5, (members, count))
    policy = reference + rng.normal(0, 0.01, (members, count))
    index, rank = torch.arange(count).repeat(members), torch.arange(members).repeat_interleave(count)
    p = rng.uniform(0.5, 1, count) if p is None else np.full(count, p)
    gap = rng.uniform(0, 1, count)
    each = [torch.from_numpy(np.tile(v, members)) for v in (gap, p)]
    label = (rank == 0).double()
    return policy, reference, Groups(index, rank, label, torch.ones(members * count), *each)


def errors(values):
    return Errors(torch.from_numpy(values.reshape(-1)).clone().requires_grad_())


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def expected(name, options, e, r, groups):
    """The loss per pair, written from the papers in numpy."""
    (e_w, e_l), (r_w, r_l) = e, r
    count = len(e_w)
    p, gap = groups.p.numpy()[:count], groups.score_gap.numpy()[:count]
    z = BETA * 0.5 * ((r_w - e_w) - (r_l - e_l))
    right, wrong = np.log1p(np.exp(-z)), np.log1p(np.exp(z))
    eps = options.get("label_smoothing", 0)
    return {
        "dpo": right,
        "dpo smoothed": (1 - eps) * right + eps * wrong,
        "dpo robust": ((1 - eps) * right - eps * wrong) / (1 - 2 * eps),
        "dpo soft": (p * (1 - eps) + (1 - p) * eps) * right + (1 - p * (1 - eps) - (1 - p) * eps) * wrong,
        "dpo margin": np.log1p(np.exp(-(2 * p - 1) * z)),
        "dpo sft": right + 0.7 * e_w,
        "ipo": (z - 0.5) ** 2,
        "hinge": np.maximum(0, 1 - z),
        "capo": (p - (1 - p) - z) ** 2,
        "capo score_gap": (gap - z) ** 2,
        "poly": right + 3.0 * (1 - sigmoid(z)),
        "dpop": np.log1p(np.exp(-(z - 2.0 * BETA / 2 * np.maximum(0, e_w - r_w)))),
    }[name]


@pytest.mark.parametrize("name", PAIRWISE)
def test_functions_of_z_and_their_gradients(name):
    e, r, groups = batch()
    policy = errors(e)
    loss, metrics = make(name, **PAIRWISE[name]).loss(policy, errors(r), groups)
    np.testing.assert_allclose(loss.detach().numpy(), expected(name, PAIRWISE[name], e, r, groups), rtol=1e-10)
    assert set(metrics) >= {"margin", "implicit_accuracy", "win_advantage", "lose_advantage"}
    (gradient,) = torch.autograd.grad(loss.sum(), policy.mean)
    step = 1e-6
    for side in (0, 1):
        for pair in range(e.shape[1]):
            moved = []
            for sign in (1, -1):
                near = e.copy()
                near[side, pair] += sign * step
                moved.append(expected(name, PAIRWISE[name], near, r, groups).sum())
            slope = (moved[0] - moved[1]) / (2 * step)
            assert gradient.view(2, -1)[side, pair].item() == pytest.approx(slope, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", [n for n in PAIRWISE if "capo" not in n])
def test_the_winners_error_is_pushed_down_and_the_losers_up_at_the_start(name):
    _, r, groups = batch(p=0.9)
    policy = errors(r)
    loss, metrics = make(name, **PAIRWISE[name]).loss(policy, errors(r), groups)
    gradient = torch.autograd.grad(loss.sum(), policy.mean)[0].view(2, -1)
    assert (gradient[0] > 0).all() and (gradient[1] < 0).all()
    assert metrics["implicit_accuracy"].unique().tolist() == [0.5] and not metrics["margin"].any()
    start = {"ipo": 0.25, "hinge": 1.0, "poly": math.log(2) + 1.5}
    if name != "dpo sft":
        torch.testing.assert_close(loss, torch.full_like(loss, start.get(name, math.log(2))))


@pytest.mark.parametrize("name", PAIRWISE)
def test_swapped_labels_turn_the_margin(name):
    e, r, groups = batch(p=0.9)
    objective = make(name, **PAIRWISE[name])
    one = objective.loss(errors(e), errors(r), groups)[1]
    two = objective.loss(errors(e[::-1].copy()), errors(r[::-1].copy()), groups)[1]
    torch.testing.assert_close(one["margin"], -two["margin"])
    torch.testing.assert_close(one["implicit_accuracy"], 1 - two["implicit_accuracy"])


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", ["dpo", "dpo smoothed", "ipo", "hinge", "poly", "dpop", "sdpo", "linear", "kto"])
def test_far_margins_stay_finite(name, sign):
    """z of plus and minus 1e5, in the float32 that training uses."""
    gap = sign * 2e5 / BETA
    policy = Errors(torch.tensor([1.0, 1.0 + gap]).requires_grad_(), torch.ones(2, 3))
    reference = Errors(torch.ones(2))
    groups = Groups(torch.zeros(2).long(), torch.tensor([0, 1]), torch.tensor([1.0, 0]), *torch.ones(3, 2))
    if name == "kto":
        groups.index = torch.tensor([0, 1])
    loss, _ = make(name, **PAIRWISE.get(name, {})).loss(policy, reference, groups)
    (gradient,) = torch.autograd.grad(loss.sum(), policy.mean)
    assert loss.isfinite().all() and gradient.isfinite().all()
    limits = {"dpo": (0, -BETA / 2), "hinge": (0, -BETA / 2), "poly": (0, -BETA / 2), "linear": (-0.05, -0.95)}
    if name in limits:  # of the loser's gradient, where the margin is right and where it is wrong
        assert gradient[1].item() == pytest.approx(limits[name][0 if sign > 0 else 1], abs=1e-6)


def test_sdpo_has_the_loss_of_dpo_and_a_guarded_gradient():
    rng = np.random.default_rng(4)
    target, first, last = (rng.normal(size=(8, 5)) for _ in range(3))
    first[4:6] = target[4:6] + (first - target)[:2] * np.array([[4.0], [0.3]]) + 0.1 * rng.normal(size=(2, 5))
    residual = torch.from_numpy(first - target).requires_grad_()
    policy = Errors(residual.square().mean(1), residual)
    reference = Errors(torch.from_numpy(last - target).square().mean(1))
    _, _, groups = batch(count=4)
    mu = 0.6
    loss, metrics = make("sdpo", mu=mu, beta=20.0).loss(policy, reference, groups)
    plain, _ = make("dpo", beta=20.0).loss(Errors(policy.mean), reference, groups)
    torch.testing.assert_close(loss, plain)
    found = torch.autograd.grad(loss.sum(), residual, retain_graph=True)[0].view(2, 4, 5).numpy()
    free = torch.autograd.grad(plain.sum(), residual)[0].view(2, 4, 5).numpy()
    g = residual.detach().numpy().reshape(2, 4, 5)
    for pair in range(4):
        dot = g[0, pair] @ g[1, pair]
        share = min(1.0, max(0.0, (1 - mu) * (g[0, pair] @ g[0, pair]) / dot)) if dot > 0 else 1.0
        assert metrics["loser_share"][pair].item() == pytest.approx(share)
        np.testing.assert_allclose(found[0, pair], free[0, pair], rtol=1e-9)
        np.testing.assert_allclose(found[1, pair], share * free[1, pair], rtol=1e-9)
    shares = metrics["loser_share"].numpy()
    assert 0 < shares[0] < 1 and shares[1] == 1


def test_linear_weighs_the_difference_of_errors():
    e, r, groups = batch(count=40)
    policy = errors(e)
    loss, _ = make("linear", slope=0.4, least=0.1).loss(policy, errors(r), groups)
    h = (r[0] - e[0]) - (r[1] - e[1])
    weight = np.clip(0.5 - 0.2 * BETA * h, 0.1, 0.9)
    np.testing.assert_allclose(loss.detach().numpy(), weight * (e[0] - e[1]), rtol=1e-10)
    gradient = torch.autograd.grad(loss.sum(), policy.mean)[0].view(2, -1).numpy()
    np.testing.assert_allclose(gradient, [weight, -weight], rtol=1e-10)
    assert weight.min() == 0.1 and weight.max() == 0.9 and len(set(weight)) > 2  # all three parts of it were seen


def test_kto_judges_single_images_against_the_mean_of_the_step_before():
    e, r, groups = batch(count=6, members=1)
    groups.label = torch.tensor([1, 0, 1, 1, 0, 0]).double()
    objective = make("kto", desirable=0.8, undesirable=1.3)
    start, _ = objective.loss(errors(r), errors(r), groups)
    torch.testing.assert_close(start, torch.where(groups.label > 0, 0.4, 0.65).double())
    objective.observe({"advantage": 0.004})
    policy = errors(e)
    loss, metrics = objective.loss(policy, errors(r), groups)
    a, good = (r - e)[0], groups.label.numpy() > 0
    s = BETA / 2 * (a - 0.004) * np.where(good, 1, -1)
    np.testing.assert_allclose(loss.detach().numpy(), np.where(good, 0.8, 1.3) * (1 - sigmoid(s)), rtol=1e-10)
    gradient = torch.autograd.grad(loss.sum(), policy.mean)[0].numpy()
    assert (gradient[good] > 0).all() and (gradient[~good] < 0).all()
    np.testing.assert_allclose(metrics["advantage"].numpy(), a)
    objective.observe({"advantage": -1.0})
    assert objective.state() == {"point": 0.0}


def test_mapo_against_the_paper():
    e, _, groups = batch()
    policy = errors(e)
    loss, _ = make("mapo", weight=0.2, steps=1000.0, scale=0.5).loss(policy, None, groups)
    phi = 0.5 * e / np.expm1(0.5 * e)
    z = 1000 * (phi[0] - phi[1])
    np.testing.assert_allclose(loss.detach().numpy(), e[0] + 0.2 * np.logaddexp(0, -z), rtol=1e-9)
    gradient = torch.autograd.grad(loss.sum(), policy.mean)[0].view(2, -1)
    assert (gradient[0] > 0).all() and (gradient[1] <= 0).all()
    extreme = make("mapo").likeness(torch.tensor([0.0, 1e-8, 200.0]))
    assert extreme.isfinite().all() and extreme[0].item() == pytest.approx(1, abs=1e-3)


def test_lists_against_plackett_luce_and_lists_of_two_are_dpo():
    e, r, groups = batch(count=3, members=4)
    loss, metrics = make("lpo").loss(errors(e), errors(r), groups)
    s = BETA / 2 * (r - e)
    wanted = [sum(-s[j, g] + np.log(np.exp(s[j:, g]).sum()) for j in range(4)) for g in range(3)]
    np.testing.assert_allclose(loss.detach().numpy(), wanted, rtol=1e-10)
    start, _ = make("lpo").loss(errors(r), errors(r), groups)
    torch.testing.assert_close(start, torch.full_like(start, math.log(24)))
    right = [np.mean([s[j, g] > s[k, g] for j in range(4) for k in range(j + 1, 4)]) for g in range(3)]
    np.testing.assert_allclose(metrics["implicit_accuracy"].numpy(), right, rtol=1e-6)
    e, r, groups = batch()
    two = [make(name).loss(errors(e), errors(r), groups)[0] for name in ("lpo", "dpo")]
    torch.testing.assert_close(*two)


def test_auto_beta_holds_the_gradients_factor():
    e, r, groups = batch(count=400)
    objective = make("dpo", auto_beta=True)
    assert objective.beta == BETA
    gap = 0.05
    for _ in range(200):
        objective.observe({"gap": gap})
    assert sigmoid(-objective.beta / 2 * gap) == pytest.approx(0.2)
    again = make("dpo", auto_beta=True)
    again.load(objective.state())
    assert again.beta == objective.beta
    _, metrics = again.loss(errors(e), errors(r), groups)
    assert metrics["beta"].unique().item() == pytest.approx(again.beta)
    np.testing.assert_allclose(metrics["gap"].numpy(), abs((r - e)[0] - (r - e)[1]))
    for _ in range(500):
        objective.observe({"gap": 1e9})
    assert objective.beta == pytest.approx(BETA / 100)


def test_sides_follow_index_and_rank():
    groups = Groups(torch.tensor([1, 0, 1, 0]), torch.tensor([1, 1, 0, 0]), *torch.ones(4, 4))
    win, lose = sides(torch.tensor([[1.0, 1], [2, 2], [3, 3], [4, 4]]), groups)
    assert win.tolist() == [[4, 4], [3, 3]] and lose.tolist() == [[2, 2], [1, 1]]


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("dpo", {"label_smoothing": 0.5}, "below 0.5"),
        ("dpo", {"labels": "sof"}, "labels"),
        ("dpo", {"robust": True}, "label_smoothing"),
        ("dpop", {"strength": -1.0}, "strength"),
        ("sdpo", {"mu": 1.1}, "mu"),
        ("linear", {"decay": 1.0}, "decay"),
        ("capo", {"target": "q"}, "target"),
    ],
)
def test_options_that_make_no_sense(name, options, words):
    with pytest.raises(UsageError, match=words):
        make(name, **options)


def test_a_missing_score_gap_is_no_target():
    e, r, groups = batch()
    groups.score_gap[2] = math.nan
    with pytest.raises(UsageError, match="score_gap"):
        make("capo", target="score_gap").loss(errors(e), errors(r), groups)
