"""Calls at once, too little memory, and precision: how scorers are run, not what they say."""

from __future__ import annotations

import io
import json
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from prefkit.api import Run
from prefkit.config import Recipe, Score
from prefkit.errors import PluginError
from prefkit.score.core import AdaptiveBatchSize, out_of_memory, score_batch
from prefkit.score.overlap import in_order
from prefkit.store import Store
from prefkit.store.table import candidate_row
from prefkit.types import Candidate, Request
from prefkit.types import Score as Value

WAITS = """
import threading, time
from prefkit.types import Score, ScorerSpec

class Waits:
    requires, scope, concurrency = frozenset({"image"}), "absolute", 5
    now = most = closed = calls = 0
    sizes, lock = set(), threading.Lock()
    def spec(self): return ScorerSpec("waits", "1")
    def load(self, device, dtype): pass
    def __init__(self, options=None): pass
    def close(self): type(self).closed += 1
    def score(self, batch):
        cls = type(self)
        with cls.lock:
            cls.now += 1; cls.calls += 1
            cls.most = max(cls.most, cls.now); cls.sizes.add(len(batch))
        ANSWER
        with cls.lock:
            cls.now -= 1
        return [Score(float(c.pil().width)) for c in batch]
"""


def png(width):
    buffer = io.BytesIO()
    Image.new("RGB", (width, 4), (width, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def run(tmp_path):
    """Forty candidates of ten requests, each of its own width."""
    store = Store.create(tmp_path / "run")
    store.write_requests([Request(f"r{i}", "a hat") for i in range(10)])
    rows = [Candidate(f"c{i}", f"r{i % 10}", i, i, image=png(5 + i), sha256=str(i)) for i in range(40)]
    store.candidates("own").append([candidate_row(c) for c in rows])

    def score(text, name, **settings):
        (tmp_path / "mine.py").write_text(text)
        entry = Score(use=f"{tmp_path}/mine.py:{name}", **settings)
        return Run(recipe=Recipe(run=str(tmp_path / "run"), score={"mine": entry})).score()["mine"]

    score.store = store
    return score


def loaded_class(tmp_path, name):
    import sys

    module = next(m for key, m in sys.modules.items() if key.startswith("prefkit_file_") and str(tmp_path.name) in key)
    return getattr(module, name)


@pytest.mark.parametrize("batch", [None, 3])
def test_a_scorer_that_waits_is_called_as_often_at_once_as_it_says(run, tmp_path, batch):
    text = WAITS.replace("ANSWER", "time.sleep(0.02 if batch[0].pil().width % 4 else 0.06)")
    if batch:
        text = text.replace("concurrency = frozenset", "concurrency, batch = frozenset").replace(", 5", f", 5, {batch}")
    counts = run(text, "Waits", batch_size=16)
    found = loaded_class(tmp_path, "Waits")
    assert counts["scored"] == 40 and 2 <= found.most <= 5
    assert max(found.sizes) == (batch or 1)
    table = run.store.scores("mine").read(["id", "value"]).to_pylist()
    assert table == [{"id": f"c{i}", "value": float(5 + i)} for i in range(40)]  # in the order of the candidates


def test_an_interrupt_closes_the_scorer_and_keeps_what_was_answered(run, tmp_path, monkeypatch):
    from prefkit.score import passes

    kept, inner = [], passes.Job.keep

    def keep(self, part, scores):
        inner(self, part, scores)
        kept.append(part)
        if len(kept) == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(passes.Job, "keep", keep)
    text = WAITS.replace("ANSWER", "time.sleep(0.01)")
    with pytest.raises(KeyboardInterrupt):
        run(text, "Waits")
    found = loaded_class(tmp_path, "Waits")
    assert found.closed == 1 and found.calls < 40
    assert len(run.store.scores("mine").ids()) == 7
    monkeypatch.setattr(passes.Job, "keep", inner)
    assert run(text, "Waits")["present"] == 7 and len(run.store.scores("mine").ids()) == 40


def test_a_broken_one_stops_and_says_so(run):
    text = WAITS.replace("ANSWER", "time.sleep(0.01)").replace("for c in batch]", "for c in [*batch, batch[0]]]")
    with pytest.raises(PluginError, match="returned 2 Scores for 1 candidate;"):
        run(text, "Waits")


def test_a_silent_server_does_not_outlive_the_interrupt(run, tmp_path, faulty, monkeypatch):
    """Whatever is under way at a remote judge is cut, and no thread is left waiting for it."""
    from prefkit.score import passes

    def behave(payload, count):
        time.sleep(30)

    server = faulty(behave)
    options = {"model": "j", "server": server.url, "in_flight": 8, "cache": str(tmp_path / "a.sqlite")}
    recipe = Recipe(run=str(tmp_path / "run"), score={"q": Score("mllm", options)})

    def interrupted(call, parts, width, ahead):
        def one(part):
            if part[0][0] == "c0":
                time.sleep(0.3)
                raise KeyboardInterrupt
            return call(part)

        yield from in_order(one, parts, width, ahead)

    monkeypatch.setattr(passes, "in_order", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Run(recipe=recipe).score()
    assert 1 < server.busiest <= 8
    for thread in threading.enumerate():
        if thread.name.startswith(("judge", "call")):
            thread.join(5)
            assert not thread.is_alive()


# ---- too little memory


def cuda_says():
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def cpu_says():
    return RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
    )


class Small:
    """Has room for `room` images at once."""

    requires = frozenset({"image"})

    def __init__(self, room, says, scope="absolute"):
        self.room, self.says, self.scope, self.sizes = room, says, scope, []

    def score(self, batch):
        self.sizes.append(len(batch))
        if len(batch) > self.room:
            raise self.says()
        return [Value(float(c.index)) for c in batch]


def items(n):
    return [Candidate(f"c{i}", "r", i, i, image=png(5)) for i in range(n)]


@pytest.mark.parametrize("says", [cuda_says, cpu_says, MemoryError])
def test_out_of_memory_halves_the_batch_and_goes_on(says, capsys):
    scorer, room = Small(5, says), AdaptiveBatchSize(32, "score mine")
    found = [s for _ in range(3) for s in score_batch(scorer, items(32), room)]
    assert found == [Value(float(i)) for i in range(32)] * 3
    assert scorer.sizes[:4] == [32, 16, 8, 4] and set(scorer.sizes[4:]) == {4} and room.most == 4
    said = capsys.readouterr().err
    assert said.count("out of memory") == 1 and "score mine: out of memory with 32 images at once" in said


def test_one_image_without_room_fails_alone_and_others_are_scored(capsys):
    class Picky(Small):
        def score(self, batch):
            if any(c.index == 3 for c in batch):
                raise self.says()
            return super().score(batch)

    found = score_batch(Picky(8, cuda_says), items(8))
    assert [s.value for s in found] == [0, 1, 2, None, 4, 5, 6, 7]
    assert "out of memory with this image alone: CUDA out of memory" in found[3].error


def test_a_request_that_has_no_room_fails_whole():
    found = score_batch(Small(3, cuda_says, "within_request"), items(4))
    assert all(s.value is None and "the whole request" in s.error for s in found)


def test_the_real_error_of_torch_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert out_of_memory(caught.value)
    assert not out_of_memory(RuntimeError("shapes differ")) and not out_of_memory(ValueError("out of memory"))


def test_a_stage_says_it_once_and_its_table_is_whole(run, capsys):
    text = (
        "def f(images, prompts):\n    if len(images) > 3:\n        raise MemoryError('full')\n"
        "    return [float(i.width) for i in images]\n"
    )
    counts = run(text, "f", batch_size=16)
    assert counts["scored"] == 40 and counts["failed"] == 0
    assert run.store.scores("mine").frame().set_index("id").value.to_dict() == {f"c{i}": 5.0 + i for i in range(40)}
    assert capsys.readouterr().err.count("out of memory") == 1


# ---- precision


def test_encoders_take_the_precision_they_are_told(vlm, clip, encoder):
    from prefkit.score.embed.bertscore import BertScore
    from prefkit.score.embed.encoder import Encoder
    from prefkit.score.judge.local import LocalBackend
    from prefkit.score.judge.question import JudgeOptions

    images = [Candidate(f"c{i}", "r", i, i, "a hat", png(30 + i)) for i in range(3)]
    makers = [
        lambda: Encoder("tiny"),
        lambda: Encoder(str(clip), library="transformers"),
    ]
    for make in makers:
        full, half = make(), make()
        full.load("cpu", "float32")
        half.load("cpu", "bfloat16")
        assert {p.dtype for p in half.network.inner.model.parameters()} == {torch.bfloat16}
        assert {p.dtype for p in full.network.inner.model.parameters()} == {torch.float32}
        assert half.scale == full.scale  # read before the cast
        a, b = full.cosines(images, ["a hat"] * 3), half.cosines(images, ["a hat"] * 3)
        assert b.dtype == torch.float32 and not torch.equal(a, b)
        np.testing.assert_allclose(a, b, atol=0.03)
    judge = LocalBackend(JudgeOptions(model=str(vlm)))
    judge.load("cpu", "bfloat16")
    assert judge.model.dtype == torch.bfloat16
    text = BertScore(str(encoder), None)
    text.load("cpu", "bfloat16")
    assert {p.dtype for p in text.model.parameters()} == {torch.bfloat16}


def test_the_precision_is_part_of_what_a_score_means(run):
    text = "def f(images, prompts):\n    return [float(i.width) for i in images]\n"
    run(text, "f")
    assert json.loads((run.store.scores("mine").folder / "spec.json").read_text())["dtype"] == "float32"
    with pytest.raises(Exception, match=r"dtype: stored .float32., requested .bfloat16."):
        run(text, "f", dtype="bfloat16")
