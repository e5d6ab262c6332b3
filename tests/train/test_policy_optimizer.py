"""Optimizer steps on a policy."""

from __future__ import annotations

import math

import torch

from prefkit.config import Train
from prefkit.distributed import Processes
from prefkit.train.optimizers import PolicyOptimizer
from prefkit.train.policy import MovingAverage, Policy


def test_a_moving_reference_does_not_follow_a_step_that_is_left_out():
    net = torch.nn.Linear(3, 2)
    policy = Policy(net, None)
    policy.average = MovingAverage(policy.parameters(), 0.5)
    policy.average.load([torch.zeros_like(p) for p in net.parameters()])
    optimizer = PolicyOptimizer(Train(precision="fp16", warmup=0, steps=4), policy, Processes("cpu"))

    def step(gradient):
        for parameter in net.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        return optimizer.step()

    step(math.inf)
    assert all((average == 0).all() for average in policy.average.weights)
    step(1.0)
    for average, parameter in zip(policy.average.weights, net.parameters(), strict=True):
        torch.testing.assert_close(average, parameter.detach() / 2, rtol=1e-6, atol=0)
