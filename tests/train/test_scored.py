"""Objectives on scored images (nft, dgpo, gpo) against their formulas in float64, and their limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from prefkit.config import plugin_options
from prefkit.errors import UsageError
from prefkit.models.schedule import Schedule
from prefkit.types import Errors, Groups

COUNT, ELEMENTS = 6, 40
ALPHAS = torch.cumprod(1 - torch.linspace(0.0001, 0.02, 1000, dtype=torch.float64), 0)
SHUFFLED = [3, 0, 5, 1, 4, 2]


def make(name, **options):
    return plugin_options.make("objective", name, options)


# -- nft --------------------------------------------------------------------------------------------------------------
def singles(kind="flow", moved=0.1, seed=0):
    """A batch of images that a network predicts, in the units of its prediction, and their advantages."""
    rng = np.random.default_rng(seed)
    x0, noise = rng.normal(size=(2, COUNT, ELEMENTS))
    time = rng.uniform(0.1, 0.9, COUNT) if kind == "flow" else rng.integers(50, 900, COUNT)
    schedule = Schedule(kind, None if kind == "flow" else ALPHAS)
    clock = torch.from_numpy(time)
    target = schedule.target(torch.from_numpy(x0), torch.from_numpy(noise), clock).numpy()
    old = target + 0.5 * rng.normal(size=target.shape)
    new = old + moved * rng.normal(size=target.shape)
    advantage = np.array([2.0, -1.5, 0.4, -8.0, 7.0, 0.0])
    x_t = schedule.add_noise(torch.from_numpy(x0), torch.from_numpy(noise), clock)
    return {"x0": x0, "x_t": x_t.numpy(), "target": target, "old": old, "new": new, "A": advantage,
            "clock": clock, "schedule": schedule}  # fmt: skip


def nft_loss(b, order=range(COUNT), advantage=None, **options):
    order = list(order)
    new = torch.from_numpy(b["new"][order]).requires_grad_()
    errors = []
    for prediction in (new, torch.from_numpy(b["old"][order])):
        residual = prediction - torch.from_numpy(b["target"][order])
        errors.append(
            Errors(residual.square().mean(1), residual, b["schedule"].clean_factor(b["clock"][order]).double())
        )
    ones = torch.ones(COUNT)
    advantage = torch.from_numpy(b["A"] if advantage is None else advantage)[order]
    groups = Groups(torch.tensor(order), torch.zeros(COUNT).long(), *[ones] * 4, advantage)
    loss, metrics = make("nft", **options).loss(*errors, groups)
    return loss, torch.autograd.grad(loss.sum(), new, retain_graph=True)[0].numpy(), metrics


def clean(kind, x_t, prediction, time):
    """The clean sample that one prediction implies, written from the definitions of epsilon, v and velocity."""
    if kind == "flow":
        return x_t - time * prediction
    a = ALPHAS.numpy()[time]
    if kind == "epsilon":
        return (x_t - math.sqrt(1 - a) * prediction) / math.sqrt(a)
    return math.sqrt(a) * x_t - math.sqrt(1 - a) * prediction


def nft_expected(b, kind, beta, scale, i, new=None, weights=None):
    """Loss of image i, and the denominators of both terms; `weights`: denominators to use instead."""
    time, new = b["clock"].numpy()[i], b["new"][i] if new is None else new
    good = 0.5 + 0.5 * min(1, max(-1, b["A"][i] / scale))
    found, total = [], 0.0
    for share, sign in ((good, 1), (1 - good, -1)):
        prediction = (1 - sign * beta) * b["old"][i] + sign * beta * new
        error = clean(kind, b["x_t"][i], prediction, time) - b["x0"][i]
        found.append(np.abs(error).mean())
        total += share * (error**2).mean() / (found[-1] if weights is None else weights[len(found) - 1])
    return scale / beta * total, found


@pytest.mark.parametrize("kind", ["flow", "epsilon", "v_prediction"])
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_nft_and_its_gradient_are_those_of_the_paper(kind, beta):
    b = singles(kind)
    loss, gradient, _ = nft_loss(b, SHUFFLED, beta=beta, scale=5.0)
    for i in range(COUNT):
        value, weights = nft_expected(b, kind, beta, 5.0, i)
        assert loss[i].item() == pytest.approx(value, rel=1e-5)
        step = np.zeros(ELEMENTS)
        step[7] = 1e-5
        slopes = [nft_expected(b, kind, beta, 5.0, i, b["new"][i] + sign * step, weights)[0] for sign in (1, -1)]
        slope = (slopes[0] - slopes[1]) / 2e-5
        assert gradient[SHUFFLED.index(i), 7] == pytest.approx(slope, rel=1e-3, abs=1e-8)


@pytest.mark.parametrize("beta", [0.01, 1.0, 3.0])
def test_an_unmoved_nft_policy_follows_the_advantage_for_any_beta(beta):
    """The gradient is that of A D(v): none for an average image, of the other sign for swapped labels."""
    b = singles(moved=0.0)
    b["A"] = b["A"].clip(-5, 5)
    _, gradient, metrics = nft_loss(b, beta=beta)
    error = b["old"] - b["target"]
    factor = b["clock"].numpy()[:, None]
    expected = b["A"][:, None] * factor * 2 * error / ELEMENTS / np.abs(error).mean(1, keepdims=True)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-9)
    assert np.abs(gradient[5]).max() < 1e-12 < np.abs(gradient[0]).max()
    np.testing.assert_allclose(nft_loss(b, advantage=-b["A"], beta=beta)[1], -gradient, rtol=1e-9, atol=1e-12)
    assert metrics["implicit_accuracy"].unique().tolist() == [0.5] and not metrics["moved"].any()


def test_nft_with_only_good_images_is_fine_tuning_and_an_average_image_pulls_back():
    b = singles(moved=0.3)
    loss, gradient, _ = nft_loss(b, advantage=np.full(COUNT, 9.0), beta=1.0, scale=1.0)
    error = b["clock"].numpy()[:, None] * (b["new"] - b["target"])
    np.testing.assert_allclose(loss.detach().numpy(), (error**2).mean(1) / np.abs(error).mean(1), rtol=1e-5)
    _, gradient, metrics = nft_loss(b, advantage=np.zeros(COUNT), beta=1.0)
    assert ((gradient * (b["new"] - b["old"])).sum(1) > 0).all()  # a step of descent leads back to the sampling policy
    np.testing.assert_allclose(metrics["moved"], ((b["new"] - b["old"]) ** 2).mean(1))


def test_what_nft_keeps_of_the_sampling_policy_rises_to_a_limit():
    nft = make("nft", ramp=0.1, decay=0.25)
    assert [nft.kept(i) for i in range(5)] == pytest.approx([0, 0.1, 0.2, 0.25, 0.25])
    for options in ({"beta": 0.0}, {"scale": 0.0}, {"decay": 1.0}):
        with pytest.raises(UsageError, match="nft: beta and scale must be above 0"):
            make("nft", **options)


# -- groups -----------------------------------------------------------------------------------------------------------
def lists(members, seed=0):
    rng = np.random.default_rng(seed)
    reference = rng.uniform(0.5, 1.5, (members, COUNT))
    policy = reference + rng.normal(0, 0.002, (members, COUNT))
    advantage = -np.sort(-rng.normal(size=(members, COUNT)), axis=0)
    return policy, reference, advantage


def group_loss(name, e, r, advantage, shuffle=True, beta=300.0):
    members, count = e.shape
    index, rank = torch.arange(count).repeat(members), torch.arange(members).repeat_interleave(count)
    order = torch.randperm(e.size, generator=torch.Generator().manual_seed(1)) if shuffle else torch.arange(e.size)
    ones = torch.ones(e.size)
    groups = Groups(index[order], rank[order], *[ones] * 4, torch.from_numpy(advantage.reshape(-1))[order])
    policy, reference = (torch.from_numpy(v.reshape(-1))[order] for v in (e, r))
    policy.requires_grad_()
    loss, metrics = make(name, beta=beta).loss(Errors(policy), Errors(reference), groups)
    gradient = torch.empty(e.size, dtype=torch.float64)
    gradient[order] = torch.autograd.grad(loss.sum(), policy)[0]
    return loss.detach().numpy(), gradient.numpy().reshape(e.shape), metrics


@pytest.mark.parametrize("name", ["dgpo", "gpo"])
def test_groups_against_the_formula(name):
    e, r, scores = lists(5)
    loss, gradient, metrics = group_loss(name, e, r, scores)
    a = (scores - scores.mean(0)) / (scores.std(0) if name == "gpo" else 1)
    for g in range(COUNT):
        s = 300.0 / 5 * sum(a[i, g] * (e[i, g] - r[i, g]) for i in range(5))  # the preference of the worse images
        assert loss[g] == pytest.approx(math.log1p(math.exp(s)), rel=1e-9)
        np.testing.assert_allclose(gradient[:, g], 300.0 / 5 * a[:, g] / (1 + math.exp(-s)), rtol=1e-6)
        better = [(r - e)[i, g] > (r - e)[j, g] for i in range(5) for j in range(i + 1, 5)]
        assert metrics["implicit_accuracy"][g].item() == pytest.approx(np.mean(better))
    assert metrics["margin"].std() > 0


@pytest.mark.parametrize("name", ["dgpo", "gpo"])
def test_limits_of_groups(name):
    """log 2 at the start; equal scores have no gradient; swapped labels turn the margin; pairs are dpo; any scale of gpo."""
    e, r, scores = lists(4)
    start, _, metrics = group_loss(name, r, r, scores)
    np.testing.assert_allclose(start, math.log(2))
    assert metrics["implicit_accuracy"].unique().tolist() == [0.5]
    assert not group_loss(name, e, r, np.zeros_like(scores))[1].any()
    margins = [group_loss(name, e, r, sign * scores)[2]["margin"] for sign in (1, -1)]
    torch.testing.assert_close(margins[0], -margins[1])
    e, r, _ = lists(2)
    ones = np.repeat([[1.0], [-1.0]], COUNT, axis=1)
    groups = Groups(
        torch.arange(COUNT).repeat(2), torch.arange(2).repeat_interleave(COUNT), *[torch.ones(2 * COUNT)] * 4
    )
    errors = [Errors(torch.from_numpy(v.reshape(-1))) for v in (e, r)]
    dpo, _ = make("dpo", beta=300.0).loss(*errors, groups)
    np.testing.assert_allclose(group_loss(name, e, r, ones)[0], dpo.numpy())
    np.testing.assert_allclose(group_loss(name, e, r, ones + 3)[0], dpo.numpy(), rtol=1e-6)
    scaled = group_loss(name, e, r, 7 * ones + 3)[0]
    assert np.allclose(scaled, dpo.numpy()) == (name == "gpo")
