"""Whole online trainings on tiny pipelines: every objective, resume, failing rewards, guards."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time

import pytest
import safetensors.torch
import torch

from prefkit.config import Choice, Score
from prefkit.errors import FingerprintError, TrainingError, UsageError
from prefkit.store import Store, read_json
from prefkit.train.run import run_train

QUICK = {"generate": {"steps": 3}}


def lines(store):
    return [json.loads(line) for line in (store.train("up") / "metrics.jsonl").read_text().splitlines()]


def adapter(store, where="final"):
    return safetensors.torch.load_file(store.train("up") / where / "pytorch_lora_weights.safetensors")


def numbers(store):
    """What was logged, without the times."""
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in lines(store)]


OBJECTIVES = [
    ("sd", "ddpo", {"updates": 2, "epochs": 2, "statistics": "running", "minimum": 2}),
    ("sd-v", "d3po", {"refresh": 1}),
    ("sd3", "flow_grpo", {"window": 2, "statistics": "grouped"}),
    ("sd3", "oft", {"mask": "box", "noise": "cps"}),
    ("sd", "dpo", {"refresh": 1}),
    ("sd3", "sft", {}),
]


@pytest.mark.parametrize(("kind", "name", "online"), OBJECTIVES, ids=[name for _, name, _ in OBJECTIVES])
def test_every_objective_learns_from_rounds(make, tmp_path, kind, name, online):
    (tmp_path / "box.py").write_text(BOX)
    score = {"box": Score(use=f"{tmp_path}/box.py:Box", device="cpu")}
    store, recipe = make(kind, objective=Choice(name), score=score, **QUICK, **online)
    found = run_train(store, recipe, "up")
    assert found["done"] and found["rounds"] == 2 and found["queries"] == 8
    changed = {key: value for key, value in adapter(store).items() if "lora_B" in key}
    assert any(value.any() for value in changed.values())
    rows = lines(store)
    assert len(rows) == 2 and all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in rows)
    if name not in ("dpo", "sft"):
        assert rows[0]["drift"] <= 1e-6
    round_ = Store(store.train("up") / "rounds" / "0001")
    assert round_.exists() and len(list(round_.iter_candidates())) == 4
    assert round_.scores("size").frame().value.notna().all()
    assert read_json(store.train("up") / "trained_on.json")["scorers"] == ["size"]


def test_full_weights_and_an_average_of_them(make):
    store, recipe = make(train={"lora": None, "learning_rate": 1e-4}, ema=0.5, rounds=1, **QUICK)
    assert run_train(store, recipe, "up")["done"]
    assert (store.train("up") / "final" / "model_index.json").is_file()


def test_resume_equals_an_uninterrupted_training(make):
    settings = {"rounds": 3, "ema": 0.5, "watch_every": 1, "watch_requests": 1, "statistics": "running", "minimum": 2}
    whole, recipe = make(where="whole", **QUICK, **settings)
    run_train(whole, recipe, "up")
    parts, recipe = make(where="parts", **QUICK, **settings)
    assert not run_train(parts, recipe, "up", limit=1)["done"]
    assert run_train(parts, recipe, "up", limit=1)["rounds"] == 2
    assert run_train(parts, recipe, "up")["done"]
    assert numbers(parts) == numbers(whole)
    for key, tensor in adapter(whole).items():
        assert torch.equal(tensor, adapter(parts)[key])
    assert (whole.train("up") / "watch" / "round-0003.png").is_file() and (whole.train("up") / "best").is_dir()


def test_a_killed_training_goes_on_at_the_start_of_its_round(make, tmp_path):
    whole, recipe = make(where="whole", rounds=2, **QUICK)
    run_train(whole, recipe, "up")
    store, recipe = make(where="killed", rounds=2, **QUICK)
    from prefkit import recipe as reader

    (store.folder / "recipe.yaml").write_text(reader.dump(recipe))
    process = subprocess.Popen([sys.executable, "-m", "prefkit", "train", str(store.folder), "-q"])
    try:
        until = time.monotonic() + 60
        while not (store.train("up") / "rounds" / "0001").is_dir() and time.monotonic() < until:
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    assert not (store.train("up") / "final").exists()
    run_train(store, recipe, "up")
    assert numbers(store) == numbers(whole)
    assert all(torch.equal(tensor, adapter(store)[key]) for key, tensor in adapter(whole).items())


BOX = """
from dataclasses import dataclass
from prefkit.types import Score, ScorerSpec

