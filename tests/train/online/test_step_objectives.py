"""Losses on steps against the formulas in float64."""

from __future__ import annotations

import math

import pytest
import torch

from prefkit.config import plugin_options
from prefkit.errors import UsageError
from prefkit.train.online.noise import Noise, Step

SHAPE = (6, 4, 4, 4)


def make(name, **options):
    return plugin_options.make("objective", name, options)


def steps(shift=0.01, seed=0, std=0.3):
    """(new, old, reference) of samples that the old policy took; new.mean takes gradients."""
    g = torch.Generator().manual_seed(seed)
    old_mean = torch.randn(SHAPE, generator=g)
    deviation = torch.full((len(old_mean),), std)
    sample = old_mean + std * torch.randn(SHAPE, generator=g)
    noise = Noise("sde", 1.0, "flow")

    def step(mean):
        return Step(sample, mean, deviation, torch.full_like(deviation, 0.1), noise.log_prob(sample, mean, deviation))

    new = (old_mean + shift * torch.randn(SHAPE, generator=g)).requires_grad_()
    return step(new), step(old_mean), step(old_mean + 2 * shift * torch.randn(SHAPE, generator=g))


ADVANTAGE = torch.tensor([1.0, -1.0, 0.5, -2.0, 3.0, -0.1])


def test_ddpo_against_the_formula():
    new, old, _ = steps(shift=0.05)
    clip = 1e-4
    loss, shown = make("ddpo", clip=clip).loss(new, old, None, ADVANTAGE)
    d = (new.log_prob - old.log_prob).double()
    expected = [
        max(-a * math.exp(x), -a * min(max(math.exp(x), 1 - clip), 1 + clip))
        for a, x in zip(ADVANTAGE.tolist(), d.tolist())
    ]
    assert loss.tolist() == pytest.approx(expected, rel=1e-5)
    assert shown["approx_kl"].tolist() == pytest.approx((d**2 / 2).tolist(), rel=1e-4)
    assert shown["clip_low"].sum() == sum(x < math.log(1 - clip) and a < 0 for a, x in zip(ADVANTAGE, d))


def test_score_function_equals_importance_sampling_on_policy_without_a_clip():
    new, old, _ = steps(shift=0.0)
    for options in ({"clip": None}, {}):
        (loss, _) = make("ddpo", **options).loss(new, old, None, ADVANTAGE)
        got = torch.autograd.grad(loss.mean(), new.mean, retain_graph=True)[0]
        wanted = torch.autograd.grad(-(ADVANTAGE * new.log_prob).mean(), new.mean, retain_graph=True)[0]
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", ["ddpo", "flow_grpo", "d3po", "oft"])
def test_without_an_update_the_ratio_is_one(name):
    new, old, _ = steps(shift=0.0)
    loss, shown = make(name).loss(new, old, old, ADVANTAGE)
    assert (shown["ratio"] - 1).abs().max() < 1e-6
    if name in ("d3po", "oft"):
        assert loss.tolist() == pytest.approx([math.log(2)] * 3, abs=1e-6)


