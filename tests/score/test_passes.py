"""Several aliases in one pass over the images, each with a table and failures of its own."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from prefkit.api import Run
from prefkit.config import Recipe, Score
from prefkit.errors import PluginError, UsageError
from prefkit.score import passes
from prefkit.store import Store
from prefkit.store.table import candidate_row
from prefkit.types import Candidate, Request

WIDTH = "def f(images, prompts):\n    return [float(i.width) for i in images]\n"
PIXEL = "def f(images, prompts):\n    return [float(i.getpixel((0, 0))[0]) for i in images]\n"
BROKEN = "def f(images, prompts):\n    return [1.0]\n"
FAILS = "def f(images, prompts):\n    raise ValueError('never')\n"


def png(seed):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (6, 5 + seed, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Ten candidates of two generators on a machine with memory to spare; score(alias=(text, settings)) scores with f of a file of that text."""
    monkeypatch.setattr(passes, "memory_free", lambda device: 1.0)
    store = Store.create(tmp_path / "run")
    store.write_requests([Request(f"r{i}", "a hat") for i in range(5)])
    for name, at in (("one", 0), ("two", 5)):
        rows = [Candidate(f"c{i}", f"r{i % 5}", i, i, image=png(i), sha256="same") for i in range(at, at + 5)]
        store.candidates(name).append([candidate_row(c) for c in rows])

    def score(limit=None, **aliases):
        entries = {}
        for alias, (text, settings) in aliases.items():
            (tmp_path / f"{alias}.py").write_text(text)
            entries[alias] = Score(use=f"{tmp_path}/{alias}.py:f", **settings)
        return Run(recipe=Recipe(run=str(tmp_path / "run"), score=entries)).score(limit=limit)

    score.store = store
    return score


@pytest.fixture
def decoded(monkeypatch):
    """How often each candidate was decoded."""
    seen, inner = Counter(), Candidate.pil

    def pil(self):
        if self.decoded is None:
            seen[self.id] += 1
        return inner(self)

    monkeypatch.setattr(Candidate, "pil", pil)
    return seen


def table(run, alias):
    return run.store.scores(alias).frame().set_index("id").value


def test_each_image_is_decoded_once_whatever_the_batches(run, decoded):
    counts = run(a=(WIDTH, {"batch_size": 3}), b=(PIXEL, {"batch_size": 4}))
    assert decoded == {f"c{i}": 1 for i in range(10)}
    assert counts["a"] | {"seconds": 0} == counts["b"] | {"seconds": 0} == {
        "wanted": 10, "present": 0, "scored": 10, "failed": 0, "seconds": 0,
    }  # fmt: skip
    images = {f"c{i}": Image.open(io.BytesIO(png(i))) for i in range(10)}
    assert table(run, "a").to_dict() == {cid: image.width for cid, image in images.items()}
    assert table(run, "b").to_dict() == {cid: image.getpixel((0, 0))[0] for cid, image in images.items()}


def test_every_alias_takes_up_where_it_stopped(run, decoded):
    run(a=(WIDTH, {}))
    run(limit=3, b=(PIXEL, {}))
    decoded.clear()
    counts = run(a=(WIDTH, {}), b=(PIXEL, {}), c=(WIDTH, {"generators": ["two"]}))
    assert {alias: (c["present"], c["scored"]) for alias, c in counts.items()} == {
        "a": (10, 0),
        "b": (3, 7),
        "c": (0, 5),
    }
    assert decoded == {f"c{i}": 1 for i in range(3, 10)}
    assert sorted(table(run, "c").index) == [f"c{i}" for i in range(5, 10)]
    decoded.clear()
    run(a=(WIDTH, {}), b=(PIXEL, {}), c=(WIDTH, {"generators": ["two"]}))
    assert not decoded


@pytest.mark.parametrize("broken, said", [(BROKEN, "returned 1 value for 2"), (FAILS, "every candidate failed")])
def test_a_scorer_that_breaks_stops_alone(run, broken, said):
    with pytest.raises(PluginError, match=said):
        run(bad=(broken, {"batch_size": 2}), good=(WIDTH, {}))
    assert table(run, "good").notna().sum() == 10
    assert table(run, "bad").notna().sum() == 0
    assert run(good=(WIDTH, {}))["good"]["present"] == 10


def test_an_interrupt_keeps_what_every_alias_has(run, monkeypatch):
    inner, calls = passes.Job.score, []

    def score(self, items):
        calls.append(self.name)
        if len(calls) == 4:
            raise KeyboardInterrupt
        inner(self, items)

    monkeypatch.setattr(passes.Job, "score", score)
    with pytest.raises(KeyboardInterrupt):
        run(a=(WIDTH, {"batch_size": 4}), b=(PIXEL, {"batch_size": 4}))
    assert len(table(run, "a")) == 8 and len(table(run, "b")) == 4


def test_what_one_alias_lacks_is_said_before_any_is_scored(run):
    with pytest.raises(UsageError, match="score.b: the scorer needs user"):
        run(a=(WIDTH, {}), b=("def f(images, prompts, user):\n    return []\n", {}))
    assert not run.store.scores("a").parts()


def test_without_room_for_another_network_each_scorer_goes_by_itself(run, decoded, monkeypatch):
    monkeypatch.setattr(passes, "memory_free", lambda device: 0.1)
    run(a=(WIDTH, {}), b=(PIXEL, {}))
    assert set(decoded.values()) == {2} and len(table(run, "a")) == len(table(run, "b")) == 10


class Job:
    """What `loaded` looks at."""

    exclusive, concurrency = passes.Job.exclusive, passes.Job.concurrency

    def __init__(self, name, loads, encoder=None, **scorer):
        self.name, self.loads, self.shared = name, loads, encoder
        self.scorer = type("Scorer", (), {"scope": "absolute", **scorer})()
        self.settings, self.device = Score(device="cpu"), "cpu"

    def load(self):
        self.loads.append(self.name)
        return True

    def encoder_key(self):
        return self.shared


@pytest.mark.parametrize("free, together", [(0.9, ["abce", "d", "f"]), (0.2, ["ac", "b", "d", "e", "f"])])
def test_who_shares_a_pass(monkeypatch, free, together):
    """c has a's encoder, d scores within requests, f asks to be alone."""
    monkeypatch.setattr(passes, "memory_free", lambda device: free)
    loads = []
    jobs = [
        Job("a", loads, ("clip",)),
        Job("b", loads, ("siglip",)),
        Job("c", loads, ("clip",)),
        Job("d", loads, scope="within_request"),
        Job("e", loads),
        Job("f", loads, alone=True),
    ]
    found = []
    for part in passes.loaded(jobs):
        assert loads == [*"".join(found), *(job.name for job in part)]  # nothing is loaded before its pass
        found.append("".join(job.name for job in part))
    assert found == together


def test_memory_is_a_share():
    assert 0 < passes.memory_free("cpu") < 1
