"""Two processes that share the weights out give what one process gives; each goes on from the other's checkpoint."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch

from prefkit.config import Choice, Lora, compatibility, plain
from prefkit.errors import UsageError
from prefkit.train import checkpoint
from prefkit.train.run import run_train
from prefkit.train.setup import load_objective

ENTRY = """
import json, os, pathlib, sys
import torch
from prefkit.config import Choice, Lora, Model, Recipe, Train
from prefkit.store import Store
from prefkit.train.run import run_train
torch.set_num_threads(1)
rank = int(os.environ["RANK"])
for given in json.loads(pathlib.Path(sys.argv[1]).read_text()):
    objective, lora = Choice(**given["train"].pop("objective")), given["train"].pop("lora")
    train = Train(**given["train"], objective=objective, lora=Lora(**lora) if lora else None)
    recipe = Recipe(run=given["run"], model=Model(**given["model"]), train={"dpo": train})
    found = run_train(Store(given["run"]), recipe, "dpo")
    with open(f"{sys.argv[1]}-{rank}", "a") as told:
        print(found["steps"], found["done"], file=told)
"""


@pytest.fixture
def two(tmp_path):
    """two((store, recipe), ...): these trainings, one after the other, in two processes.

    Returns what they wrote to stderr, and what each was told of its trainings.
    """

    def launched(*given):
        trainings = [
            {"run": str(store.folder), "model": plain(recipe.model), "train": plain(recipe.train["dpo"])}
            for store, recipe in given
        ]
        (tmp_path / "entry.py").write_text(ENTRY)
        (tmp_path / "trainings.json").write_text(json.dumps(trainings))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
        command += ["--master_addr", "127.0.0.1", "--master_port", str(port)]
        root = str(Path(__file__).parents[2])
        paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(
            [*command, str(tmp_path / "entry.py"), str(tmp_path / "trainings.json")],
            env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stderr, [(tmp_path / f"trainings.json-{rank}").read_text() for rank in (0, 1)]

    return launched


def lines(store):
    found = [json.loads(line) for line in (store.train("dpo") / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("seconds", "crc")} for line in found]


def weights(store):
    (file,) = [
        *(store.train("dpo") / "final").glob("*.safetensors"),
        *(store.train("dpo") / "final" / "unet").glob("*.s*"),
    ]
    return safetensors.torch.load_file(file)


def alike(mine, theirs, close):
    for a, b in zip(lines(mine), lines(theirs), strict=True):
        assert a.keys() == b.keys() and a["step"] == b["step"]
        for key in a.keys() - {"step", "validation"}:
            assert b[key] == pytest.approx(a[key], rel=1e-3, abs=1e-6 if "advantage" in key else 2e-3), (a["step"], key)
        if "validation" in a:
            margins = [line["validation"]["margin"] for line in (a, b)]
            assert margins[1] == pytest.approx(margins[0], rel=1e-2, abs=5e-3)
    a, b = weights(mine), weights(theirs)
    assert a.keys() == b.keys() and all(a[key].shape == b[key].shape for key in a)
    assert max((a[key] - b[key]).abs().max() for key in a) < close


def test_shards_change_nothing(run, pair_rows, two):
    rows = pair_rows(5) + pair_rows(4, seed=1, size=(128, 64))  # so that processes have unequal numbers of sub-batches
    shared = {"rows": rows, "steps": 5, "validation": 2, "validate_every": 5}
    full = shared | {"lora": None, "learning_rate": 1e-5, "patience": 3}
    lora = shared | {"lora": Lora(rank=3), "learning_rate": 1e-3, "schedule": "cosine", "warmup": 2}
    split = {"batch_size": 2, "gradient_checkpointing": True, "checkpoint_every": 2}
    one, one_recipe = run(where="one", batch_size=4, **full)
    run_train(one, one_recipe, "dpo")
    small, small_recipe = run(where="small", batch_size=4, **lora)
    run_train(small, small_recipe, "dpo")

    many, many_recipe = run(where="many", shard="fsdp2", **full | split)
    back, back_recipe = run(where="back", batch_size=4, **lora)
    run_train(back, back_recipe, "dpo", limit=2)  # begun by one process, ended by two
    onward = replace(back_recipe.train["dpo"], shard="fsdp2", batch_size=2)
    ended = replace(back_recipe, train={"dpo": onward})
    whole, whole_recipe = run(where="whole", **full | split)  # gradients are summed during the backward pass
    stderr, told = two((many, many_recipe), (back, ended), (whole, whole_recipe))
    assert told == ["5 True\n5 True\n5 True\n"] * 2
    assert stderr.count("weights sharded over 2 processes") == 2
    alike(one, many, 2e-5)
    alike(one, whole, 2e-5)
    alike(small, back, 2e-4)
    ours, theirs = (checkpoint.load_last(store.train("dpo") / "checkpoints") for store in (one, many))
    shapes = [
        [[(key, v.shape) for key, v in held.items()] for held in (kept[0], *kept[1]["optimizer"]["state"].values())]
        for kept in (ours, theirs)
    ]
    assert shapes[0] == shapes[1]  # whole tensors, so one process may go on


def test_quantized_weights_are_not_cut(run):
    _, recipe = run()
    recipe = replace(recipe, model=replace(recipe.model, quantize="int8"))
    config = replace(recipe.train["dpo"], shard="fsdp2")
    with pytest.raises(UsageError, match="quantize"):
        compatibility.check("train", "dpo", recipe, config, load_objective("dpo", config))


@pytest.mark.parametrize(
    "given",
    [
        {"precision": "fp16"},
        {"compile": True},
        {"cache_reference": True},
        {"objective": Choice("linear")},
        {"optimizer": "adafactor"},
        {"watch": ["jpeg"]},
        {"shard": "ddp"},
    ],
)
def test_what_it_does_not_go_with_is_refused(run, given):
    with pytest.raises(UsageError, match="shard"):
        run_train(*run(**{"shard": "fsdp2"} | given), "dpo")
