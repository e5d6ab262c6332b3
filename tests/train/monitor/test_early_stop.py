"""Early stopping on the held-out pairs."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from prefkit.config import Lora
from prefkit.errors import UsageError
from prefkit.train.monitor.early_stop import EarlyStopping
from prefkit.train.monitor.validation import Validation
from prefkit.train.run import run_train


def test_it_waits_for_a_new_best(tmp_path):
    stop = EarlyStopping(2, tmp_path)
    seen = [(stop.update(step, value), stop.over) for step, value in enumerate([0.5, 0.6, 0.6, 0.7, 0.7, 0.65])]
    assert seen == [(True, False), (True, False), (False, False), (True, False), (False, False), (False, True)]
    assert (stop.best, stop.step) == (0.7, 3)


@pytest.fixture
def scripted(monkeypatch):
    """Replaces the held-out accuracy by scripted values per step."""
    accuracies = {0: 0.5, 1: 0.6, 2: 0.8, 3: 0.7, 4: 0.8}
    measured = []
    report = Validation.report

    def told(self, errors):
        step = measured.pop()
        return report(self, errors) | {"implicit_accuracy": [accuracies[step]] * 5}

    from prefkit.train.trainer import Trainer

    validate = Trainer._validate

    def noted(self, log):
        measured.append(self.step)
        validate(self, log)

    monkeypatch.setattr(Validation, "report", told)
    monkeypatch.setattr(Trainer, "_validate", noted)


def final(store):
    return safetensors.torch.load_file(store.train("dpo") / "final" / "pytorch_lora_weights.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_training_stops_and_its_result_is_the_best(run, scripted, capsys):
    settings = {"validation": 2, "validate_every": 1, "lora": Lora(rank=2), "learning_rate": 1e-2}
    store, recipe = run(steps=9, patience=2, **settings)
    summary = run_train(store, recipe, "dpo")
    assert summary["done"] and summary["steps"] == 4 and summary["best_step"] == 2
    lines = [json.loads(line) for line in (store.train("dpo") / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation" not in line] == [1, 2, 3, 4]
    two, other = run(where="two", steps=2, **settings)
    run_train(two, other, "dpo")
    assert same(final(store), final(two))
    capsys.readouterr()
    assert run_train(store, recipe, "dpo") == summary and "already done" in capsys.readouterr().err

    parts, recipe = run(where="parts", steps=9, patience=2, **settings)  # interrupted after every step
    for _ in range(4):
        found = run_train(parts, recipe, "dpo", limit=1)
    assert found["steps"] == 4 and found["done"] and same(final(parts), final(store))


def test_a_kill_between_a_new_best_and_its_checkpoint_leaves_the_best_before(run, scripted, monkeypatch):
    """Step 2 had the best accuracy, but the resumed training ends with step 1 and has no record of it."""
    from prefkit.train.trainer import Trainer

    def dies(loop):
        if loop.step == 2:
            raise SystemExit("killed here")
        save(loop)

    save = Trainer.save
    settings = {"validation": 2, "validate_every": 1, "checkpoint_every": 1, "learning_rate": 1e-2}
    store, recipe = run(steps=3, patience=2, **settings)
    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(Trainer, "save", dies)
        run_train(store, recipe, "dpo")
    shorter = replace(recipe, train={"dpo": replace(recipe.train["dpo"], steps=1)})
    assert run_train(store, shorter, "dpo")["best_step"] == 1
    one, other = run(where="one", steps=1, **settings)
    run_train(one, other, "dpo")
    assert same(final(store), final(one))
    run_train(store, recipe, "dpo")
    kept = {path.name for path in store.train("dpo").glob("best-*")}
    assert kept == {"best-00000002.safetensors"}


def test_it_needs_pairs_to_look_at(run):
    with pytest.raises(UsageError, match="patience"):
        run_train(*run(patience=1, validation=0), "dpo")


def test_steps_may_grow_while_patience_lasts(run, scripted):
    settings = {"validation": 2, "validate_every": 1, "patience": 2, "lora": Lora(rank=2)}
    store, recipe = run(steps=2, **settings)
    assert run_train(store, recipe, "dpo")["done"]
    config = replace(recipe.train["dpo"], steps=3)
    summary = run_train(store, replace(recipe, train={"dpo": config}), "dpo")
    assert summary["steps"] == 3 and summary["best_step"] == 2 and not summary["out_of_patience"]
