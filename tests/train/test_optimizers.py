"""Optimizers by name or path: made with what is configured, resumed exactly, refused where they would not work here."""

from __future__ import annotations

import importlib.util
import json

import pytest
import safetensors.torch
import torch

from prefkit.config import Lora, Train
from prefkit.errors import UsageError
from prefkit.train import optimizers
from prefkit.train.run import check_settings, run_train

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


def trained(store):
    found = safetensors.torch.load_file(store.train("dpo") / "final" / "pytorch_lora_weights.safetensors")
    lines = [json.loads(line) for line in (store.train("dpo") / "metrics.jsonl").read_text().splitlines()]
    return found, [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_every_optimizer_resumes_exactly_and_learns_its_own_way(run, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    chosen = {
        "adafactor": {},
        "torch.optim:SGD": {"momentum": 0.9},
        f"{tmp_path}/own.py:Signs": {"decay": 0.5},
    }
    ends = []
    for number, (optimizer, options) in enumerate(chosen.items()):
        settings = {"steps": 3, "optimizer": optimizer, "optimizer_options": options}
        whole, recipe = run(where=f"whole{number}", **settings)
        run_train(whole, recipe, "dpo")
        halted, recipe = run(where=f"halted{number}", **settings)
        run_train(halted, recipe, "dpo", limit=2)
        run_train(halted, recipe, "dpo")
        weights, shown = trained(whole)
        other, again = trained(halted)
        assert shown == again and all(torch.equal(weights[key], other[key]) for key in weights)
        ends.append(torch.cat([weight.flatten() for weight in weights.values()]))
    for i, end in enumerate(ends):
        assert all((end - other).abs().max() > 1e-6 for other in ends[:i])


@BITS
def test_states_of_8_bits_are_small_resume_exactly_and_follow_adamw(run, loop_of):
    settings = {"steps": 6, "lora": Lora(rank=16), "checkpoint_every": 3}
    eight = settings | {"optimizer": "adamw8bit", "optimizer_options": {"min_8bit_size": 1}}
    whole, recipe = run(where="whole", **eight)
    run_train(whole, recipe, "dpo")
    halted, recipe = run(where="halted", **eight)
    run_train(halted, recipe, "dpo", limit=3)
    run_train(halted, recipe, "dpo")
    assert trained(whole)[1] == trained(halted)[1]
    loop = loop_of(halted, recipe)
    loop.resume()
    states = [value for state in loop.optimizer.state.values() for value in state.values()]
    tensors = [value for value in states if isinstance(value, torch.Tensor) and value.numel() > 256]
    assert tensors and all(tensor.dtype == torch.uint8 for tensor in tensors)
    plain, recipe = run(where="plain", **settings)
    run_train(plain, recipe, "dpo")
    mine, theirs = (trained(store)[1][-1]["margin"] for store in (whole, plain))
    assert mine != theirs and mine == pytest.approx(theirs, rel=0.2)


def test_what_is_configured_reaches_the_optimizer():
    config = Train(optimizer_options={"betas": (0.5, 0.6)}, weight_decay=0.3, learning_rate=2e-4)
    (group,) = optimizers.make(config, [torch.nn.Parameter(torch.zeros(3))], "cpu").param_groups
    assert group["betas"] == (0.5, 0.6) and group["weight_decay"] == 0.3 and group["lr"] == 2e-4 and group["fused"]


@pytest.mark.parametrize(
    ("optimizer", "options", "says"),
    [
        ("adam", {}, r"train\.dpo\.optimizer: 'adam' is not known; choose adamw, adamw8bit, adafactor"),
        ("adamw", {"momentum": 1}, "given lr, weight_decay, fused, momentum"),
        ("adamw", {"eps": -1.0}, "Invalid epsilon"),
        ("torch.optim:Rprop", {}, "weight_decay"),
        ("torch.optim:LBFGS", {}, "weight_decay"),
        ("torch.nn:Linear", {}, "no torch.optim.Optimizer"),
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
