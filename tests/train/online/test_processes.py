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


def test_two_processes_learn_what_one_learns(make, forks, tmp_path):
    """Three groups: the second process has one of them, and none in most updates; a round of one leaves it idle."""
    (tmp_path / "bright.py").write_text(BRIGHTNESS)
    score = {"bright": Score(use=f"{tmp_path}/bright.py:brightness")}
    shared = {
        "rewards": {"bright": 1.0},
        "requests": 3,
        "sample_batch": 2,
        "updates": 3,
        "watch_every": 2,
        "watch_requests": 1,
    }
    one, recipe = make(where="one", train={"batch_size": 2, "learning_rate": 1e-4}, ema=0.5, score=score, **shared)
    up = recipe.train["up"]
    small = replace(up, online=replace(up.online, requests=1, updates=1, rounds=1))
    pairs = replace(up, objective=Choice("dpo", {"beta": 20}), online=replace(up.online, ema=0.0, refresh=1))
    scored = replace(up, objective=Choice("nft"), online=replace(up.online, ema=0.0))
    recipe = replace(recipe, train={"up": up, "small": small, "pairs": pairs, "scored": scored})
    for name in recipe.train:
        run_train(one, recipe, name)
    two = Store.create(one.folder.parent / "two")
    pairs = replace(pairs, batch_size=1)  # the global batch is what counts
    changed = {"pairs": pairs, "scored": replace(scored, batch_size=1)}
    recipe = replace(recipe, run=str(two.folder), train={**recipe.train, **changed})
    (two.folder / "recipe.yaml").write_text(reader.dump(recipe))
    ranks = forks.ranks("train", two.folder)
    said = ranks[0].communicate()[1]
    assert [rank.wait() for rank in ranks] == [0, 0], said[-3000:]
    assert "6 = 3 requests x 2 each, on 2 processes" in said
    for name in recipe.train:
        mine, theirs = logged(one, name), logged(two, name)
        assert [row.keys() for row in mine] == [row.keys() for row in theirs]
        for a, b in zip(mine, theirs, strict=True):
            for key in a.keys() - {"watch", "implicit_accuracy"}:  # it counts signs of margins that are nearly 0
                rounding = 1e-5 if key == "margin" else 1e-6
                assert b[key] == pytest.approx(a[key], rel=1e-3, abs=rounding), (name, key)
            if "watch" in a:
                assert a["watch"]["bright"] == pytest.approx(b["watch"]["bright"], rel=1e-3)
        final = [
            safetensors.torch.load_file(s.train(name) / "final" / "pytorch_lora_weights.safetensors")
            for s in (one, two)
        ]
        apart = max((final[0][key] - final[1][key]).abs().max() for key in final[0])
        assert apart < 1e-5, name
        stored = [Store(s.train(name) / "rounds" / "0000").scores("bright").frame() for s in (one, two)]
        assert stored[0].sort_values("id").value.tolist() == stored[1].sort_values("id").value.tolist()
