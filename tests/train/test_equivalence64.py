"""In float64, where sums may be ordered as one likes, every way to compute a step gives one trajectory.

In float32 an order of summation shows at 1e-5 of a loss, as large as a small mistake would. Here a mistake (an adapter that
is on where it should be off, a graph used for another network, a pair counted twice) stands alone.
"""

from __future__ import annotations

import json
import math

import pytest
import torch

from prefkit.config import Lora
from prefkit.models.trees import map_tensors
from prefkit.train import precision as computing
from prefkit.train.data.batches import Batch

SETTINGS = {"steps": 3, "batch_size": 4, "schedule": "cosine", "warmup": 1}
WAYS = {
    "split-checkpointed-kept": {
        "batch_size": 1, "accumulation": 4, "gradient_checkpointing": True, "cache_reference": True,
    },
    "compiled-checkpointed": {"compile": True, "gradient_checkpointing": True},
}  # fmt: skip


@pytest.fixture
def in_float64(monkeypatch, loop_of):
    """in_float64(store, recipe, name, **train) -> the numbers that the loop logs; from its first step on all is float64."""

    def double(batch, device):
        return batch._mapped(lambda tree: map_tensors(lambda t: t.double() if t.is_floating_point() else t, tree))

    def numbers(store, recipe, name, **settings):
        loop = loop_of(store, recipe, **settings)
        loop.folder = store.train(name)
        for net in filter(None, (loop.policy.net, loop.policy.frozen)):
            net.double()
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "float", torch.Tensor.double)  # errors, x_t and what the network casts
            patch.setattr(Batch, "to", double)
            loop.run()
        lines = [json.loads(line) for line in (loop.folder / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if key not in ("seconds", "crc")} for line in lines]

    return numbers


def flat(line, path=""):
    """Every number of a line by its path."""
    if isinstance(line, dict | list):
        items = line.items() if isinstance(line, dict) else enumerate(line)
        return {place: number for key, value in items for place, number in flat(value, f"{path}/{key}").items()}
    return {path: line} if isinstance(line, int | float) else {}


COMPILED = (Lora(rank=4), 1e-3, "eager")


# eager compiles what dynamo traces as it stands: does each of policy and reference get its own? aot_eager also makes the
# backward pass, whose sums come in another order
@pytest.mark.parametrize(("lora", "rate", "backend"), [COMPILED, (None, 1e-5, "aot_eager")])
def test_every_way_to_compute_a_step_gives_one_trajectory(run, pair_rows, in_float64, monkeypatch, lora, rate, backend):
    monkeypatch.setattr(computing, "BACKEND", backend)
    sizes = (
        [(64, 64), (128, 64)] if backend == "eager" else [(64, 64)]
    )  # with blocks of four widths, past torch's limit of 8
    rows = [row for seed, size in enumerate(sizes) for row in pair_rows(3, seed=seed, size=size)]
    store, recipe = run(rows=rows, lora=lora, learning_rate=rate, **SETTINGS)
    found = {}
    for way, otherwise in {"plain": {}, **WAYS}.items():
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
            found[way] = in_float64(store, recipe, way, **otherwise)
        assert bool(torch._dynamo.utils.counters["stats"]["unique_graphs"]) == ("compile" in otherwise)
    assert max(abs(line.get("margin", 0.0)) for line in found["plain"]) > 1e-3  # policy and reference are apart
    for way in WAYS:
        for mine, theirs in zip(found["plain"], found[way], strict=True):
            for place, number in flat(mine).items():
                other = flat(theirs)[place]
                assert math.isclose(other, number, rel_tol=1e-8, abs_tol=1e-10), (way, place, number, other)
