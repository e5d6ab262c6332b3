"""Optimizer steps on a policy."""

from __future__ import annotations

import math

import torch

from prefkit.config import Train
from prefkit.distributed.collectives import Processes
from prefkit.train.optimizers import GradientSum, PolicyOptimizer
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


def test_gradients_are_summed_during_the_last_backward_pass(monkeypatch):
    processes, sizes = Processes("cpu"), []

    def start_sum(flat):
        sizes.append(flat.numel())
        return lambda: flat.mul_(2)  # the sum of two processes that have the same gradients

    monkeypatch.setattr(processes, "start_sum", start_sum)
    unused, net = torch.nn.Parameter(torch.ones(5)), torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(3)))
    parameters = [unused, *net.parameters()]
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    gradients = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
    total = GradientSum(parameters, processes, size=3)
    for _ in range(2):  # steps of two micro-batches
        net(x).square().sum().backward()
        assert not sizes
        with total.during():
            net(x).square().sum().backward()
        assert sizes == [3, 9, 3, 9, 3, 9]  # the last layer first; one bucket lacks the gradient of `unused`
        total.finish()
        assert sizes.pop() == 5 and not unused.grad.any()
        for parameter, gradient in zip(net.parameters(), gradients, strict=True):
            torch.testing.assert_close(parameter.grad, 4 * gradient)
            parameter.grad = None
        unused.grad = None
        sizes.clear()
