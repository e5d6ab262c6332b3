"""The study: the box, the captions of the CLIP model, the tables on hand-made numbers, and the chain in its small form."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from prefkit.config import compatibility, plugin_options, reader
from prefkit.score.core import make_scorer
from prefkit.train.online import checks
from prefkit.train.run import check_settings
from prefkit.types import Candidate

ROOT = Path(__file__).parents[2]
ROWS = {
    "base": [0, 0, 1, 1],
    "base, explicit prompts": [1, 1, 1, 1],
    "SFT": [1, 0, 1, 1],
    "SFT, then OFT": [1, 1, 1, 0],
}


def test_the_box_is_that_of_the_subject(science, tmp_path):
    box = make_scorer(f"{ROOT}/pipelines/science/box.py:Box", {"margin": 0.0})
    scene = science.looks.Scene("melting", "cheese", "puddle")
    science.looks.render(scene, 4).save(tmp_path / "a.png")
    Image.new("RGB", (64, 64), "grey").save(tmp_path / "b.png")
    batch = [Candidate(n, "r", 0, 0, "", (tmp_path / f"{n}.png").read_bytes()) for n in "ab"]
    puddle, nothing = box.score(batch)
    left, top, right, bottom = puddle.aspects.values()
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("L"), float)
    outside = pixels.copy()
    outside[int(top * 64) : int(bottom * 64), int(left * 64) : int(right * 64)] = np.nan
    assert 0.1 < puddle.value < 0.6 and np.nanstd(outside) < 0.5 * pixels.std()
    assert list(nothing.aspects.values()) == [0.0, 0.0, 1.0, 1.0]
    assert box.spec().evaluation_only


def test_captions_of_other_pictures_are_wrong(science):
    import base
    import clip_base

    draw = np.random.default_rng(0)
    for scene in base.scenes(["rust", "buoyancy", "flame"]):
        assert not any(clip_base.is_true(text, scene) for text in clip_base.exchanged(scene, draw))
        assert clip_base.is_true(base.caption(scene, draw), scene)


@pytest.fixture
def rows():
    """Two seeds of four requests, of which the last two have the usual look; the pictures of ROWS at both."""
    lines = [
        {"seed": seed, "row": row, "request": f"r{i}", "index": 0, "law": "rust", "obeys": value, "reward": value}
        | {"category": "contradicts" if i < 2 else "usual", "recognized": 1, "diversity": 0.1}
        for seed in (0, 1)
        for row, values in ROWS.items()
        for i, value in enumerate(values)
    ]
    return pd.DataFrame(lines)


def test_the_tables_have_the_relative_improvement(science, rows, tmp_path):
    import results

    cells = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in results.main_table(rows).splitlines()}
    assert cells["base"][1:4] == ["0.500", "0.000", "1.000"] and cells["SFT"][1].startswith("0.750, ")
    # .25 of .5; .25 of .5, but the usual look of one is lost. Four requests are too few for an interval
    assert cells["SFT"][4] == "0.50" and cells["SFT, then OFT"][4] == "0.50"
    assert cells["SFT, then OFT"][2].startswith("1.000, **+1.000 [+1.000, +1.000]**")
    assert cells["SFT, then OFT"][3].startswith("0.500, -0.500")
    for seed, part in rows.groupby("seed"):
        results.save(part.drop(columns="seed"), tmp_path / f"seed-{seed}.csv")
    assert "Seeds 0, 1." in results.written(tmp_path)


@pytest.mark.parametrize("script", ["study", "sciscore"])
def test_tables_without_a_finished_seed(science, tmp_path, script):
    module = __import__(script)
    with pytest.raises(SystemExit, match="has no results. Run a seed first"):
        module.main([str(tmp_path), "--table"])


def test_a_missing_model_is_named(science, tmp_path):
    import sciscore

    with pytest.raises(SystemExit, match="is not a CLIP model. Train it: clip_base.py"):
        sciscore.main([str(tmp_path)])


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines" / "science").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_read_and_could_start(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = reader.read(path)
    assert found.train["oft"].start == "sft" and found.train["oft"].online.mask == "box"
    for name, config in found.train.items():
        check_settings(name, config)
        objective = plugin_options.make("objective", config.objective.use, config.objective.options)
        compatibility.check("train", name, found, objective=objective)
        if config.online:
            checks.check_settings(name, config.online)
            assert {*config.online.rewards, *config.online.watch} <= found.score.keys()
    for name, entry in found.eval.items():
        compatibility.check("eval", name, found)
        assert set(entry.scorers) <= found.score.keys()


def started(work, *options):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "pipelines" / "science" / "study.py"), str(work), "--fast", *options]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_the_small_form_is_killed_in_each_stage_and_resumed_with_the_same_numbers(tmp_path):
    arms = ("--arms", "sft,oft")
    whole = started(tmp_path / "whole", *arms)
    _, errors = whole.communicate(timeout=500)
    assert whole.returncode == 0, errors
    run = tmp_path / "killed" / "seed-0" / "study"
    stages = (
        "train/sft/spec.json",
        "train/sft/checkpoints",
        "train/oft/spec.json",
        "eval/held_out/subject/sft/run.json",
    )
    for stage in stages:
        process = started(tmp_path / "killed", *arms)
        while process.poll() is None and not (run / stage).exists():
            time.sleep(0.02)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        _, errors = process.communicate(timeout=500)
        assert process.returncode == -signal.SIGKILL, (stage, errors)
    last = started(tmp_path / "killed", *arms)
    _, errors = last.communicate(timeout=500)
    assert last.returncode == 0, errors
    assert (tmp_path / "killed" / "seed-0.csv").read_bytes() == (tmp_path / "whole" / "seed-0.csv").read_bytes()
    found = json.loads((run / "eval" / "held_out" / "result.json").read_text())
    assert {"sft", "oft"} <= set(json.dumps(found).split('"'))
