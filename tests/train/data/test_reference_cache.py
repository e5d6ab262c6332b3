"""Cached errors of the reference: the same training with one forward pass less, and the objectives that refuse them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from prefkit.config import Choice
from prefkit.distributed.collectives import Processes
from prefkit.errors import UsageError
from prefkit.train.data.pairs import PairSource, read_pairs
from prefkit.train.data.reference_cache import ReferenceErrorCache, keys_of
from prefkit.train.policy import Policy
from prefkit.train.run import Job, make_trainer, run_train
from prefkit.train.setup import ModelLoader, prepare


def trajectory(store, name="dpo"):
    found = [json.loads(line) for line in (store.train(name) / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("seconds", "crc")} for line in found]


def tensors(store, name="dpo"):
    return safetensors.torch.load_file(store.train(name) / "final" / "pytorch_lora_weights.safetensors")


def fails(policy):
    raise AssertionError("the reference was run")


def loop_of(store, recipe, **changes):
    config = replace(recipe.train["dpo"], cache_reference=True, **changes)
    plan = ModelLoader(store, recipe, config, store.train("dpo"))
    source = PairSource.find(store, "main")
    data = prepare(plan, read_pairs(source), source, Processes("cpu"))
    return make_trainer(plan, Job("dpo", config), data, Processes("cpu"))


@pytest.mark.parametrize("kind", ["sd", "flux"])
def test_a_sweep_looks_the_reference_up_and_learns_the_same(run, monkeypatch, kind):
    """Without the cache, while filling it, and from it alone, bit by bit. 6 steps of 2 reach the third visit of 4 pairs."""
    plain, recipe = run(kind, where="plain", steps=6)
    run_train(plain, recipe, "dpo")
    store, other = run(kind, where="kept", steps=6, cache_reference=True)
    config = other.train["dpo"]
    stronger = replace(config, objective=Choice("hinge", {"beta": 500.0}), learning_rate=1e-4)
    sweep = replace(other, train={"dpo": config, "again": config, "stronger": stronger})
    run_train(store, sweep, "dpo")
    with monkeypatch.context() as patched:
        patched.setattr(Policy, "reference", fails)
        run_train(store, sweep, "again")
        run_train(store, sweep, "stronger")
        with pytest.raises(AssertionError, match="the reference was run"):
            run_train(store, replace(sweep, train={"more": replace(config, steps=7)}), "more")
    assert trajectory(plain) == trajectory(store) == trajectory(store, "again") != trajectory(store, "stronger")
    own = tensors(plain)
    for name in ("dpo", "again"):
        assert all(torch.equal(own[key], other) for key, other in tensors(store, name).items())


def test_full_weights_are_their_own_sweep(run, monkeypatch):
    store, recipe = run(lora=None, cache_reference=True)
    half = replace(recipe.train["dpo"], precision="bf16")
    sweep = replace(recipe, train=recipe.train | {"again": recipe.train["dpo"], "half": half})
    run_train(store, sweep, "dpo")
    monkeypatch.setattr(Policy, "reference", fails)
    run_train(store, sweep, "again")
    with pytest.raises(AssertionError, match="the reference was run"):  # another precision: other numbers
        run_train(store, sweep, "half")


def test_a_training_goes_on_exactly_where_it_was_stopped(run):
    whole, recipe = run(where="whole", steps=5)
    run_train(whole, recipe, "dpo")
    store, recipe = run(where="halted", steps=5, cache_reference=True)
    run_train(store, recipe, "dpo", limit=3)
    run_train(store, recipe, "dpo")
    assert trajectory(store) == trajectory(whole)


def test_a_key_is_of_all_that_enters_the_network(run, pair_rows):
    store, recipe = run(rows=pair_rows(2))
    loop = loop_of(store, recipe)
    (batch,) = loop.data.batches(loop.family, [(pair, 0) for pair in loop.data.pairs])
    (later,) = loop.data.batches(loop.family, [(pair, 1) for pair in loop.data.pairs])
    keys = keys_of(batch, loop.data)
    assert len(set(keys) | set(keys_of(later, loop.data))) == 8
    assert (keys == keys_of(batch, loop.data)).all()
    for change in ("latents", "noise", "time", "caption"):
        (other,) = loop.data.batches(loop.family, [(pair, 0) for pair in loop.data.pairs])
        if change == "latents":
            other.latents[0, 0, 0, 0] += 1e-3
        elif change == "caption":
            other.members[0] = replace(other.members[0], prompt="another")
        else:
            getattr(other.draw, change)[0] += 1
        differing = (keys_of(other, loop.data) != keys).nonzero()[0].tolist()
        assert differing == ([0, 2] if change == "caption" else [0])  # both sides of the pair have its caption


def test_a_damaged_part_is_computed_again(run, capsys):
    store, recipe = run(cache_reference=True, checkpoint_every=100)
    run_train(store, recipe, "dpo")
    (part,) = (store.folder / "train" / ".cache").glob("*/reference/part-*")
    known = len(ReferenceErrorCache(part.parent).keys)
    assert known == 16  # 4 steps of 2 pairs
    part.write_bytes(part.read_bytes()[:100])
    run_train(store, replace(recipe, train={"again": recipe.train["dpo"]}), "again")
    assert "is damaged" in capsys.readouterr().err
    assert trajectory(store) == trajectory(store, "again")
    assert len(ReferenceErrorCache(part.parent).keys) == known


@pytest.mark.parametrize(
    "use, why",
    [("linear", "linear updates its reference"), ("mapo", "has no reference"), ("sft", "has no reference"),
     ("sdpo", "residuals, which are as large as the latents")],
)  # fmt: skip
def test_refused_where_there_is_nothing_to_keep(run, use, why):
    store, recipe = run(objective=Choice(use), cache_reference=True)
    with pytest.raises(UsageError, match=why):
        run_train(store, recipe, "dpo")
