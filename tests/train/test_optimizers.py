"""Optimizers by name or path: made with what is configured, resumed exactly, refused where they would not work here."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch

from prefkit.config import Lora, Train
from prefkit.errors import UsageError
from prefkit.train import optimizers
from prefkit.train.run import check_settings

BITS = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs the extra 8bit")
OWN = """
import torch
class Signs(torch.optim.Optimizer):
    def __init__(self, params, lr, weight_decay=0.0, decay=0.9):
        super().__init__(params, dict(lr=lr, decay=decay))
    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                seen = self.state[p].setdefault("seen", torch.zeros_like(p))
                seen.mul_(group["decay"]).add_(p.grad)
                p.add_(seen.sign(), alpha=-group["lr"])
"""


@pytest.fixture
def training(run, loop_of):
    """training(name, parts, **train) -> (metrics, the loop) of a training made in so many parts, each resuming the last."""
    store, recipe = run(steps=3)

    def make(name, parts=(3,), **settings):
        for steps in parts:
            loop = loop_of(store, recipe, **settings)
            loop.folder = store.train(name)
            loop.run(steps)
        lines = [json.loads(line) for line in (loop.folder / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if key not in ("seconds", "crc")} for line in lines], loop

    return make


def weights(loop):
    return torch.cat([parameter.detach().flatten() for parameter in loop.policy.parameters()])


def test_every_optimizer_resumes_exactly_and_learns_its_own_way(training, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    chosen = {
        "adamw": {},
        "adafactor": {},
        "torch.optim:SGD": {"momentum": 0.9},
        f"{tmp_path}/own.py:Signs": {"decay": 0.5},
    }
    ends = []
    for number, (optimizer, options) in enumerate(chosen.items()):
        settings = {"optimizer": optimizer, "optimizer_options": options}
        shown, whole = training(f"whole{number}", **settings)
        again, halted = training(f"halted{number}", (2, 1), **settings)
        assert halted.step == 3 and shown == again and torch.equal(weights(whole), weights(halted))
        ends.append(weights(whole))
    for i, end in enumerate(ends):
        assert all((end - other).abs().max() > 1e-6 for other in ends[:i])


@BITS
def test_states_of_8_bits_are_small_resume_exactly_and_follow_adamw(training):
    lora = Lora(rank=16)
    eight = {"lora": lora, "optimizer": "adamw8bit", "optimizer_options": {"min_8bit_size": 1}}
    shown, whole = training("whole", **eight)
    again, halted = training("halted", (2, 1), **eight)
    assert shown == again and torch.equal(weights(whole), weights(halted))
    states = [value for state in whole.optimizer.optimizer.state.values() for value in state.values()]
    tensors = [value for value in states if isinstance(value, torch.Tensor) and value.numel() > 256]
    assert tensors and all(tensor.dtype == torch.uint8 for tensor in tensors)
    plain, _ = training("plain", lora=lora)
    assert shown[-1]["margin"] != plain[-1]["margin"]
    assert shown[-1]["margin"] == pytest.approx(plain[-1]["margin"], rel=0.2)


def test_what_is_configured_reaches_the_optimizer():
    config = Train(optimizer_options={"betas": (0.5, 0.6)}, weight_decay=0.3, learning_rate=2e-4)
    (group,) = optimizers.make(config, [torch.nn.Parameter(torch.zeros(3))], "cpu").param_groups
    assert group["betas"] == (0.5, 0.6) and group["weight_decay"] == 0.3 and group["lr"] == 2e-4 and group["fused"]


@pytest.mark.parametrize(
    ("optimizer", "options", "says"),
    [
        ("adam", {}, r"train\.dpo\.optimizer: 'adam' is unknown; choose adamw, adamw8bit, adafactor"),
        ("adamw", {"momentum": 1}, r"does not accept its arguments \(lr, weight_decay, fused, momentum\)"),
        ("adamw", {"eps": -1.0}, "Invalid epsilon"),
        ("torch.optim:Rprop", {}, "weight_decay"),
        ("torch.optim:LBFGS", {}, "weight_decay"),
        ("torch.nn:Linear", {}, "not a subclass of torch.optim.Optimizer"),
        ("torch.optim:Adamm", {}, "has no Adamm"),
    ],
)
def test_what_would_not_work_is_refused_before_anything_is_loaded(optimizer, options, says):
    with pytest.raises(UsageError, match=says):
        check_settings("dpo", Train(optimizer=optimizer, optimizer_options=options))


def test_optimizers_that_need_another_loop_are_refused(tmp_path):
    closure = OWN.replace("def step(self):", "def step(self, closure):")
    schedule_free = OWN + "    def eval(self): pass\n"
    for text, says in ((closure, "a closure"), (schedule_free, "schedule-free")):
        (tmp_path / "own.py").write_text(text)
        with pytest.raises(UsageError, match=says):
            check_settings("dpo", Train(optimizer=f"{tmp_path}/own.py:Signs"))


def test_a_missing_library_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setattr(optimizers.util, "find_spec", lambda package: None)
    with pytest.raises(UsageError, match=r"needs bitsandbytes: pip install 'prefkit\[8bit\]'"):
        check_settings("dpo", Train(optimizer="adamw8bit"))
