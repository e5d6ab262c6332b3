"""Online training on the stand-in for a GPU (tests/standin.py): every objective, and batches that do not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import safetensors.torch
import standin
import torch

from prefkit.config import Choice, Score
from prefkit.errors import TrainingError
from prefkit.train.online.loop import OnlineTrainer
from prefkit.train.online.step_learner import StepLearner
from prefkit.train.run import run_train

pytestmark = pytest.mark.standin
CARD = {"train": {"device": "cuda"}, "generate": {"device": "cuda", "steps": 2}, "rounds": 1}
BOX = """
from prefkit.types import Score, ScorerSpec

class Box:
    scope, requires = "absolute", frozenset({"image"})

    def __init__(self, options=None):
        pass

    def spec(self):
        return ScorerSpec("box", "1")

    def load(self, device, dtype):
        pass

    def score(self, batch):
        return [Score(1.0, aspects={"box_left": 0.2, "box_top": 0.2, "box_right": 0.9, "box_bottom": 0.8}) for _ in batch]
"""
OBJECTIVES = [
    ("sd", "ddpo", {"updates": 2, "watch_every": 1, "watch_requests": 1}),
    ("sd-v", "d3po", {}),
    ("sd3", "flow_grpo", {"noise": "sde"}),
    ("sd3", "oft", {"mask": "box"}),
    ("sd", "dpo", {}),
    ("sd", "sft", {}),
    ("sd", "kto", {}),
    ("sd", "lpo", {}),
    ("sd", "linear", {}),
    ("sd", "mapo", {}),
]


def adapter(store):
    return safetensors.torch.load_file(store.train("up") / "final" / "pytorch_lora_weights.safetensors")


@pytest.mark.parametrize(("kind", "name", "online"), OBJECTIVES, ids=[name for _, name, _ in OBJECTIVES])
def test_every_objective_learns_a_round(make, tmp_path, kind, name, online):
    (tmp_path / "box.py").write_text(BOX)
    score = {"box": Score(use=f"{tmp_path}/box.py:Box")} if "mask" in online else {}
    store, recipe = make(kind, objective=Choice(name), score=score, **CARD, **online)
    assert run_train(store, recipe, "up")["done"]
    assert any(tensor.any() for key, tensor in adapter(store).items() if "lora_B" in key or "lora.up" in key)
    if name in ("dpo", "ddpo"):  # the numbers of the CPU, bit for bit
        settings = {**CARD, "train": {"device": "cpu"}, "generate": {"device": "cpu", "steps": 2}}
        other, recipe = make(kind, where="cpu", objective=Choice(name), **settings, **online)
        run_train(other, recipe, "up")
        mine, theirs = adapter(store), adapter(other)
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_offloaded_encoders_change_no_result(make):
    store, recipe = make("sd", **CARD)
    other, offloaded = make("sd", where="offloaded", **(CARD | {"generate": CARD["generate"] | {"offload": "model"}}))
    assert run_train(store, recipe, "up")["done"] and run_train(other, offloaded, "up")["done"]
    mine, theirs = adapter(store), adapter(other)
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def within(monkeypatch, owner, name, at):
    inner = getattr(owner, name)

    def full(*args, **kwargs):
        with standin.run_out(at):
            return inner(*args, **kwargs)

    monkeypatch.setattr(owner, name, full)


def test_a_round_is_sampled_in_smaller_batches(make, monkeypatch, capsys):
    store, recipe = make("sd", **CARD)
    run_train(store, recipe, "up")
    within(
        monkeypatch, OnlineTrainer, "_sample", lambda name, shape: name in ("convolution", "conv2d") and shape[0] > 4
    )
    full, recipe = make("sd", where="full", **CARD)
    assert run_train(full, recipe, "up")["done"]
    assert "train up, sampling: out of memory with 4 images at once. Continuing with 2" in capsys.readouterr().err
    mine, theirs = adapter(store), adapter(full)
    assert max((mine[key] - theirs[key]).abs().max() for key in mine) < 1e-4


def test_what_cannot_be_halved_is_explained(make, monkeypatch):
    store, recipe = make("sd", **CARD)
    within(monkeypatch, StepLearner, "learn", lambda name, shape: name in ("convolution", "conv2d"))
    with pytest.raises(TrainingError, match=r"ran out of memory in round 1\. Try, in this order: batch_size 2 \(1/2"):
        run_train(store, recipe, "up")
    within(monkeypatch, OnlineTrainer, "_sample", lambda name, shape: name in ("convolution", "conv2d"))
    with pytest.raises(TrainingError, match="sampling: out of memory even with a single image"):
        run_train(store, replace(recipe), "up")
