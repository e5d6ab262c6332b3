"""Preflight on the embedded model: its own samples, images of its domain, and images outside of it."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest

from prefkit import tiny
from prefkit.config import Choice, Generate, Lora, Model, Recipe, Train
from prefkit.generate.run import run_generate
from prefkit.report.learning import training
from prefkit.store import Store
from prefkit.tiny.captions import asked
from prefkit.tiny.requests import requests
from prefkit.tiny.scene import Scene, render
from prefkit.train.data.groups import singles
from prefkit.train.monitor.preflight import NONE, OWN, TOO_FEW, compare
from prefkit.train.run import run_train


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """A run with 4 candidates for each of 8 prompts."""
    store = Store.create(tmp_path_factory.mktemp("preflight") / "run")
    wanted = requests("full", 8, 32)
    store.write_requests(wanted)
    train = Train(
        pairs="own", objective=Choice("dpo"), lora=Lora(rank=2), steps=1, batch_size=8, validation=0, device="cpu"
    )
    settings = Generate(n=4, steps=10, guidance=1.0, height=64, width=64)
    model = Model(base=tiny.NAME)
    recipe = Recipe(run=str(store.folder), model=model, generate={"own": settings}, train={"dpo": train})
    run_generate(store, recipe, "own", requests=wanted)
    return store, recipe


@pytest.fixture
def trained(generated, write_pairs):
    """trained(name, image, **train) -> preflight.json of a training on 16 pairs whose images are image(candidate)."""

    def make(name, image, named=False, **given):
        store, recipe = generated
        made = sorted(store.iter_candidates(), key=lambda c: (c.request_id, c.index))
        rows = []
        for a, b in zip(made[::2], made[1::2], strict=True):
            row = {"caption": a.prompt, "request_id": a.request_id, "label_0": 1.0, "label_1": 0.0}
            row |= {"jpg_0": image(a), "jpg_1": image(b)}
            rows.append(row | ({"candidate_0": a.id, "candidate_1": b.id} if named else {}))
        if not store.pairs(name).exists():
            write_pairs(store.pairs(name), rows)
        config = replace(recipe.train["dpo"], pairs=name, **given)
        run_train(store, replace(recipe, train={name: config}), name)
        return json.loads((store.train(name) / "preflight.json").read_text())

    return make


def test_images_that_the_start_made_are_near_whatever_they_are_called(trained, capsys):
    found = trained("copies", lambda candidate: candidate.image)
    low, high = found["interval"]
    assert low < 1 < high and not found["far"]
    assert found["images"] == found["own"] == found["own_of_same_requests"] == 16
    assert len(found["bins"]) == len(found["bin_ratio"]) == 5
    err = " ".join(capsys.readouterr().err.split())
    assert "copies: preflight: the initial model's error on the pairs' candidates" in err and "far from" not in err


def test_foreign_images_are_told_with_what_to_use_instead(trained, generated, png, capsys):
    rng = np.random.default_rng(0)
    found = trained("noise", lambda candidate: png(rng, (64, 64), smooth=False))
    assert found["far"] and found["ratio"] > 1.25 and found["interval"][0] > 1
    err = " ".join(capsys.readouterr().err.split())
    for remedy in ("objective sft on the winners first", "objective mapo", "the model's own candidates"):
        assert remedy in err
    page = training(generated[0])
    assert f"{found['ratio']:.2f}" in page and "far apart" in page and found["bins"][0] in page


def test_images_that_the_model_was_trained_on_are_no_alarm(trained):
    def rendered(candidate):
        wanted, buffer = asked(candidate.prompt), io.BytesIO()
        scene = Scene(wanted.item, wanted.colour, wanted.background, wanted.pattern)
        render(scene, 1000 + candidate.index).save(buffer, "PNG")
        return buffer.getvalue()

    found = trained("renders", rendered)
    assert found["ratio"] < 1 and not found["far"]


def test_no_warning_without_a_reference_but_the_numbers_are_kept(trained, png, capsys):
    rng = np.random.default_rng(0)
    found = trained("winners", lambda candidate: png(rng, (64, 64), smooth=False), objective=Choice("sft"))
    assert found["far"]
    assert "far from what this model generates" not in capsys.readouterr().err


def test_pairs_of_own_candidates_are_not_measured(trained, capsys):
    assert trained("own", lambda candidate: candidate.image, named=True)["state"] == OWN
    assert OWN in " ".join(capsys.readouterr().err.split())


def test_without_candidates_nothing_is_guessed(run, capsys):
    store, recipe = run()
    run_train(store, recipe, "dpo")
    found = json.loads((store.train("dpo") / "preflight.json").read_text())
    assert found["state"] == NONE and "ratio" not in found
    assert NONE in " ".join(capsys.readouterr().err.split()) and NONE in training(store)


def test_images_that_no_step_visits_are_measured_too(trained):
    assert trained("few", lambda candidate: candidate.image, batch_size=2)["images"] == 16  # its step visits 4


def test_measured_once(trained, generated, monkeypatch):
    again = trained("copies", lambda candidate: candidate.image)
    monkeypatch.setattr("prefkit.train.monitor.preflight.errors_by_bin", lambda *given: pytest.fail("measured again"))
    assert trained("copies", lambda candidate: candidate.image, steps=2) == again


def test_an_interval_of_two_images_is_not_believed(trained, monkeypatch):
    """With one image on either side the bootstrap's interval has no width, so any ratio above 1.25 would count as far."""
    monkeypatch.setattr("prefkit.train.monitor.preflight.singles", lambda pairs: singles(pairs)[:2])
    found = trained("two", lambda candidate: candidate.image)
    assert found["state"] == TOO_FEW and "ratio" not in found


def test_candidates_of_other_adapters_are_not_the_starts(generated):
    from prefkit.train.monitor.preflight import _own_candidates
    from prefkit.train.setup import ModelLoader

    store, recipe = generated
    plan = ModelLoader(store, recipe, recipe.train["dpo"], store.train("dpo"))
    assert len(_own_candidates(plan)) == 32
    plan.revision["adapters"] = [["another", 1.0]]
    assert _own_candidates(plan) == {}


def test_the_ratio_is_the_geometric_mean_over_bins_of_ratios_of_means():
    rng = np.random.default_rng(1)
    own, factors = rng.uniform(1, 2, (16, 5)), np.array([1.0, 1.5, 2.0, 3.0, 4.0])
    found = compare(own * factors, own)
    assert found["ratio"] == pytest.approx(36 ** (1 / 5), rel=1e-12)
    assert found["bin_ratio"] == pytest.approx(factors, rel=1e-12)
    assert found["far"] and not compare(own, own * factors)["far"]
    same = compare(own, own)
    assert same["ratio"] == 1 and same["interval"][0] < 1 < same["interval"][1] and not same["far"]
    assert not compare(own * 1.2, own)["far"]
    spread = np.full((4, 5), 1.0)
    spread[0] = 9.0  # one odd image in four: beyond 1.25 on average, and the interval reaches 1
    assert compare(spread, np.full((4, 5), 1.0))["ratio"] == pytest.approx(3)
    assert not compare(spread, np.full((4, 5), 1.0))["far"]
