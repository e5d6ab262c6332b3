"""However a step is computed, the training is the same, and goes on exactly where it was stopped."""

from __future__ import annotations

import json

import pytest

from prefkit.train.run import run_train

SETTINGS = {"steps": 5, "batch_size": 4, "learning_rate": 1e-3, "schedule": "cosine", "warmup": 2, "validation": 1}
OTHERWISE = {"batch_size": 1, "accumulation": 4, "gradient_checkpointing": True, "cache_reference": True}


def trajectory(store):
    found = [json.loads(line) for line in (store.train("dpo") / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("seconds", "crc")} for line in found]


def test_split_checkpointed_and_kept_give_one_trajectory_and_resume_exactly(run, pair_rows):
    rows = pair_rows(4) + pair_rows(3, seed=1, size=(128, 64))
    settings = SETTINGS | {"rows": rows}
    plain, recipe = run(where="plain", **settings)
    run_train(plain, recipe, "dpo")
    whole, recipe = run(where="whole", **settings | OTHERWISE)
    run_train(whole, recipe, "dpo")
    halted, recipe = run(where="halted", **settings | OTHERWISE)
    run_train(halted, recipe, "dpo", limit=3)
    run_train(halted, recipe, "dpo")
    assert trajectory(halted) == trajectory(whole)
    measured = 0
    for mine, theirs in zip(trajectory(plain), trajectory(whole), strict=True):
        assert mine.keys() == theirs.keys() and mine["step"] == theirs["step"]
        if "validation" in mine:
            measured += 1
            assert theirs["validation"]["margin"] == pytest.approx(mine["validation"]["margin"], rel=1e-3, abs=1e-3)
        else:
            # errors near 1 are exact to 6e-8, and z is 1000 times their differences
            assert theirs["loss"] == pytest.approx(mine["loss"], abs=1e-4)
            assert theirs["margin"] == pytest.approx(mine["margin"], rel=1e-3, abs=1e-3)
            assert theirs["grad_norm"] == pytest.approx(mine["grad_norm"], rel=1e-3)
    assert measured == 4
    assert abs(trajectory(plain)[-2]["margin"]) > 1e-2  # something was learnt
