from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from prefkit.config import plugin_options
from prefkit.errors import UsageError
from prefkit.models.schedule import Schedule
from prefkit.train.policy import errors_of
from prefkit.types import Groups

ALPHAS = torch.cumprod(1 - torch.linspace(0.0001, 0.02, 1000, dtype=torch.float64), 0)


def groups(order):
    """Groups for samples given as (index, rank)."""
    index, rank = torch.tensor(order).T
    ones = torch.ones(len(order))
    return Groups(index, rank, (rank == 0).float(), ones, ones, ones)


def dpo(beta=2000.0):
    return plugin_options.make("objective", "dpo", {"beta": beta})


def in_float64(beta, prediction, reference, x0, noise, time, kind):
    """Per pair -log sigmoid of eq. 14 with means for norms; samples are [winner, loser] of each pair."""
    a = np.sqrt(ALPHAS.numpy()[time]) if kind != "flow" else None
    losses, margins = [], []
    for win, lose in zip(range(0, len(x0), 2), range(1, len(x0), 2), strict=True):
        terms = []
        for i in (win, lose):
            target = {
                "epsilon": lambda i: noise[i],
                "v_prediction": lambda i: a[i] * noise[i] - math.sqrt(1 - a[i] ** 2) * x0[i],
                "flow": lambda i: noise[i] - x0[i],
            }[kind](i)
            terms.append(((target - reference[i]) ** 2).mean() - ((target - prediction[i]) ** 2).mean())
        margins.append(beta * 0.5 * (terms[0] - terms[1]))
        losses.append(math.log1p(math.exp(-margins[-1])))
    return np.array(losses), np.array(margins)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow"])
@pytest.mark.parametrize("beta", [5.0, 500.0])
def test_dpo_against_a_float64_reference(kind, beta):
    rng = np.random.default_rng(3)
    shape = (6, 4, 8, 8)
    x0, noise = rng.normal(size=shape), np.repeat(rng.normal(size=(3, *shape[1:])), 2, axis=0)
    reference = rng.normal(size=shape)
    prediction = reference + 0.02 * rng.normal(size=shape)
    time = np.repeat(rng.integers(0, 1000, 3), 2)
    expected, margins = in_float64(beta, prediction, reference, x0, noise, time, kind)
    schedule = Schedule(kind, None if kind == "flow" else ALPHAS)
    clock = torch.from_numpy(time / 1000 if kind == "flow" else time)
    target = schedule.target(torch.from_numpy(x0), torch.from_numpy(noise), clock)
    errors = [errors_of((torch.from_numpy(p) - target).float(), keep=False) for p in (prediction, reference)]
    loss, metrics = dpo(beta).loss(*errors, groups([(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]))
    np.testing.assert_allclose(metrics["margin"].numpy(), margins, rtol=1e-3, atol=1e-5 * beta)
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-3, atol=1e-5 * beta)


def test_dpo_finds_winner_and_loser_in_any_order():
    policy, reference = torch.rand(6), torch.rand(6)
    ordered = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    loss, _ = dpo(3.0).loss(
        errors_of(policy[:, None].sqrt(), False), errors_of(reference[:, None].sqrt(), False), groups(ordered)
    )
    mix = [4, 1, 0, 3, 5, 2]
    again, _ = dpo(3.0).loss(
        errors_of(policy[mix][:, None].sqrt(), False),
        errors_of(reference[mix][:, None].sqrt(), False),
        groups([ordered[i] for i in mix]),
    )
    torch.testing.assert_close(loss, again)


def test_dpo_of_an_unmoved_policy_is_log_two_and_a_tie():
    errors = errors_of(torch.randn(4, 5), keep=False)
    loss, metrics = dpo().loss(errors, errors, groups([(0, 0), (1, 0), (0, 1), (1, 1)]))
    torch.testing.assert_close(loss, torch.full((2,), math.log(2)))
    assert metrics["implicit_accuracy"].tolist() == [0.5, 0.5]


def test_sft_is_the_winners_error():
    sft = plugin_options.make("objective", "sft", {})
    residual = torch.randn(3, 4, 2)
    loss, metrics = sft.loss(errors_of(residual, False), None, groups([(0, 0), (1, 0), (2, 0)]))
    np.testing.assert_allclose(loss.numpy(), (residual.double().numpy() ** 2).mean((1, 2)), rtol=1e-6)
    assert metrics == {}


def test_an_option_that_is_not_there():
    with pytest.raises(UsageError, match="beta"):
        plugin_options.make("objective", "dpo", {"betta": 1.0})
