"""Which candidates a process scores, and scorers that look at a whole request."""

from __future__ import annotations

import gc
import io
import itertools
import json

import numpy as np
import pytest
from PIL import Image

from prefkit.api import Run
from prefkit.config import Recipe, Score
from prefkit.distributed import owner
from prefkit.score.run import limited, missing_of
from prefkit.store import Store
from prefkit.store.table import candidate_row
from prefkit.types import Candidate, Request

SPREAD = (
    "import prefkit\n@prefkit.scorer(scope='within_request')\ndef f(images, prompts):\n"
    "    return [float(len(images))] * len(images)\n"
)


def png(seed):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def rows(numbers):
    return [candidate_row(Candidate(f"c{r}-{i}", f"r{r}", i, i, image=png(i))) for r, i in numbers]


@pytest.fixture
def run(tmp_path):
    store = Store.create(tmp_path / "run")
    store.write_requests([Request(f"r{i}", "a hat") for i in range(40)])

    def score(text, **settings):
        (tmp_path / "f.py").write_text(text)
        entry = Score(use=f"{tmp_path}/f.py:f", **settings)
        return Run(recipe=Recipe(run=str(tmp_path / "run"), score={"a": entry})).score()["a"]

    score.store = store
    return score


KEYS = [(f"c{i}", f"r{i % 5}") for i in range(12)]


def share(wanted, done, own, of, whole):
    return missing_of([key for key in wanted if owner(key[1], of) == own], done, whole)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("of", [1, 2, 3, 7])
def test_shares_cover_everything_whatever_each_process_has_seen(of, whole):
    """A process that looks later sees more done, and one with a late listing fewer candidates: the shares still meet."""
    for first, second in itertools.product([set(), {"c0"}, {"c0", "c5", "c7"}, {c for c, _ in KEYS[:9]}], repeat=2):
        seen = [first if own % 2 else second for own in range(of)]
        shares = [set(share(KEYS, done, own, of, whole)) for own, done in enumerate(seen)]
        late = [set(share(KEYS[::2], done, own, of, whole)) for own, done in enumerate(seen)]
        assert all(part <= full for part, full in zip(late, shares, strict=True))
        assert all(not a & b for a, b in itertools.combinations(shares, 2))
        assert {key for key in KEYS if key[0] not in first | second} <= set().union(*shares)
        owner = {request: own for own, share in enumerate(shares) for _, request in share}
        assert all(owner[request] == own for own, share in enumerate(shares) for _, request in share)


def test_a_limit_is_for_all_processes_together_and_cuts_no_request():
    for of, limit in itertools.product((1, 2, 3), (1, 4, 5, 12, 99)):
        shares = [limited(share(KEYS, set(), own, of, False), (own, of), False, limit) for own in range(of)]
        assert sum(map(len, shares)) <= limit and (of > 1 or len(shares[0]) == min(limit, 12))
    found = limited(KEYS, (0, 1), True, 4)
    assert found and all(key in found for key in KEYS if key[1] in {request for _, request in found})


def test_a_retried_generation_scores_as_if_nothing_had_failed(run):
    failed = [candidate_row(Candidate("c0-0", "r0", 0, 0, error="out of memory"))]
    run.store.candidates("own").append(failed)
    run.store.candidates("own").append(rows([(0, 1)]))
    run.store.candidates("own").append(rows([(0, 0)]))
    found = run("def f(images, prompts):\n    return [1.0] * len(images)\n", batch_size=1)
    assert found["scored"] == 2 and found["failed"] == 0
    frame = run.store.scores("a").frame()
    assert len(frame) == len(run.store.scores("a").read()) == 2 and frame.error.isna().all()


def test_one_that_failed_in_the_end_is_not_scored(run):
    run.store.candidates("own").append(rows([(0, 0), (0, 1)]))
    run.store.candidates("own").append([candidate_row(Candidate("c0-0", "r0", 0, 0, error="lost"))])
    assert run("def f(images, prompts):\n    return [1.0] * len(images)\n")["wanted"] == 1


def test_a_request_that_grew_is_scored_anew_as_a_whole(run):
    """What `within_request` says of four candidates does not compare with what it said of two of them."""
    run.store.candidates("own").append(rows([(0, 0), (0, 1), (1, 0)]))
    assert run(SPREAD)["scored"] == 3
    run.store.candidates("own").append(rows([(0, 2)]))
    found = run(SPREAD)
    assert found["wanted"] == 4 and found["present"] == 1 and found["scored"] == 3
    values = run.store.scores("a").frame().set_index("id").value
    assert values.to_dict() == {"c0-0": 3.0, "c0-1": 3.0, "c0-2": 3.0, "c1-0": 1.0}


def test_memory_holds_a_few_requests_not_the_run(run, monkeypatch):
    """Forty requests in four interleaved parts: counted are the candidates with an image that are alive at each call."""
    for index in range(4):
        run.store.candidates("own" if index % 2 else "other").append(rows([(r, index) for r in range(40)]))
    alive, asked = [], []
    text = SPREAD.replace("    return", "    count()\n    return").replace(
        "import prefkit", "import prefkit\nfrom builtins import count"
    )

    def count():
        asked.append(1)
        if len(asked) % 8 == 0:
            gc.collect()
            alive.append(sum(isinstance(o, Candidate) and o.image is not None for o in gc.get_objects()))

    monkeypatch.setattr("builtins.count", count, raising=False)
    assert run(text)["scored"] == 160 and len(asked) == 40
    # one request at work (and its copies), three decoded ahead, two in the decoders' hands
    assert max(alive) <= 2 * 4 * 6 < 160
    assert json.loads((run.store.scores("a").folder / "spec.json").read_text())["scope"] == "within_request"
