"""The memory of `score` does not grow with the number of candidates."""

from __future__ import annotations

import io
import multiprocessing
import resource

import numpy as np
import pytest
from PIL import Image

from prefkit.config import Recipe, Score
from prefkit.score.run import run_scores
from prefkit.store import Store
from prefkit.store.table import candidate_row
from prefkit.types import Candidate, Request

N, SIDE, PART = 4, 64, 256
SCORER = """
import prefkit

@prefkit.scorer(scope="SCOPE")
def f(images, prompts):
    return [float(sum(image.resize((1, 1)).getpixel((0, 0)))) for image in images]
"""


def png(rng):
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def fill(folder, count):
    store, rng = Store.create(folder), np.random.default_rng(0)
    store.write_requests([Request(f"r{i}", f"thing {i}") for i in range(count // N)])
    rows = [Candidate(f"c{i}", f"r{i // N}", i % N, i, image=png(rng)) for i in range(PART)]
    for start in range(0, count, PART):
        ids = range(start, min(start + PART, count))
        store.candidates("own").append(
            [candidate_row(Candidate(f"c{i}", f"r{i // N}", i % N, i, image=rows[i % PART].image)) for i in ids]
        )
    return sum(len(row.image) for row in rows) / PART * count / 2**20


def peak(folder, scope):
    """Peak memory in MiB of a process that scores the run."""
    (folder.parent / f"{scope}.py").write_text(SCORER.replace("SCOPE", scope))
    recipe = Recipe(run=str(folder), score={"a": Score(use=f"{folder.parent}/{scope}.py:f", batch_size=32)})

    def work(pipe):
        run_scores(Store(folder), recipe, ["a"])
        pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)

    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=work, args=(there,))
    process.start()
    process.join()
    assert process.exitcode == 0
    return here.recv()


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["absolute", "within_request"])
def test_memory_stays_flat_over_20000_candidates(tmp_path, scope):
    fill(tmp_path / "small", 2_000)
    stored = fill(tmp_path / "large", 20_000)
    small, large = (peak(tmp_path / name, scope) for name in ("small", "large"))
    print(f"\n{scope}: {small:.0f} MiB at 2,000, {large:.0f} MiB at 20,000 candidates ({stored:.0f} MiB of images)")
    assert stored > 200 and large - small < 60
