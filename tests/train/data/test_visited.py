"""Caches hold exactly the images and prompts that a training visits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import safetensors.torch
import torch

from prefkit.config import Choice
from prefkit.train.data.cache import Cache
from prefkit.train.data.pairs import PairSource, read_pairs
from prefkit.train.run import run_train
from prefkit.train.setup import Job, visited


def cached(store):
    found = store.folder / "train" / ".cache"
    (latents,), (conditions,) = found.glob("*/latents"), found.glob("*/conditions")
    return Cache(latents), Cache(conditions)


def seen(loop):
    """Keys of the images that the loop reads in its steps."""
    return {image.key for step in range(loop.config.steps) for batches in loop.micro_batches(step)
            for batch in batches for group in batch.members for image in group.images}  # fmt: skip


def weights(store):
    return safetensors.torch.load_file(store.train("dpo") / "final" / "pytorch_lora_weights.safetensors")


@pytest.mark.parametrize(
    ("use", "settings"),
    [
        ("dpo", {}),
        ("dpo", {"accumulation": 2, "steps": 1, "cache_reference": True}),
        ("kto", {"seed": 3}),
        ("lpo", {"validation": 2}),
        ("sft", {}),
    ],
)
def test_the_loop_takes_what_is_cached_and_nothing_else_is(run, pair_rows, loop_of, use, settings):
    rows = [row | {"score_gap": 1.0} for row in pair_rows(12)]
    given = {"objective": Choice(use), "steps": 2, "batch_size": 2, **settings}
    store, recipe = run(rows=rows, **given)
    run_train(store, recipe, "dpo")
    latents, conditions = cached(store)
    other, again = run(rows=rows, where="all", **given)
    loop = loop_of(other, again)  # with everything cached
    held = {image.key for pair in (loop.validation.pairs if loop.validation else ()) for image in pair.images}
    wanted = seen(loop) | held
    assert set(latents.notes) == wanted and len(wanted) < 24
    assert 0 < len(conditions) <= len(wanted)


@pytest.mark.parametrize("processes", [1, 2])
def test_more_processes_visit_more(run, pair_rows, processes):
    store, recipe = run(rows=pair_rows(12))
    pairs = read_pairs(PairSource.find(store, "main"))
    found = visited([Job("dpo", replace(recipe.train["dpo"], steps=1))], pairs, processes)
    assert len({pair.id for pair in found}) == 2 * processes


def test_more_steps_later_and_resume_give_what_one_training_gives(run, pair_rows):
    rows = pair_rows(12)
    whole, recipe = run(rows=rows, steps=5, where="whole")
    run_train(whole, recipe, "dpo")
    store, short = run(rows=rows, steps=1)
    run_train(store, short, "dpo")
    assert len(cached(store)[0]) == 4
    longer = replace(short, train={"dpo": replace(short.train["dpo"], steps=5)})
    run_train(store, longer, "dpo", limit=2)
    assert len(cached(store)[0]) == 20
    run_train(store, longer, "dpo")
    mine, theirs = weights(store), weights(whole)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_controls_find_theirs(run, pair_rows):
    store, recipe = run(rows=pair_rows(12), steps=1, controls=True)
    found = run_train(store, recipe, "dpo")
    assert found["done"] and all(control["done"] for control in found["controls"].values())
