"""The recipes for cards of 12, 24 and 80 GB ask for no more than their cards have, as benchmarks/memory.py counts it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from prefkit.config import reader as recipe

ROOT = Path(__file__).parents[2]
CONTEXT = 2.0  # GiB for what is not counted


@pytest.fixture(scope="module")
def memory():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import memory

    yield memory
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.mark.parametrize("model, card, side", [("sd15", 12, 512), ("sdxl", 24, 1024), ("flux", 80, 1024)])
def test_a_preset_fits_its_card(memory, model: str, card: int, side: int):
    path = ROOT / "pipelines" / f"{model}_{card}gb.yaml"
    train = recipe.read(path).train["dpo"]
    found = memory.estimate(model, side, train.batch_size, train.lora.rank, None, False)
    assert found["sum"] + CONTEXT < card * 1e9 / 2**30 and found["caches"] + CONTEXT < card * 1e9 / 2**30
    said = re.search(r"([\d.]+) GiB in training", path.read_text())
    assert said is not None and float(said[1]) == pytest.approx(found["sum"], abs=0.06)


def test_what_autograd_keeps_is_counted_once(memory):
    net = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 2))
    with memory.kept(net) as found:
        net(torch.randn(5, 4))
    # the first layer keeps its input; the sigmoid keeps its output, which is the second layer's input
    assert found["all"] == 4 * (5 * 4 + 5 * 8)
