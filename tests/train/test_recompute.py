"""Gradient checkpointing only when needed: decided before the first step, and nothing about the training changes."""

from __future__ import annotations

import pytest
import torch

from prefkit.config import Lora
from prefkit.train import recompute


class Card:
    """A card of so much memory, whose peak without checkpointing is as given; None = it runs out."""

    def __init__(self, peak, available):
        self.most, self.there = peak, available

    def forget_peak(self):
        pass

    def peak(self):
        return self.most

    def available(self):
        return self.there


def test_it_is_off_where_a_step_fits_and_on_where_it_does_not(run, loop_of):
    store, recipe = run(rows=None, lora=Lora(rank=4, dropout=0.5))
    loop = loop_of(store, recipe)
    assert loop.computed["gradient checkpointing"] == "off: on cpu it has to be asked for"
    states = 8 * sum(p.numel() for p in loop.policy.parameters())
    random = torch.get_rng_state()
    assert recompute.decide(loop, Card(10**9 - states, 4 * 10**9)) == "off: a step takes 1 of 4 GB"
    assert not loop.policy.net.is_gradient_checkpointing
    said = recompute.decide(loop, Card(10**9 - states, 10**9))
    assert said == "on: without it a step takes 1 of 1 GB" and loop.policy.net.is_gradient_checkpointing
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in loop.policy.parameters())
    assert not loop.optimizer.state and loop.step == 0


def test_it_is_on_where_the_look_runs_out_of_memory(run, loop_of, monkeypatch):
    store, recipe = run()
    loop = loop_of(store, recipe)

    def full(net, batch):
        raise torch.OutOfMemoryError("Tried to allocate 20 GiB")

    monkeypatch.setattr(loop, "residuals", full)
    said = recompute.decide(loop, Card(0, 80 * 10**9))
    assert said == "on: without it a micro-batch runs out of the 80 GB that are there"
    assert loop.policy.net.is_gradient_checkpointing


def test_what_is_configured_is_not_looked_into(run, loop_of):
    store, recipe = run()
    for asked, said in ((True, "on, as configured"), (False, "off, as configured")):
        loop = loop_of(store, recipe, gradient_checkpointing=asked)
        assert loop.computed["gradient checkpointing"] == said
        assert loop.policy.net.is_gradient_checkpointing is asked


def test_the_look_is_at_the_largest_micro_batch_that_is_cached(run, loop_of, pair_rows):
    rows = pair_rows(3) + pair_rows(2, seed=1, size=(128, 64)) + pair_rows(1, seed=2, size=(64, 96))
    store, recipe = run(rows=rows)
    loop = loop_of(store, recipe, batch_size=3, steps=4)
    batch = recompute.largest(loop)
    assert len(batch.latents) == 6
    sizes = [tuple(found.latents.shape[1:]) for step in range(4) for found in loop.micro_batches(step)[0]]
    assert batch.latents[0].numel() == max(torch.Size(size).numel() for size in sizes)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_look_changes_no_step(run, loop_of, gradients, dropout):
    store, recipe = run(lora=Lora(rank=4, dropout=dropout))
    plain, looked = loop_of(store, recipe), loop_of(store, recipe)
    recompute.decide(looked, Card(1, 1))
    assert looked.policy.net.is_gradient_checkpointing and not plain.policy.net.is_gradient_checkpointing
    (shown, gradient), (again, other) = gradients(plain), gradients(looked)
    assert shown == again and torch.equal(gradient, other)
