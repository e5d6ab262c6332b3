"""Two processes learn what one learns, with groups that cannot be dealt out evenly."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import safetensors.torch

from prefkit.config import Choice, Score, reader
from prefkit.store import Store
from prefkit.train.run import run_train


def logged(store, name):
    rows = map(json.loads, (store.train(name) / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if k != "crc" and not k.startswith("seconds")} for row in rows]


# pixels may differ by a level after an update: a mean hardly notices, the size of a file would
BRIGHTNESS = """
import numpy as np

def brightness(images, prompts):
    return [float(np.asarray(image, dtype=np.float64).mean()) for image in images]
"""


SHARED = {"rewards": {"bright": 1.0}, "requests": 3, "sample_batch": 2, "updates": 3}


@pytest.fixture
def score(tmp_path):
    (tmp_path / "bright.py").write_text(BRIGHTNESS)
    return {"bright": Score(use=f"{tmp_path}/bright.py:brightness")}


@pytest.fixture
def in_two(forks, tmp_path):
    """in_two(recipe): train all of it in two processes -> (store, what rank 0 wrote to stderr)."""

    def call(recipe):
        two = Store.create(tmp_path / "two")
        (two.folder / "recipe.yaml").write_text(reader.dump(replace(recipe, run=str(two.folder))))
        ranks = forks.ranks("train", two.folder)
        said = ranks[0].communicate()[1]
        assert [rank.wait() for rank in ranks] == [0, 0], said[-3000:]
        return two, said

    return call


def alike(one, two, name):
    """Both have learned the same in the training `name`, except for rounding."""
    mine, theirs = logged(one, name), logged(two, name)
    assert [row.keys() for row in mine] == [row.keys() for row in theirs]
    for a, b in zip(mine, theirs, strict=True):
        for key in a.keys() - {"watch", "implicit_accuracy"}:  # it counts signs of margins that are nearly 0
            rounding = 1e-5 if key == "margin" else 1e-6
            assert b[key] == pytest.approx(a[key], rel=1e-3, abs=rounding), (name, key)
        if "watch" in a:
            assert a["watch"]["bright"] == pytest.approx(b["watch"]["bright"], rel=1e-3)
    final = [
        safetensors.torch.load_file(s.train(name) / "final" / "pytorch_lora_weights.safetensors") for s in (one, two)
    ]
    apart = max((final[0][key] - final[1][key]).abs().max() for key in final[0])
    moved = max(value.abs().max() for key, value in final[0].items() if "lora_B" in key)  # from 0
    assert apart < 1e-5 < 4e-5 < moved, name
    stored = [Store(s.train(name) / "rounds" / "0000").scores("bright").frame() for s in (one, two)]
    assert stored[0].sort_values("id").value.tolist() == stored[1].sort_values("id").value.tolist()


def test_two_processes_learn_what_one_learns(make, in_two, score):
    """Three groups: the second process has one of them, and none in most updates; a round of one leaves it idle."""
    watched = {"watch_every": 2, "watch_requests": 1}
    train = {"batch_size": 2, "learning_rate": 1e-4}
    one, recipe = make(where="one", train=train, ema=0.5, score=score, **SHARED | watched)
    up = recipe.train["up"]
    small = replace(up, online=replace(up.online, requests=1, updates=1, rounds=1))
    pairs = replace(up, objective=Choice("dpo", {"beta": 20}), online=replace(up.online, ema=0.0, refresh=1))
    scored = replace(up, objective=Choice("nft"), online=replace(up.online, ema=0.0))
    recipe = replace(recipe, train={"up": up, "small": small, "pairs": pairs, "scored": scored})
    for name in recipe.train:
        run_train(one, recipe, name)
    changed = {"pairs": replace(pairs, batch_size=1), "scored": replace(scored, batch_size=1)}  # the global one counts
    two, said = in_two(replace(recipe, train={**recipe.train, **changed}))
    assert "6 = 3 requests x 2 each, on 2 processes" in said
    for name in recipe.train:
        alike(one, two, name)


@pytest.mark.parametrize(("kind", "objective"), [("sd", "d3po"), ("sd3", "flow_grpo")])
def test_two_processes_learn_from_steps_what_one_learns(make, in_two, score, kind, objective):
    train = {"batch_size": 2, "learning_rate": 1e-4}
    one, recipe = make(kind, "one", Choice(objective), train, score=score, rounds=1, **SHARED)
    run_train(one, recipe, "up")
    two, _ = in_two(recipe)
    alike(one, two, "up")
