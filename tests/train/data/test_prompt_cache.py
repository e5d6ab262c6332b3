"""Wherever the conditions are kept, the training is the same to the last bit."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch

from prefkit.cli.dry_run import plan
from prefkit.config import Choice
from prefkit.distributed import Processes
from prefkit.errors import UsageError
from prefkit.train.data import prompt_cache as texts
from prefkit.train.data.cache import Cache
from prefkit.train.data.pairs import PairSource, read_pairs
from prefkit.train.data.prompt_cache import PromptEmbeddingCache
from prefkit.train.run import Job, make_loop, run_train
from prefkit.train.setup import ModelLoader, prepare


def result(store):
    lines = [json.loads(line) for line in (store.train("dpo") / "metrics.jsonl").read_text().splitlines()]
    weights = safetensors.torch.load_file(store.train("dpo") / "final" / "pytorch_lora_weights.safetensors")
    return [{k: v for k, v in line.items() if k not in ("seconds", "crc")} for line in lines], weights


def cached(store):
    (folder,) = (store.folder / "train" / ".cache").glob("*/conditions")
    return Cache(folder)


@pytest.fixture
def watched(monkeypatch):
    """What was held, and where the text encoder was, whenever a micro-batch's conditions were all there."""
    seen = []
    show = PromptEmbeddingCache.show

    def noted(self, data, groups):
        show(self, data, groups)
        places = {p.device.type for p in self.family.pipe.text_encoder.parameters()} if self.family else set()
        seen.append((len(self.held), len({data.condition_key(group) for group in groups}), places))

    monkeypatch.setattr(PromptEmbeddingCache, "show", noted)
    return seen


@pytest.mark.parametrize(("kind", "use", "flip"), [("sd", "dpo", True), ("flux", "kto", False)])
def test_full_rolling_and_off_are_one_training(run, pair_rows, monkeypatch, watched, kind, use, flip):
    monkeypatch.setattr(texts, "WINDOW", 3)
    rows = [row | {"caption": f"thing {i}"} for i, row in enumerate(pair_rows(8) + pair_rows(3, 1, (128, 64)))]
    settings = {"rows": rows, "steps": 5, "validation": 1, "accumulation": 2, "objective": Choice(use), "flip": flip}
    found = {}
    for cache in texts.CACHES:
        store, recipe = run(kind, where=cache, text_cache=cache, **settings)
        watched.clear()
        summary = run_train(store, recipe, "dpo", limit=4)
        if cache == "rolling":  # killed and resumed within a window
            assert not summary["done"]
            assert [held for held, *_ in watched] == [wanted for _, wanted, _ in watched]
            assert len(watched) == 2 and all(held <= 3 * 4 for held, *_ in watched)
        if cache == "off":
            assert len(watched) == 4 and all(0 < held <= 4 for held, *_ in watched)
        assert (len(cached(store)) == summary["validation_pairs"] == 1) == (cache != "full")
        run_train(store, recipe, "dpo")
        found[cache] = result(store)
    lines, weights = found["full"]
    assert all(value.any() for key, value in weights.items() if "lora_B" in key)  # something was learnt
    for cache in ("rolling", "off"):
        assert found[cache][0] == lines
        assert all(torch.equal(found[cache][1][key], weights[key]) for key in weights)


def test_text_encoders_come_to_the_device_for_a_window_alone(run, pair_rows, watched):
    """The device is told by name only: what is seen is who is moved, and when."""
    store, recipe = run(rows=pair_rows(8), text_cache="rolling")
    config, source = recipe.train["dpo"], PairSource.find(store, "main")
    made, processes = ModelLoader(store, recipe, config, store.train("dpo")), Processes("cpu")
    data = prepare(made, read_pairs(source), source, processes, [Job("dpo", config)])
    loop = make_loop(made, Job("dpo", config), data, store.train("dpo"), processes)
    moved = []
    loop.data.conditions._move = moved.append
    loop.data.conditions.device = "there"
    for _ in texts.prepared(loop, range(2), window=1):
        moved.append("step")
    assert moved == ["there", "cpu", "step", "there", "cpu", "step"]
    net = loop.data.conditions.family.pipe.unet
    assert all(parameter.is_meta for parameter in net.parameters())


def test_a_dry_run_says_what_each_takes(run, pair_rows):
    rows = [row | {"caption": f"thing {i}"} for i, row in enumerate(pair_rows(10))]
    store, recipe = run(rows=rows, steps=50, validation=1)
    row = plan(store, recipe, {"train": None}, [])[0][0]
    each = row["MB conditions"] / 10
    assert row["MB conditions rolling"] == pytest.approx(10 * each) and row["MB conditions off"] == pytest.approx(
        3 * each
    )


def test_what_it_cannot_be(run):
    with pytest.raises(UsageError, match="text_cache"):
        run_train(*run(text_cache="some"), "dpo")
