"""The mesh study in its fast form: data, base model, scorer, pairs, every training, tables, and the cleaning of labels."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = (
    "base", "dpo-rank", "dpo-reprojection", "dpo-chance", "dpo-truth", "kto-rank", "lpo-rank", "sft-rank", "sft-chance",
    "more",
)  # fmt: skip


PROGRAM = """
import runpy, sys
from pathlib import Path
del sys.argv[0]
sys.path.insert(0, str(Path(sys.argv[0]).parent))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def python(forks):
    """python("study.py", ...): a program of the pipeline in a process of its own."""

    def call(program: str, *words: object) -> None:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = forks.run(ROOT / "pipelines" / "mesh" / program, *words, code=PROGRAM, env=environment, timeout=900)
        assert done.returncode == 0, done.stderr[-2000:]

    return call


def test_the_fast_study_makes_every_table(python, tmp_path):
    data, work = tmp_path / "data", tmp_path / "work"
    python("make_data.py", data, "--detector", "noise", "--fast", "--workers", 1)
    python("study.py", data, work, "--seeds", 1, "--fast")
    text = (work / "results.md").read_text()
    assert text.startswith("Made with --fast")
    tables = [block for block in text.split("### ") if block.startswith("Held-out procedural")]
    assert len(tables) == 4  # clean and occluded, 4 and 10 steps
    for block in tables:
        rows = {line.split("|")[1].strip(): line for line in block.splitlines() if line.startswith("| ")}
        assert set(ROWS) <= rows.keys() and "nan" not in block
        assert all(line.count("|") == 15 for line in rows.values())

    python("clean.py", data, work, "--labels", 40, "--fast")
    text = (work / "clean.md").read_text()
    assert all(f"| {row} | test_procedural |" in text for row in ("all", "kept-rank", "kept-reprojection", "clean"))
