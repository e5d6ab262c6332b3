"""The fashion study: its measures on tables made by hand, and the whole study in its fast form (slow)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
ROWS = (
    "base", "ours, round 1", "ours, round 2", "SFT on the winners", "flipped pairs", "FashionDPO's pairs", "quality only",
    "compatibility only", "personal only", "D3PO, online", "base, best of N by the experts", "sampler: knows the rule",
)  # fmt: skip


@pytest.fixture
def modules(fashion):
    yield SimpleNamespace(**{name: __import__(name) for name in ("outcome", "summary")})
    for name in ("outcome", "summary"):
        sys.modules.pop(name, None)


def request(name, user, colours, palette):
    prompt = "a handbag to go with a red dress on a plain sky background"
    return {"request_id": name, "user": user, "prompt": prompt, "colours": colours, "palette": palette}


def test_the_shuffled_controls_leave_out_the_own_outfit_and_user(modules):
    held_out = {
        "a": request("a", "ann", ["red"], ["red"]),  # red, orange, pink and green may go with red
        "b": request("b", "ann", ["red"], ["red"]),
        "c": request("c", "bob", ["blue"], ["green"]),
        "d": request("d", "cid", ["yellow"], ["red", "blue"]),
    }
    others = modules.outcome.others
    # red goes with red of b, not with blue of c and yellow of d; bob does not like red, cid does
    assert others("red handbag on plain sky", held_out["a"], held_out) == (pytest.approx(1 / 3), 0.5)
    assert others("red top hat on plain sky", held_out["a"], held_out) == (0, 0)  # another item than asked for
    assert others("nothing known on plain sky", held_out["a"], held_out) == (0, 0)


def test_best_of_n_takes_the_largest_sum_of_the_experts_of_each_request(modules):
    rows = {"request": ["a", "a", "a", "b", "b"], "index": [0, 1, 2, 0, 1], "rule": [0, 1, 0, 1, 0]}
    experts = {"quality": [4, 5, 4.5, 5, 4], "compatibility": [0, 9, 1, 3, 3], "personal": [10, 30, 0, 5, 4]}
    chosen = modules.outcome.best_of(pd.DataFrame(rows | experts))
    assert chosen[["request", "index"]].to_numpy().tolist() == [["a", 1], ["b", 0]]


def test_a_change_is_the_mean_over_paired_requests_of_all_seeds(modules):
    rng = np.random.default_rng(0)
    lines = []
    for seed, gain in ((0, 0.1), (1, 0.3)):
        for request in range(40):
            level, noise = rng.normal(0, 5), rng.normal(0, 0.2)
            for index in range(2):
                extra = 0.5 - index  # cancels within a request
                lines.append((seed, "base", f"r{request}", index, level + extra))
                lines.append((seed, "ours, round 1", f"r{request}", index, level + extra + gain + noise))
    pictures = pd.DataFrame(lines, columns=["seed", "row", "request", "index", "rule"])
    pictures["rule_other"] = 0.0
    values = modules.summary.per_request(pictures)
    change = modules.summary.difference(values, "ours, round 1", "rule")
    noise = change.groupby(level="seed").transform(lambda group: group - group.mean())
    low, high = modules.summary.interval(change)
    error = np.sqrt((noise**2).mean() / len(change))  # the difference of the seeds does not widen the interval
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert low < change.mean() < high
    text = modules.summary.by_seed(values, "rule")
    assert f"| ours, round 1 | {change[0].mean():+.3f} | {change[1].mean():+.3f} |" in text


@pytest.mark.slow
def test_the_fast_study_makes_every_row_and_continues(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "pipelines/fashion/study.py"), str(tmp_path), "--seed", "0", "--fast"]
    texts, written = [], []
    for _ in range(2):  # the second run finds everything, and reads the same results
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-2000:]
        texts.append((tmp_path / "results.md").read_text())
        written.append({path: path.stat().st_mtime_ns for path in tmp_path.rglob("final/*.safetensors")})
    assert texts[0] == texts[1] and texts[0].startswith("Made with --fast")
    assert (
        written[0] == written[1] and len(written[0]) == 9
    )  # no training is repeated: eight of round 1, one of round 2
    lines = [line for line in texts[0].split("### ")[1].splitlines() if line.startswith("| ")]
    rows = {line.split("|")[1].strip() for line in lines}
    assert set(ROWS) <= rows and "nan" not in texts[0]
