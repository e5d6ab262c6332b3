"""text_cache changes no bit of a training."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch

from prefkit.config import Choice
from prefkit.errors import UsageError
from prefkit.train.data import prompt_cache as texts
from prefkit.train.data.cache import Cache
from prefkit.train.data.prompt_cache import PromptEmbeddingCache
from prefkit.train.run import run_train


def result(store):
    lines = [json.loads(line) for line in (store.train("dpo") / "metrics.jsonl").read_text().splitlines()]
    weights = safetensors.torch.load_file(store.train("dpo") / "final" / "pytorch_lora_weights.safetensors")
    return [{k: v for k, v in line.items() if k not in ("seconds", "crc")} for line in lines], weights


def cached(store):
    (folder,) = (store.folder / "train" / ".cache").glob("*/conditions")
    return Cache(folder)


@pytest.fixture
def watched(monkeypatch):
    """(number of conditions held, number that the step needs) at every step."""
    seen = []
    hold = PromptEmbeddingCache.hold

    def noted(self, data, groups):
        hold(self, data, groups)
        seen.append((len(self.held), len({data.condition_key(group) for group in groups})))

    monkeypatch.setattr(PromptEmbeddingCache, "hold", noted)
    return seen


@pytest.mark.parametrize(("kind", "use", "flip"), [("sd", "dpo", True), ("flux", "kto", False)])
def test_full_and_off_are_one_training(run, pair_rows, watched, kind, use, flip):
    rows = [row | {"caption": f"thing {i}"} for i, row in enumerate(pair_rows(8) + pair_rows(3, 1, (128, 64)))]
    settings = {"rows": rows, "steps": 5, "validation": 1, "accumulation": 2, "objective": Choice(use), "flip": flip}
    found = {}
    for cache in texts.CACHES:
        store, recipe = run(kind, where=cache, text_cache=cache, **settings)
        watched.clear()
        summary = run_train(store, recipe, "dpo", limit=4)
        if cache == "off":
            assert not summary["done"]
            assert [held for held, _ in watched] == [wanted for _, wanted in watched]
            assert len(watched) == 4 and all(0 < held <= 4 for held, _ in watched)
        assert (len(cached(store)) == summary["validation_pairs"] == 1) == (cache != "full")
        run_train(store, recipe, "dpo")
        found[cache] = result(store)
    lines, weights = found["full"]
    assert all(value.any() for key, value in weights.items() if "lora_B" in key)  # something was learnt
    assert found["off"][0] == lines
    assert all(torch.equal(found["off"][1][key], weights[key]) for key in weights)


def test_what_it_cannot_be(run):
    with pytest.raises(UsageError, match="text_cache"):
        run_train(*run(text_cache="some"), "dpo")
