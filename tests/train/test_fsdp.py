"""Two processes that share the weights out give what one process gives; each goes on from the other's checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import safetensors.torch

from prefkit.config import Choice, Lora, compatibility, plain
from prefkit.errors import UsageError
from prefkit.train import checkpoint
from prefkit.train.run import run_train
from prefkit.train.setup import load_objective

ENTRY = """
import json, pathlib, sys
from prefkit.config import Choice, Lora, Model, Recipe, Train
from prefkit.store import Store
from prefkit.train.run import run_train
for given in json.loads(pathlib.Path(sys.argv[1]).read_text()):
    objective, lora = Choice(**given["train"].pop("objective")), given["train"].pop("lora")
    train = Train(**given["train"], objective=objective, lora=Lora(**lora) if lora else None)
    recipe = Recipe(run=given["run"], model=Model(**given["model"]), train={"dpo": train})
    found = run_train(Store(given["run"]), recipe, "dpo")
    print(found["steps"], found["done"])
"""


@pytest.fixture
def two(tmp_path, forks):
    """two((store, recipe), ...): these trainings, one after the other, in two processes.

    Returns what they wrote to stderr, and what each was told of its trainings.
    """

    def launched(*given):
        trainings = [
            {"run": str(store.folder), "model": plain(recipe.model), "train": plain(recipe.train["dpo"])}
            for store, recipe in given
        ]
        (tmp_path / "trainings.json").write_text(json.dumps(trainings))
        ranks = forks.ranks(tmp_path / "trainings.json", code=ENTRY)
        told, stderr = zip(*(rank.communicate() for rank in ranks), strict=True)
        assert [rank.wait() for rank in ranks] == [0, 0], stderr
        return "".join(stderr), list(told)

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


@pytest.fixture
def rows(pair_rows):
    return pair_rows(5) + pair_rows(4, seed=1, size=(128, 64))  # processes have unequal numbers of sub-batches


SHARED = {"steps": 4, "validation": 2, "validate_every": 4}
SPLIT = {"shard": "fsdp2", "batch_size": 2}


def test_shards_change_nothing(run, rows, two):
    full = SHARED | {"rows": rows, "lora": None, "learning_rate": 1e-5, "patience": 3, "checkpoint_every": 2}
    one, one_recipe = run(where="one", batch_size=4, **full)
    run_train(one, one_recipe, "dpo")
    many, many_recipe = run(where="many", gradient_checkpointing=True, **full | SPLIT)
    # without shards, gradients of full weights are summed during the backward pass
    whole, whole_recipe = run(where="whole", gradient_checkpointing=True, **full | SPLIT | {"shard": "none"})
    stderr, told = two((many, many_recipe), (whole, whole_recipe))
    assert told == ["4 True\n4 True\n"] * 2
    assert stderr.count("weights sharded over 2 processes") == 1
    alike(one, many, 2e-5)
    alike(one, whole, 2e-5)
    ours, theirs = (checkpoint.load_last(store.train("dpo") / "checkpoints") for store in (one, many))
    shapes = [
        [[(key, v.shape) for key, v in held.items()] for held in (kept[0], *kept[1]["optimizer"]["state"].values())]
        for kept in (ours, theirs)
    ]
    assert shapes[0] == shapes[1]  # whole tensors, so one process may go on


@pytest.mark.slow
def test_a_training_of_one_process_ends_in_two(run, rows, two):
    lora = {"rows": rows, "lora": Lora(rank=3), "learning_rate": 1e-3, "schedule": "cosine", "warmup": 2}
    small, small_recipe = run(where="small", batch_size=4, **SHARED | lora)
    run_train(small, small_recipe, "dpo")
    back, back_recipe = run(where="back", batch_size=4, **SHARED | lora)
    run_train(back, back_recipe, "dpo", limit=2)
    ended = replace(back_recipe, train={"dpo": replace(back_recipe.train["dpo"], **SPLIT)})
    stderr, told = two((back, ended))
    assert told == ["4 True\n"] * 2
    assert stderr.count("weights sharded over 2 processes") == 1
    alike(small, back, 2e-4)


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
