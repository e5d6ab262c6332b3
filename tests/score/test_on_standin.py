"""Scorers, judges and generation on the stand-in for a GPU (tests/standin.py) whose memory runs out."""

from __future__ import annotations

import numpy as np
import pytest
import standin
import torch
from PIL import Image

from prefkit.api import Run
from prefkit.score import passes
from prefkit.score.core import AdaptiveBatchSize, make_scorer, score_batch
from prefkit.types import Candidate

pytestmark = pytest.mark.standin


def above(count):
    return lambda name, shape: len(shape) > 1 and shape[0] > count


def batch(n):
    colours = np.random.default_rng(0).integers(0, 255, (n, 3))
    return [Candidate(str(i), "r", i, i, prompt="a hat", decoded=Image.new("RGB", (32, 32), tuple(map(int, c)))) for i, c in enumerate(colours)]  # fmt: skip


def test_scorers_halve_their_batch(capsys):
    scorer = make_scorer("clip", {"model": "tiny"})
    scorer.load("cuda:0", "float32")
    room, items = AdaptiveBatchSize(who="score align"), batch(8)
    standin.CALLS.clear()
    with standin.run_out(lambda name, shape: name in ("convolution", "conv2d") and shape[0] > 2):
        found = score_batch(scorer, items, room)
    assert (
        room.most == 2 and "empty_cache" in standin.CALLS and "out of memory with 8 images" in capsys.readouterr().err
    )
    fresh = make_scorer("clip", {"model": "tiny"})
    fresh.load("cuda:0", "float32")
    assert [s.value for s in found] == pytest.approx([s.value for s in score_batch(fresh, items)], abs=1e-6)
    with standin.run_out(lambda name, shape: name in ("convolution", "conv2d")):
        (alone,) = score_batch(make_loaded(), batch(9)[8:], AdaptiveBatchSize())
    assert alone.value is None and "out of memory with this image alone" in alone.error


def make_loaded():
    scorer = make_scorer("clip", {"model": "tiny"})
    scorer.load("cuda:0", "float32")
    return scorer


def test_judges_halve_their_batch_and_sample_on_the_card(vlm, capsys):
    judge = make_scorer("mllm", {"model": str(vlm), "min_mass": 0.0})
    judge.load("cuda:0", "float32")
    whole = score_batch(judge, batch(4), AdaptiveBatchSize())
    room = AdaptiveBatchSize(who="score judge")
    with standin.run_out(lambda name, shape: name == "embedding" and shape[0] > 0 and full(judge)):
        parts = score_batch(judge, batch(4), room)
    assert room.most == 2 and "out of memory with 4 images" in capsys.readouterr().err
    assert [s.value for s in whole] == pytest.approx([s.value for s in parts], rel=1e-5)
    asked = {"model": str(vlm), "answer": "text", "temperature": 0.9, "max_tokens": 4}
    texts = []
    for device in ("cpu", "cuda:0"):
        sampling = make_scorer("mllm", asked)
        sampling.load(device, "float32")
        texts.append([s.text for s in sampling.score(batch(2))])
    assert texts[0] == texts[1] and all(texts[0])


def full(judge, _seen={}):  # noqa: B006
    """True for the first forward of a judge."""
    first = id(judge) not in _seen
    _seen[id(judge)] = True
    return first


def test_scorers_do_not_share_a_pass_on_a_full_card(monkeypatch):
    assert passes.memory_free("cuda:0") > passes.ROOM
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *a: (standin.MEMORY // 4, standin.MEMORY))
    assert passes.memory_free("cuda:0") < passes.ROOM


def test_generation_and_evaluation_halve_their_batches(recipe, cli, monkeypatch):
    text = recipe.read_text().replace("batch_size: 4}", "batch_size: 4, device: cuda}")
    recipe.write_text(text)
    halves = lambda name, shape: name in ("convolution", "conv2d") and shape[0] > 4  # noqa: E731
    standin.CALLS.clear()
    with standin.run_out(halves):
        code, _, err = cli("generate", "-r", recipe, "--limit", "2")
    assert code == 0 and "out of memory; continuing with batches of 2" in err and "empty_cache" in standin.CALLS
    run = Run(recipe=recipe)
    assert len(run.candidates()) == 8 and run.candidates().error.isna().all()
    with standin.run_out(lambda name, shape: name in ("convolution", "conv2d")):
        code, _, err = cli("generate", "-r", recipe, "--generate.own.seed", "5", "--run", f"{run.folder}-none")
    assert code == 1 and "out of memory with a batch of 1" in err
