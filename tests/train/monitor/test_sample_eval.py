"""The over-optimisation alarm: its requests, its conditions, and its absence of influence on the training."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace as Has

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from prefkit.config import Choice, Generate, Lora, Score
from prefkit.errors import UsageError
from prefkit.generate.generators import candidate_seed, open_generator
from prefkit.models.load.trained import trained_model
from prefkit.report.learning import training
from prefkit.train.monitor.sample_eval import SampleEvaluation, not_trained_on
from prefkit.train.run import run_train
from prefkit.types import Request

# scores the mean brightness, from which it takes what the file says about this look
FALLING = """
from pathlib import Path
import numpy as np

def score(images, prompts):
    path = Path(__file__).with_name("falls.txt")
    first, *rest = path.read_text().split()
    path.write_text(" ".join(rest or [first]))
    return [float(first) + i for i, _ in enumerate(images)]
"""


@pytest.fixture
def watched(run):
    """watched(where, **train) -> (store, recipe) with a cheap generator and the watched scorer `size`."""

    def make(where="run", kind="sd", use="jpeg", watch=("size",), **train):
        settings = {"steps": 4, "validation": 2, "watch_every": 2, "watch_requests": 2, "learning_rate": 1e-2}
        store, recipe = run(kind, where=where, watch=list(watch), **(settings | train))
        generate = {"own": Generate(steps=2, guidance=3.0, device="cpu")}
        return store, replace(recipe, generate=generate, score={"size": Score(use=use, device="cpu")})

    return make


def lines(store):
    rows = [json.loads(line) for line in (store.train("dpo") / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ("seconds", "crc")} for row in rows]


def looks(store):
    return {row["step"]: row["watch"] for row in lines(store) if "watch" in row}


def final(store):
    return safetensors.torch.load_file(store.train("dpo") / "final" / "pytorch_lora_weights.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_training_does_not_notice_looks_and_they_resume_exactly(watched):
    dropout = {"lora": Lora(rank=4, dropout=0.3)}
    whole, recipe = watched("whole", **dropout)
    summary = run_train(whole, recipe, "dpo")
    assert set(looks(whole)) == {0, 2, 4} and summary["stopped"] == "" and summary["steps"] == 4
    right = {row["step"]: row["implicit_accuracy"] for row in lines(whole) if "implicit_accuracy" in row}
    assert looks(whole)[4]["implicit_accuracy"] == pytest.approx((right[3] + right[4]) / 2)
    plain, recipe = watched("plain", watch=[], **dropout)
    run_train(plain, recipe, "dpo")
    assert [row for row in lines(whole) if "watch" not in row] == lines(plain)
    assert same(final(whole), final(plain))
    parts, recipe = watched("parts", **dropout)
    run_train(parts, recipe, "dpo", limit=3)  # between two looks
    run_train(parts, recipe, "dpo")
    assert lines(parts) == lines(whole) and same(final(parts), final(whole))


def test_a_look_sees_what_users_of_the_result_will_see(watched):
    store, recipe = watched()
    run_train(store, recipe, "dpo")
    seen = {step: np.asarray(Image.open(store.train("dpo") / "watch" / f"step-{step:06d}.png")) for step in (0, 4)}
    assert (seen[0] != seen[4]).any()
    (request,) = held_requests(store, recipe)
    for step, model in ((0, recipe.model), (4, trained_model(store.folder, recipe.model, "dpo"))):
        generate = open_generator(model, recipe.generate["own"])
        seeds = [candidate_seed(0, f"watch {request.request_id}", i) for i in (0, 1)]
        made = np.hstack([np.asarray(found["image"], np.int16) for found in generate([request, request], seeds)])
        assert abs(seen[step][:, : made.shape[1]] - made).max() <= 1


def held_requests(store, recipe):
    from prefkit.train.data.pairs import PairSource, read_pairs, request_of
    from prefkit.train.monitor.validation import split

    _, held = split(read_pairs(PairSource.find(store, "main")), recipe.train["dpo"].validation)
    return [request_of(pair, {}) for pair in held]


def test_the_alarm_sounds_and_the_second_one_stops(watched, tmp_path, capsys):
    (tmp_path / "falling.py").write_text(FALLING)
    (tmp_path / "falls.txt").write_text("10 11 9 8")
    settings = {"use": f"{tmp_path}/falling.py:score", "watch_every": 1, "steps": 5}
    settings |= {"objective": Choice("sft")}  # which has no accuracy that a fall is set against
    store, recipe = watched(**settings)
    summary = run_train(store, recipe, "dpo")
    assert (
        summary["done"]
        and summary["steps"] == 3
        and summary["best_look"] == 1
        and "watched scores fell" in summary["stopped"]
    )
    found = looks(store)
    assert [found[step]["alarm"] for step in range(4)] == [False, False, True, True]
    deviation = found[0]["size"]["std"]
    assert found[3]["gain"] == pytest.approx(-2 / deviation) and found[3]["implicit_accuracy"] is None
    assert "step 2: over-optimisation: watched scores fell" in capsys.readouterr().err
    assert "Over-optimisation alarm at step 2, 3" in training(store)
    assert run_train(store, recipe, "dpo") == summary

    (tmp_path / "falls.txt").write_text("10")
    one, recipe = watched("one", **settings | {"steps": 1})
    run_train(one, recipe, "dpo")
    assert same(final(store), final(one))  # the best look's weights are the result
    assert "No over-optimisation alarm in 2 evaluations" in training(one)

    (tmp_path / "falls.txt").write_text("10 9 8")
    warned, recipe = watched("warned", stop_drop=0.0, **settings | {"steps": 3})
    assert run_train(warned, recipe, "dpo")["steps"] == 3
    assert [looks(warned)[step]["alarm"] for step in range(4)] == [False, True, True, True]


@pytest.mark.parametrize(
    ("gain", "diversity", "accuracy", "alarm"),
    [
        (-0.5, 1.0, 0.6, True),
        (-0.49, 1.0, 0.6, False),
        (-0.5, 1.0, 0.5, False),
        (-0.5, 1.0, None, True),
        (0.5, 0.76, 0.6, False),
        (0.5, 0.74, 0.6, True),
    ],
)
def test_what_an_alarm_is(tmp_path, gain, diversity, accuracy, alarm):
    found = SampleEvaluation.__new__(SampleEvaluation)
    found.config, found.folder, found.diversity = Has(stop_drop=0.0, watch=["size"]), tmp_path, 1.0
    found.best, found.best_step, found.below, found.stopped = 9.0, 0, 0, ""
    assert found._alarm(Has(step=3), {"gain": gain, "diversity": diversity}, accuracy) == alarm


def test_the_start_is_a_look_to_come_back_to(watched, tmp_path, capsys):
    (tmp_path / "falling.py").write_text(FALLING)
    (tmp_path / "falls.txt").write_text("10 9 8")
    store, recipe = watched(use=f"{tmp_path}/falling.py:score", watch_every=1, steps=5, objective=Choice("sft"))
    summary = run_train(store, recipe, "dpo")
    assert summary["done"] and summary["steps"] == 2 and summary["best_look"] == 0  # every later look was worse


def test_all_processes_learn_which_look_was_the_best(tmp_path):
    """All processes load the best weights when rank 0 stops; only rank 0 has measured them."""
    other = SampleEvaluation.__new__(SampleEvaluation)
    other.folder, other.best_step, other.stopped, other.accuracy, other.steps = tmp_path, 0, "", 0.0, 0

    other.evaluate(Has(step=60, processes=Has(main=False, group=Has(broadcast=lambda own: ["scores fell", 40]))), None)
    assert other.stopped == "scores fell" and other.path.name.endswith("00000040.safetensors")


def test_a_look_without_any_score_says_so(tmp_path, capsys):
    found = SampleEvaluation.__new__(SampleEvaluation)
    found.config, found.folder, found.diversity = Has(stop_drop=0.0, watch=["size"]), tmp_path, 1.0
    found.best, found.best_step, found.below, found.stopped = 0.0, 0, 0, ""
    assert not found._alarm(Has(step=3), {"gain": float("nan"), "diversity": 1.0}, 0.6)
    assert "all watched scores failed" in capsys.readouterr().err and found.best_step == 0


def test_only_what_is_neither_trained_on_nor_for_tests_is_watched():
    run = [
        Request(name, name, split) for name, split in (("a", "train"), ("b", "train"), ("c", "test"), ("d", "train"))
    ]
    pairs = [Has(prompt=" A "), Has(prompt="b")]
    held = [Has(prompt="c"), Has(prompt="e")]
    data = Has(request=lambda pair: Request(f"of {pair.prompt}", pair.prompt))
    assert {r.prompt for r in not_trained_on(run, data, pairs, held)} == {"d", "e"}


def test_what_cannot_be_watched_is_refused(watched):
    with pytest.raises(UsageError, match="every request is trained on"):
        run_train(*watched("a", validation=0), "dpo")
    with pytest.raises(UsageError, match="no score is called other"):
        run_train(*watched("b", watch=["other"]), "dpo")
    store, recipe = watched("c")
    with pytest.raises(UsageError, match="no entry under `generate` has use: diffusers and samples `model` itself"):
        run_train(store, replace(recipe, generate={}), "dpo")
