"""Tiny pipelines, and runs that learn online from them."""

from __future__ import annotations

import pytest
import torch

from prefkit.config import Choice, Generate, Lora, Model, Online, Recipe, Requests, Score, Train
from prefkit.store import Store

torch.set_num_threads(1)
PROMPTS = ["a red cat", "a dog in a hat", "two boats", "a green door", "a bowl of rice", "an old tree"]


@pytest.fixture
def make(tmp_path, folders):
    """make(kind, train={}, generate={}, score={}, **online) -> (store, recipe) with the training `up`."""

    def build(kind="sd", where="run", objective=None, train=None, generate=None, score=None, **online):
        prompts = tmp_path / "prompts.txt"
        prompts.write_text("\n".join(PROMPTS) + "\n")
        store = Store.create(tmp_path / where)
        settings = {
            "objective": objective or Choice("ddpo"),
            "lora": Lora(rank=4),
            "learning_rate": 1e-3,
            "warmup": 0,
            "batch_size": 4,
            "device": "cpu",
        }
        given = {"rewards": {"size": 1.0}, "rounds": 2, "requests": 2, "samples": 2, "watch_every": 0}
        recipe = Recipe(
            run=str(store.folder),
            model=Model(base=str(folders[kind])),
            requests=Requests(source=str(prompts), test_share=0.0),
            generate={"own": Generate(**({"steps": 4, "guidance": 3.0, "device": "cpu"} | (generate or {})))},
            score={"size": Score(use="jpeg", options={"direction": "expand"}, device="cpu"), **(score or {})},
            train={"up": Train(**(settings | (train or {})), online=Online(**(given | online)))},
        )
        return store, recipe

    return build