class Box:
    requires, scope = frozenset({"image"}), "absolute"
    def __init__(self, options=None): pass
    def spec(self): return ScorerSpec("box", "1")
    def load(self, device, dtype): pass
    def score(self, batch):
        return [Score(1.0, {"box_left": 0.0, "box_top": 0.0, "box_right": 0.5, "box_bottom": 1.0}) for _ in batch]
"""

SCORERS = """
import time

def some_fail(images, prompts):
    values = []
    for image in images:
        brightness = sum(image.convert("L").resize((1, 1)).getdata())
        values.append({0: None, 1: float("nan")}.get(hash(image.tobytes()) % 5, brightness))
    return values

def broken(images, prompts):
    raise RuntimeError("out of order")

def silent(images, prompts):
    time.sleep(30)

def same(images, prompts):
    return [1] * len(images)
"""


def with_scorer(make, tmp_path, name, **online):
    (tmp_path / "scorers.py").write_text(SCORERS)
    score = {"mine": Score(use=f"{tmp_path}/scorers.py:{name}", batch_size=1)}
    return make(score=score, rewards={"mine": 1.0}, **QUICK, **online)


def test_failed_rewards_are_left_out_and_counted(make, tmp_path):
    store, recipe = with_scorer(make, tmp_path, "some_fail", samples=10, requests=1, max_failed=0.95, rounds=2)
    run_train(store, recipe, "up")
    failed = [row["failed"] for row in lines(store)]
    stored = [Store(store.train("up") / "rounds" / n).scores("mine").frame() for n in ("0000", "0001")]
    assert failed == [int(frame.value.isna().sum()) for frame in stored]
    assert all((frame.value.dropna() != 0).all() for frame in stored)


@pytest.mark.parametrize(("name", "said"), [("broken", "out of order"), ("silent", "no answer within 0.5 s")])
def test_rewards_that_never_come_stop_the_training_with_their_reason(make, tmp_path, name, said):
    store, recipe = with_scorer(make, tmp_path, name, reward_timeout=0.5)
    with pytest.raises(TrainingError, match=said):
        run_train(store, recipe, "up")
    assert not (store.train("up") / "final").exists()


def test_a_reward_that_is_the_same_for_all_is_told(make, tmp_path):
    store, recipe = with_scorer(make, tmp_path, "same", statistics="group")
    run_train(store, recipe, "up")
    assert [row["flat_groups"] for row in lines(store)] == [2.0, 2.0]
    assert all("loss" not in row for row in lines(store))


def test_what_cannot_work_is_refused_before_anything_is_loaded(make, capsys):
    for changes, said in [
        ({"rewards": {}}, "rewards"),
        ({"rewards": {"nothing": 1.0}}, "nothing"),
        ({"samples": 1, "statistics": "group"}, "2 or more"),
        ({"statistics": "mood"}, "mood"),
        ({"updates": 9}, "updates"),
        ({"requests": 60}, "requests"),
        ({"generator": "other"}, "other"),
        ({"noise": "sde"}, "ddim"),
        ({"pair": "main"}, "main"),
    ]:
        store, recipe = make(**changes)
        with pytest.raises(UsageError, match=said):
            run_train(store, recipe, "up")
    store, recipe = make(samples=4, statistics="group", rounds=1, **QUICK)
    run_train(store, recipe, "up")
    told = capsys.readouterr().err
    assert "below 12" in told and "8 = 2 requests x 4 each" in told
    store, recipe = make(samples=4, statistics="grouped", rounds=1, **QUICK)
    with pytest.raises(FingerprintError, match="online"):
        run_train(store, recipe, "up")


def test_a_drift_between_sampling_and_training_is_explained(make):
    store, recipe = make(max_drift=-1.0, **QUICK)
    with pytest.raises(TrainingError, match="precision.*batch shape.*guidance"):
        run_train(store, recipe, "up")


def test_the_stop_rule_needs_two_looks_in_a_row():
    from prefkit.train.online.guards import StopRule

    rule = StopRule(0.5)
    looks = [(-0.6, 1.0), (-0.4, 1.0), (-0.6, -1.0), (-0.6, 1.0), (-0.7, 1.2)]
    assert [rule.look(*look) for look in looks] == [False, False, False, False, True]
    assert not any(StopRule(0.0).look(-9, 9) for _ in range(3))
