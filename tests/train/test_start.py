"""`start`: a training that continues the result of another one in the run, as in SFT followed by online training."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from prefkit.config import Choice, Generate, Lora, Online, Requests, Score, Train
from prefkit.config.redo import made_from
from prefkit.errors import NotYet, UsageError
from prefkit.store.files import read_json
from prefkit.train.run import checked, run_train

FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture
def two_stages(run):
    """(store, recipe) with SFT as `first`, and DPO as `second`, which starts from it."""
    store, recipe = run(lora=Lora(rank=2, targets=["to_q"]))
    first = replace(recipe.train["dpo"], objective=Choice("sft"))
    second = replace(recipe.train["dpo"], start="first", lora=Lora(rank=2))
    return store, replace(recipe, train={"first": first, "second": second})


def weights(store, name):
    return (store.train(name) / "final" / FILE).read_bytes()


def test_it_trains_the_other_result_further_with_a_frozen_copy_as_the_reference(two_stages):
    store, recipe = two_stages
    with pytest.raises(NotYet, match="train/first"):
        run_train(store, recipe, "second")
    run_train(store, recipe, "first")
    checked(store, recipe, "second")
    run_train(store, recipe, "second")
    [begin, *_] = (store.train("second") / "metrics.jsonl").read_text().splitlines()
    assert json.loads(begin)["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert weights(store, "second") != weights(store, "first")
    adapter = {str(store.train("first") / "final"): 1.0}
    by_hand = replace(recipe.train["second"], start=None, lora=Lora(rank=2, resume=True))
    again = replace(recipe, model=replace(recipe.model, adapters=adapter), train={"again": by_hand})
    run_train(store, again, "again")
    assert weights(store, "again") == weights(store, "second")
    assert made_from(store, recipe)["train/second"] == {"pairs/main", "train/first"}


def test_an_online_training_starts_from_it(two_stages):
    store, recipe = two_stages
    run_train(store, recipe, "first")
    prompts = store.folder.parent / "prompts.txt"
    prompts.write_text("a red cat\na dog\n")
    online = Online(rewards={"size": 1.0}, rounds=1, requests=2, samples=2, watch_every=0, mask="box")
    up = Train(
        start="first", objective=Choice("oft"), online=online, lora=Lora(rank=2), batch_size=2, warmup=0, device="cpu"
    )
    box = store.folder.parent / "box.py"
    box.write_text(
        "import prefkit\n\n\n@prefkit.scorer(name='box', version='1')\ndef box(images, prompts):\n"
        "    edges = {'box_left': 0.0, 'box_top': 0.0, 'box_right': 0.5, 'box_bottom': 1.0}\n"
        "    return [prefkit.Score(1.0, edges) for _ in images]\n"
    )
    recipe = replace(
        recipe,
        requests=Requests(source=str(prompts), test_share=0.0),
        generate={"own": Generate(steps=3, device="cpu")},
        score={"size": Score(use="jpeg", device="cpu"), "box": Score(use=f"{box}:box", device="cpu")},
        train=recipe.train | {"up": up},
    )
    assert run_train(store, recipe, "up")["done"]
    spec = read_json(store.train("up") / "spec.json")
    assert len(spec["model"]["adapters"]) == 1 and spec["train"]["start"] == "first"


@pytest.mark.parametrize("other", [{"alpha": 32.0}, {"targets": ["to_v"]}, {"rank": 3}])
def test_the_adapter_cannot_be_changed(two_stages, other):
    store, recipe = two_stages
    run_train(store, recipe, "first")
    changed = replace(recipe.train["second"], lora=replace(recipe.train["second"].lora, **other))
    with pytest.raises(UsageError, match="start and lora.resume train an adapter further and cannot change its shape"):
        run_train(store, replace(recipe, train=recipe.train | {"second": changed}), "second")


def test_a_training_cannot_start_from_itself(two_stages):
    store, recipe = two_stages
    itself = replace(recipe, train=recipe.train | {"second": replace(recipe.train["second"], start="second")})
    with pytest.raises(UsageError, match="train.second.start names this training itself"):
        checked(store, itself, "second")


def test_full_weights_cannot_be_trained_further(two_stages):
    store, recipe = two_stages
    full = replace(recipe, train=recipe.train | {"first": replace(recipe.train["first"], lora=None, steps=1)})
    run_train(store, full, "first")
    with pytest.raises(UsageError, match=r"second.start: first trained full weights, but only adapters"):
        run_train(store, full, "second")
    no_adapter = replace(recipe, train=recipe.train | {"second": replace(recipe.train["second"], lora=None)})
    with pytest.raises(UsageError, match=r"start is first, whose adapter is trained further, but lora is null"):
        run_train(store, no_adapter, "second")