def test_flow_grpo_adds_the_divergence_of_two_gaussians():
    new, old, reference = steps()
    plain, _ = make("flow_grpo", kl=0.0).loss(new, old, None, ADVANTAGE)
    loss, shown = make("flow_grpo", kl=0.5).loss(new, old, reference, ADVANTAGE)
    normal = torch.distributions.Normal
    std = new.std.double().view(-1, 1, 1, 1)
    kl = torch.distributions.kl_divergence(normal(new.mean.double(), std), normal(reference.mean.double(), std))
    torch.testing.assert_close(shown["kl"].double(), kl.mean((1, 2, 3)), rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(loss, plain + 0.5 * shown["kl"])
    assert make("flow_grpo", kl=0.0).reference == "none"


def test_guard_takes_the_bias_of_the_ratio_away():
    """Over many samples the mean of log r is -b for the plain ratio and 0 for the guarded one."""
    sums, clip, guard = torch.zeros(2), make("flow_grpo", kl=0.0), make("flow_grpo", kl=0.0, trust="guard")
    for seed in range(200):
        new, old, _ = steps(shift=0.1, seed=seed)
        _, plain = clip.loss(new, old, None, ADVANTAGE)
        loss, guarded = guard.loss(new, old, None, ADVANTAGE)
        sums += torch.stack([plain["ratio"].log().mean(), guarded["ratio"].log().mean() / 0.3]) / 200
    bias = 0.1**2 / (2 * 0.3**2)
    assert sums[0] == pytest.approx(-bias, rel=0.1) and abs(sums[1]) < 0.1 * bias
    assert loss.shape == (6,)


def test_dppo_drops_what_moves_further_away():
    new, old, _ = steps(shift=0.05)
    difference = new.log_prob - old.log_prob
    loss, shown = make("flow_grpo", kl=0.0, trust="dppo", limit=1e-6).loss(new, old, None, ADVANTAGE)
    away = (difference * ADVANTAGE) > 0
    assert torch.equal(loss == 0, away) and away.any() and not away.all()
    assert torch.equal((shown["clip_high"] + shown["clip_low"]) > 0, away)
    kept, _ = make("flow_grpo", kl=0.0, trust="dppo", limit=1e3).loss(new, old, None, ADVANTAGE)
    torch.testing.assert_close(kept, -ADVANTAGE * difference.exp())


def test_d3po_against_the_formula_and_its_clamp():
    new, old, reference = steps(shift=0.15)
    beta, eps = 2.0, 0.1
    loss, shown = make("d3po", beta=beta, clamp=eps).loss(new, old, reference, ADVANTAGE)
    d = (new.log_prob - reference.log_prob).tolist()
    held = [math.log(min(max(math.exp(x), 1 - eps), 1 + eps)) for x in d]
    expected = [math.log1p(math.exp(-beta * (held[i] - held[i + 3]))) for i in range(3)]
    assert loss.tolist() == pytest.approx(expected, rel=1e-5)
    outside = [abs(math.exp(x) - 1) > eps for x in d]
    assert shown["clamped"].tolist() == [(outside[i] + outside[i + 3]) / 2 for i in range(3)]
    gradient = torch.autograd.grad(loss.sum(), new.mean)[0].flatten(1).abs().sum(1)
    assert [g == 0 for g in gradient.tolist()] == outside and any(outside)


def test_oft_looks_inside_the_box_alone():
    new, old, reference = steps()
    mask = torch.zeros(SHAPE)
    mask[..., :2] = 1
    area, _ = make("oft").loss(Step(**{**vars(new), "mask": mask}), old, reference, ADVANTAGE)
    gradient = torch.autograd.grad(area.sum(), new.mean, retain_graph=True)[0]
    assert gradient[..., 2:].abs().max() == 0 and gradient[..., :2].abs().min() > 0
    everywhere, _ = make("oft").loss(Step(**{**vars(new), "mask": torch.ones(SHAPE)}), old, reference, ADVANTAGE)
    none, _ = make("oft").loss(new, old, reference, ADVANTAGE)
    torch.testing.assert_close(everywhere, none)
    change = ((new.density() - reference.density()) * mask).double().flatten(1).sum(1)
    for over, size in (("area", mask[0].sum()), ("published", mask[0].numel())):
        _, shown = make("oft", over=over).loss(Step(**{**vars(new), "mask": mask}), old, reference, ADVANTAGE)
        win, lose = (change / size).chunk(2)
        torch.testing.assert_close(shown["log_ratio"].double(), 0.5 * (win.abs() + lose.abs()), rtol=1e-4, atol=1e-7)


def test_an_unknown_trust_is_refused():
    with pytest.raises(UsageError, match="trust"):
        make("flow_grpo", trust="hope")
