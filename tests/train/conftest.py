"""Tiny pipelines, and pair datasets written straight to Parquet."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from prefkit.config import Choice, Lora, Model, Recipe, Train
from prefkit.distributed.collectives import Processes
from prefkit.store import Store
from prefkit.train.data.pairs import PairSource, read_pairs
from prefkit.train.run import Job, make_trainer
from prefkit.train.setup import ModelLoader, prepare

torch.set_num_threads(1)
PROMPTS = ["a red cat", "a dog in a hat", "two boats", "a green door", "a bowl of rice", "an old tree"]


def make_png(rng, size=(64, 64), smooth=True):
    """A smooth gradient, or noise: two kinds that a tiny network can learn to tell apart."""
    width, height = size
    if smooth:
        ramp = np.linspace(0, 255, width)[None, :, None] * rng.uniform(0.5, 1, 3)
        pixels = np.broadcast_to(ramp, (height, width, 3)).astype(np.uint8)
    else:
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def make_pair_rows(count=8, seed=0, size=(64, 64)):
    """Winners are smooth; which side wins alternates."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        win, lose, label = make_png(rng, size), make_png(rng, size, smooth=False), i % 2
        images = (lose, win) if label == 0 else (win, lose)
        rows.append(
            {
                "jpg_0": images[0],
                "jpg_1": images[1],
                "label_0": float(label),
                "label_1": float(1 - label),
                "caption": PROMPTS[i % len(PROMPTS)],
            }
        )
    return rows


def save_pairs(folder, rows):
    (folder / "train").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "train" / "part-0.parquet")
    return folder


def config_of(**given):
    defaults = {
        "pairs": "main",
        "objective": Choice("dpo", {"beta": 2000.0}),
        "lora": Lora(rank=4),
        "steps": 4,
        "batch_size": 2,
        "learning_rate": 1e-3,
        "warmup": 0,
        "validation": 0,
        "device": "cpu",
        "precision": "no",
        "checkpoint_every": 2,
        "validate_every": 2,
    }
    return Train(**(defaults | given))


@pytest.fixture
def run(tmp_path, folders):
    """run(kind, rows=None, model={}, **train) -> (store, recipe), with the pairs `main` and the training `dpo`."""

    def make(kind="sd", rows=None, model=None, where="run", **given):
        store = Store.create(tmp_path / where)
        if not store.pairs("main").exists():
            save_pairs(store.pairs("main"), make_pair_rows() if rows is None else rows)
        block = Model(base=str(folders[kind]), **(model or {}))
        recipe = Recipe(run=str(store.folder), model=block, train={"dpo": config_of(**given)})
        return store, recipe

    return make


@pytest.fixture
def png():
    return make_png


@pytest.fixture
def pair_rows():
    return make_pair_rows


@pytest.fixture
def write_pairs():
    return save_pairs


@pytest.fixture
def loop_of():
    """loop_of(store, recipe, **train) -> the loop of the training `dpo`, ready for its first step."""

    def make(store, recipe, **changes):
        config = replace(recipe.train["dpo"], **changes)
        source = PairSource.find(store, "main")
        plan = ModelLoader(store, recipe, config, store.train("dpo"))
        data = prepare(plan, read_pairs(source), source, Processes("cpu"))
        return make_trainer(plan, Job("dpo", config), data, Processes("cpu"))

    return make


@pytest.fixture
def gradients():
    """gradients(loop) -> (what the first step shows, its gradient as one vector)."""

    def of(loop):
        shown = loop.accumulate(loop.micro_batches(0))
        return shown, torch.cat([p.grad.flatten() for p in loop.policy.parameters()])

    return of
