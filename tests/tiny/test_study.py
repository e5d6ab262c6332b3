"""The study of pipelines/study on a few requests: its order, its resume, its sharing, and the numbers of its table."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

FOLDER = Path(__file__).parents[2] / "pipelines" / "study"
SMALL = {"steps": 1, "batch_size": 2, "warmup": 0, "lora": {"rank": 2, "targets": ["to_q"]}}


@pytest.fixture
def study(monkeypatch):
    """The modules (run, table), with four requests of each split."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import run
    import table

    everything = run.requests(0.3)
    few = [row for split in ("train", "valid", "test") for row in [r for r in everything if r["split"] == split][:4]]
    monkeypatch.setattr(run, "requests", lambda share: few)
    return run, table


def test_a_study_stops_goes_on_and_looks_at_held_out_requests_last(study, tmp_path, monkeypatch):
    run, _ = study
    settings = run.read_settings(FOLDER / "study.yaml", now=True)
    settings["recipe"]["generate"]["own"] |= {"n": 4, "steps": 2}
    settings["train"] |= SMALL
    settings["eval"] |= {"seeds": 2, "best_of": 4}
    measured: list[tuple[str, str]] = []
    write = run.write_json
    monkeypatch.setattr(run, "write_json", lambda path, found: (measured.append(path.stem), write(path, found)))

    stopped = run.Study(tmp_path, settings, until=0.0)
    stopped.run(["dpo"], ["topk"], [0])
    assert measured == ["settings"] and not (tmp_path / "study.csv").exists()

    whole = run.Study(tmp_path, settings, until=time.time() + 1000)
    whole.run(["dpo"], ["topk"], [0])
    made = [name for name in measured if name != "settings"]
    assert made[:2] == ["0_valid_dpo_0_topk", "0_valid_dpo_1_topk"]
    assert len(made) == 3 and made[2] in {"0_test_dpo_0_topk", "0_test_dpo_1_topk"}
    for what in ("latents", "conditions"):  # of two strengths and two controls
        assert len(list((tmp_path / "seed-0/train/.cache").glob(f"*/{what}"))) == 1
    frame = pd.read_csv(tmp_path / "study.csv")
    assert len(frame) == 5 and frame.cell.str.startswith("control").sum() == 4  # sft, flipped, best of 2 and of 4
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    run.Study(tmp_path, settings, until=0.0).run(["dpo"], ["topk"], [0])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")} == before
    with pytest.raises(SystemExit, match="other settings"):
        run.Study(tmp_path, settings | {"gate": 0.5}, until=0.0)

    for objective in settings["objectives"]:  # each can be trained as the grid asks for it
        cell = run.Cell(objective, 0, "topk", 0)
        run.Run(recipe=whole.recipe(cell)).train([cell.name])


def test_validation_requests_are_neither_trained_on_nor_held_out(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import run

    from prefkit.tiny.source import rows

    splits = {
        split: {r["prompt"] for r in run.requests(0.3) if r["split"] == split} for split in ("train", "valid", "test")
    }
    assert splits["test"] == {r["prompt"] for r in rows() if r["split"] == "test"}
    assert len(splits["valid"]) > 15 and not splits["valid"] & (splits["train"] | splits["test"])


def test_best_of_is_the_mean_over_all_choices(study):
    _, table = study
    rng = np.random.default_rng(0)
    ids = [f"{request}{i}" for request in "ab" for i in range(5)]
    reward = pd.DataFrame({"request_id": [i[0] for i in ids], "id": ids, "value": rng.normal(size=10)})
    judge = reward.assign(value=rng.integers(0, 2, 10).astype(float)).sample(frac=1, random_state=0)
    found = table.best_of(reward, judge)
    for n, request in itertools.product(range(1, 6), "ab"):
        liked = reward[reward.request_id == request].set_index("id").value
        seen = judge.set_index("id").value
        expected = np.mean([seen[liked[list(some)].idxmax()] for some in itertools.combinations(liked.index, n)])
        assert found[str(n)][0][request] == pytest.approx(expected, abs=1e-12)


def outcome(gain: float, moved: float = 0.3, fidelity: float = 0.0, diversity: float = 1.0):
    gains = {f"r{i}": gain + 0.01 * (i % 3 - 1) for i in range(30)}
    return {
        "gain": gain,
        "gain_fidelity": fidelity,
        "gains": {"palette": gains, "fidelity": dict.fromkeys(gains, fidelity), "taste": gains},
        "moved": moved,
        "diversity": diversity,
        "image_diversity": 1.0,
    }


@pytest.mark.parametrize(
    "cells, word",
    [
        ([outcome(0.2), outcome(0.3)], "yes"),
        ([outcome(0.2), outcome(0.0)], "seed 1 not above 0"),
        ([outcome(0.04), outcome(0.04)], "not above sft"),
        ([outcome(0.2), outcome(0.2, fidelity=-0.1)], "loses prompt fulfilment"),
        ([outcome(0.2, diversity=0.7), outcome(0.2)], "backgrounds less diverse"),
        ([outcome(0.2), outcome(0.2, moved=0.04)], "moved by less than 0.05 seed distances"),
    ],
)
def test_the_rule(study, cells, word):
    _, table = study
    row = table.row_of("x", cells, {"sft": [outcome(0.05), outcome(0.05)]}, [outcome(0.1)], gate=0.05)
    assert row["supported"] == word
    assert row["gain"] == pytest.approx(np.mean([cell["gain"] for cell in cells]), abs=1e-12)
    assert row["over_dpo"] == pytest.approx(row["gain"] - 0.1, abs=1e-12)
    assert row["low"] < row["gain"] < row["high"]


def test_the_strength_with_the_larger_gain_of_both_judges_is_chosen(study):
    _, table = study
    tried = [[{"models": {"m": outcome(gain, fidelity=kept)}}] for gain, kept in ((0.2, 0.0), (0.3, -0.2), (0.1, 0.1))]
    assert table.chosen(tried) == 0
    assert table.chosen(tried[1:]) == 1


def test_objectives_that_the_study_does_not_support_are_called_experimental():
    """sft is the baseline, in nobody's doubt."""
    frame = pd.read_csv(FOLDER / "now.csv")
    own = frame[frame.cell.str.endswith(", topk")]
    supported = {cell.split(" ")[0] for cell in own.cell[own.supported == "yes"]}
    objectives = FOLDER.parents[1] / "prefkit" / "train" / "objectives"
    called = {
        name for name in own.cell.str.split(" ").str[0] if "(experimental)" in (objectives / f"{name}.py").read_text()
    }
    assert called == set(own.cell.str.split(" ").str[0]) - supported - {"sft"}
    page = (FOLDER.parents[1] / "docs/results/objectives.md").read_text()
    assert all(f"`{name}`" in page.split("By the rule, ")[1].split(" are supported")[0] for name in supported)
