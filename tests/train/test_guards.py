"""What has gone wrong in trainers before, each with a test that would catch it here."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from prefkit.config import Lora
from prefkit.errors import FingerprintError, StoreError, UsageError
from prefkit.train import checkpoint
from prefkit.train.run import run_train


def test_a_missing_image_is_named_by_row(run, pair_rows):
    rows = [
        row | {f"image_{side}_uid": f"{i}{side}".ljust(64, "0") for side in (0, 1)}
        for i, row in enumerate(pair_rows(4))
    ]
    rows[2]["jpg_1"] = None
    store, recipe = run(rows=rows)
    with pytest.raises(UsageError, match="row 2: neither the row nor the run's candidates hold"):
        run_train(store, recipe, "dpo")


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.pt", "state.json"])
def test_a_full_disk_while_saving_leaves_the_checkpoint_before(tmp_path, monkeypatch, file):
    weights = {"a": torch.arange(4.0)}
    checkpoint.save(tmp_path, 1, weights, {"x": 1}, {})
    where = {"weights.safetensors": (checkpoint.safetensors.torch, "save_file"), "optimizer.pt": (torch, "save"),
             "state.json": (checkpoint.json, "dumps")}[file]  # fmt: skip

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(*where, full)
        with pytest.raises(StoreError, match=r"No space left.*intact"):
            checkpoint.save(tmp_path, 2, {"a": torch.zeros(4)}, {"x": 2}, {})
    found = checkpoint.load_last(tmp_path)
    assert found is not None and torch.equal(found[0]["a"], weights["a"]) and found[2]["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


KILLED = """
import os, signal, sys, pathlib
import torch
from prefkit.train import checkpoint
folder = pathlib.Path(sys.argv[1])
checkpoint.save(folder, 1, {"a": torch.ones(4)}, {"x": 1}, {})
def dies(*args):
    os.kill(os.getpid(), signal.SIGKILL)
place, name = {"write": (torch, "save"), "rename": (os, "replace")}[sys.argv[2]]
setattr(place, name, dies)
checkpoint.save(folder, 2, {"a": torch.zeros(4)}, {"x": 2}, {})
"""


@pytest.mark.parametrize("moment", ["write", "rename"])
def test_kill_9_while_saving_leaves_the_checkpoint_before(tmp_path, moment, forks):
    done = forks.run(tmp_path, moment, code=KILLED)
    assert done.returncode == -9, done.stderr
    assert checkpoint.last_step(tmp_path) == 1
    found = checkpoint.load_last(tmp_path)
    assert found is not None and torch.equal(found[0]["a"], torch.ones(4)) and found[1] == {"x": 1}


@pytest.mark.parametrize("lora", [None, Lora(rank=4)])
def test_policy_and_reference_are_two(run, loop_of, lora):
    """If they were one, the margin would be zero whatever the policy does."""
    loop = loop_of(*run(lora=lora, learning_rate=1e-2))
    loop.run()
    (batch,) = loop.micro_batches(0)[0]
    with torch.no_grad():
        _, shown = loop.losses(batch)
    assert shown["margin"].abs().min() > 1e-2
    if lora is None:
        assert {id(p) for p in loop.policy.net.parameters()}.isdisjoint(map(id, loop.policy.frozen.parameters()))


def test_labels_decide_who_wins(run, pair_rows, loop_of, gradients):
    """The same images with the labels swapped: the same start, and the gradient turned round."""
    rows = pair_rows(4)
    swapped = [row | {"label_0": row["label_1"], "label_1": row["label_0"]} for row in rows]
    found = [
        gradients(loop_of(*run(rows=r, lora=None, where=w, batch_size=4)))[1] for r, w in ((rows, "a"), (swapped, "b"))
    ]
    assert (found[0] + found[1]).norm() < 1e-3 * found[0].norm()


def members(batches):
    """(pair, rank, time, noise) of every sample."""
    for batch in batches:
        for place, index in enumerate(batch.groups.index.tolist()):
            pair, rank = batch.members[index].id, int(batch.groups.rank[place])
            yield pair, rank, float(batch.draw.time[place]), batch.draw.noise[place]


def test_no_group_is_split_between_micro_batches(run, pair_rows, loop_of):
    rows = pair_rows(5) + pair_rows(4, seed=1, size=(128, 64))
    loop = loop_of(*run(rows=rows), batch_size=3, accumulation=2)
    for step in range(4):
        for micro in loop.micro_batches(step):
            assert sum(len(batch.members) for batch in micro) == 3
            for batch in micro:
                seen = [(pair, rank) for pair, rank, *_ in members([batch])]
                assert sorted(seen) == sorted((group.id, rank) for group in batch.members for rank in (0, 1))


def test_accumulation_is_not_lost_after_an_epoch(run, loop_of):
    """8 pairs, 4 a step: steps 3 to 6 are in the second and third epoch."""
    whole, split = (loop_of(*run(lora=None), batch_size=size, accumulation=4 // size) for size in (4, 1))
    for step in range(6):
        whole.step = split.step = step
        gradients = []
        for loop in (whole, split):
            micro = loop.micro_batches(step)
            assert sum(len(batch.members) for batches in micro for batch in batches) == 4
            loop.policy.net.zero_grad()
            loop.accumulate(micro)
            gradients.append(torch.cat([p.grad.flatten() for p in loop.policy.parameters()]))
        assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[0].norm()


def test_processes_have_one_draw_for_one_group_and_share_the_pairs_out(run, loop_of):
    """What two processes see together is what one sees, draw by draw; what a seed of torch says plays no part."""
    one = loop_of(*run(), batch_size=4)
    two = loop_of(*run(), batch_size=2)
    for step in range(3):
        expected = {(pair, rank): (time, noise) for pair, rank, time, noise in members(one.micro_batches(step)[0])}
        found = {}
        for rank in (0, 1):
            torch.manual_seed(rank)
            two.processes = SimpleNamespace(rank=rank, count=2, device=one.processes.device)
            own = {(p, r): (time, noise) for p, r, time, noise in members(two.micro_batches(step)[0])}
            assert len(own) == 4 and own.keys().isdisjoint(found)
            found |= own
        assert found.keys() == expected.keys()
        for key, (time, noise) in expected.items():
            assert found[key][0] == time and torch.equal(found[key][1], noise)
            pair, rank = key
            assert torch.equal(noise, expected[pair, 1 - rank][1]) and time == expected[pair, 1 - rank][0]


def test_a_checkpoint_of_another_recipe_is_refused(run):
    store, recipe = run(steps=2)
    run_train(store, recipe, "dpo", limit=1)
    for changes in ({"learning_rate": 5e-4}, {"lora": Lora(rank=2)}, {"seed": 1}, {"precision": "bf16"}):
        other = replace(recipe, train={"dpo": replace(recipe.train["dpo"], **changes)})
        with pytest.raises(FingerprintError, match="made with other settings"):
            run_train(store, other, "dpo")
