"""train.seed seeds every draw of training and no draw of a measurement."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from prefkit.config import Choice, Train
from prefkit.store import Store
from prefkit.train.data.augment import Augmentation
from prefkit.train.data.groups import groups_of
from prefkit.train.data.pairs import PairSource, read_pairs
from prefkit.train.run import run_train
from prefkit.train.setup import Job


def drawn(loop, steps=4):
    """(group, visit) -> (time, noise, latents of the winner) in the first steps."""
    found = {}
    for step in range(steps):
        visits = [both for own in loop.batch_indices(step) for both in own]
        for group, visit in visits:
            (batch,) = loop.data.batches(loop.family, [(group, visit)])
            found[group.id, visit] = batch.draw.time[0].item(), batch.draw.noise[0], batch.latents[0]
    return found


@pytest.mark.parametrize("kind", ["sd", "flux"])
def test_seeds_share_no_draw_of_training_and_every_draw_of_a_measurement(run, pair_rows, loop_of, kind):
    store, recipe = run(kind, rows=pair_rows(12), validation=4)
    first, second, again = (loop_of(store, recipe, seed=seed) for seed in (0, 1, 0))
    one, two, same = drawn(first), drawn(second), drawn(again)
    shared = one.keys() & two.keys()
    assert len(shared) >= 4
    for key in shared:
        assert one[key][0] != two[key][0]
        assert not torch.equal(one[key][1], two[key][1])
        assert torch.equal(one[key][2], two[key][2])
    assert one.keys() == same.keys()
    assert all(torch.equal(a, b) for key in one for a, b in zip(one[key][1:], same[key][1:], strict=True))
    measured = [loop.measure(reference=True) for loop in (first, second)]
    assert torch.equal(*measured)


def test_views_and_flipped_labels_follow_the_seed(pair_rows, write_pairs, tmp_path):
    pairs = read_pairs(
        PairSource.find(Store.create(tmp_path / "run"), str(write_pairs(tmp_path / "pairs", pair_rows(12))))
    )
    objective = type("Pairs", (), {"shape": "pair"})
    config = Train(flip=True)
    mirrored = {
        seed: [Augmentation(True, seed).at(pair, v).win.flip for pair in pairs for v in range(8)] for seed in (0, 1)
    }
    assert mirrored[0] != mirrored[1]
    assert all(30 < sum(found) < 66 for found in mirrored.values())  # of 96, each with probability 1/2
    assert all(Augmentation(True, seed).at(pairs[0], -1) is pairs[0] for seed in (0, 1))
    turned = {seed: Job("x", replace(config, seed=seed), flip=True).groups(objective, pairs) for seed in (0, 1)}
    assert turned[0] != turned[1] != groups_of(objective, pairs, "main")


def test_errors_of_the_reference_are_kept_by_seed(run, pair_rows, loop_of):
    store, recipe = run(rows=pair_rows(8), cache_reference=True, steps=2)
    run_train(store, recipe, "dpo")
    mine, other = (loop_of(store, recipe, seed=seed) for seed in (0, 1))
    assert all(batch.reference is not None for step in range(2) for own in mine.micro_batches(step) for batch in own)
    assert all(batch.reference is None for step in range(2) for own in other.micro_batches(step) for batch in own)


def test_seeds_train_to_other_weights_from_equal_starts(run, pair_rows):
    """Only the draws depend on the seed here: full weights, all pairs in each step."""
    found = []
    for seed in (0, 1):
        store, recipe = run(
            rows=pair_rows(2), where=f"s{seed}", seed=seed, lora=None, steps=1, objective=Choice("sft"), batch_size=2
        )
        found.append(run_train(store, recipe, "dpo")["last"]["loss"])
    assert found[0] != found[1]
