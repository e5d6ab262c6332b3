"""`max_hours`: steps that the time pays for. No test looks at a clock; a scripted one tells the time."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from prefkit.cli.dry_run import plan
from prefkit.config import Lora
from prefkit.errors import FingerprintError, UsageError
from prefkit.store.files import read_json
from prefkit.train import budget
from prefkit.train.run import run_train

SECOND = 1 / 3600
LORA = Lora(rank=4, dropout=0.1)
SETTINGS = {"steps": 40, "warmup": 10, "schedule": "cosine", "validation": 1, "lora": LORA}
EVERY = {"checkpoint_every": 4, "validate_every": 2}


@pytest.fixture
def ticks(monkeypatch):
    """ticks(seconds) -> a clock that goes on by so much whenever it is looked at."""

    def install(seconds=1.0):
        told = [0.0]

        def clock():
            told[0] += seconds
            return told[0]

        monkeypatch.setattr(budget, "clock", clock)

    return install


def result(store):
    lines = [json.loads(line) for line in (store.train("dpo") / "metrics.jsonl").read_text().splitlines()]
    weights = safetensors.torch.load_file(store.train("dpo") / "final" / "pytorch_lora_weights.safetensors")
    return [{k: v for k, v in line.items() if k not in ("seconds", "crc")} for line in lines], weights


def same(a, b):
    return a[0] == b[0] and a[1].keys() == b[1].keys() and all(torch.equal(a[1][key], b[1][key]) for key in a[1])


def test_it_is_the_training_of_the_steps_that_fit_and_goes_on_with_them(run, ticks, capsys):
    """A step, a measurement and a checkpoint take one tick each, so that a step costs 1 + 1/2 + 1/4."""
    ticks()
    store, recipe = run(where="hours", max_hours=40 * SECOND, **SETTINGS, **EVERY)
    assert plan(store, recipe, {"train": None}, [])[0][0]["wanted"] == 40
    first = run_train(store, recipe, "dpo", limit=5)
    found = read_json(store.train("dpo") / "budget.json")
    assert found["each"] == 1.75 and found["seconds"]["step"] == 1.0
    # passed: every look since the start but the first; again: from before the loop was made to the end of two steps
    assert found["fixed"] == 14 + 3 + 3 + 2
    steps = int((40 - 22) / 1.75)
    assert not first["done"] and f"pays for {steps} steps" in capsys.readouterr().err
    assert plan(store, recipe, {"train": None}, [])[0][0]["wanted"] == steps
    ticks(1000.0)  # a slower machine finishes what was begun
    summary = run_train(store, recipe, "dpo")
    assert summary["done"] and summary["steps"] == steps
    assert not (store.train("dpo") / ".probe.tmp").exists()

    plain, other = run(where="steps", **SETTINGS | {"steps": steps, "warmup": round(10 * steps / 40)}, **EVERY)
    run_train(plain, other, "dpo")
    assert same(result(store), result(plain))
    assert read_json(store.train("dpo") / "spec.json") == read_json(plain.train("dpo") / "spec.json")
    assert run_train(store, other, "dpo") == summary  # now told in steps: the same training


def test_steps_are_the_ceiling_and_one_must_fit(run, ticks):
    ticks()
    store, recipe = run(max_hours=1.0, steps=3)
    assert run_train(store, recipe, "dpo")["steps"] == 3
    short, recipe = run(where="short", max_hours=10 * SECOND, steps=3)
    with pytest.raises(UsageError, match="pays for no step"):
        run_train(short, recipe, "dpo")
    for wrong in ({"max_hours": 0.0}, {"max_hours": -1.0}):
        with pytest.raises(UsageError, match="max_hours"):
            run_train(*run(**wrong), "dpo")


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_other_hours_are_other_steps_at_the_same_pace(run, ticks, schedule):
    ticks()
    store, recipe = run(max_hours=40 * SECOND, steps=100, schedule=schedule, checkpoint_every=100)
    few = run_train(store, recipe, "dpo", limit=4)["steps"]
    ticks(1000.0)
    longer = replace(recipe, train={"dpo": replace(recipe.train["dpo"], max_hours=46 * SECOND)})
    if schedule == "linear":
        with pytest.raises(FingerprintError):
            run_train(store, longer, "dpo")
        return
    assert few == 4
    assert run_train(store, recipe, "dpo")["steps"] == int((40 - 17) / 1.01)
    assert run_train(store, longer, "dpo")["steps"] == int((46 - 17) / 1.01)


def test_before_the_first_checkpoint_it_is_timed_anew_and_controls_take_as_many_steps(run, ticks, monkeypatch):
    from prefkit.train.trainer import Trainer

    def dies(loop, limit=None):
        raise SystemExit("killed here")

    ticks()
    store, recipe = run(max_hours=60 * SECOND, steps=1000, controls=True, checkpoint_every=1000)
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "run", dies)
        with pytest.raises(SystemExit):
            run_train(store, recipe, "dpo")
    ticks(2.0)
    found = run_train(store, recipe, "dpo")
    steps = read_json(store.train("dpo") / "budget.json")
    assert steps["seconds"]["step"] == 2.0
    assert found["steps"] == int((60 - steps["fixed"]) / steps["each"]) < 20
    assert {control["steps"] for control in found["controls"].values()} == {found["steps"]}
