"""`model: inputs:` with pipelines that edit an image: generated, trained and evaluated, each request with its own."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from prefkit.api import Run
from prefkit.distributed.collectives import Processes
from prefkit.errors import PrefkitError
from prefkit.models.capture.maps import EXTRA_INPUT_KEY
from prefkit.models.load.pipeline import load_pipeline
from prefkit.testing import tiny_pipeline
from prefkit.train.data.pairs import PairSource, read_pairs
from prefkit.train.setup import ModelLoader, prepare
from tests.models.editing import (
    CASES,
    SIZE,
    fill,
    flux2,
    instruct,
    kontext,
    mask,
    picture,
    qwen_edit_plus,
    size_for,
    small_areas,
)
from tests.models.kinds import sd2

RECIPE = """
run: {run}
model: {{base: {base}, inputs: {inputs}}}
requests: {{source: {source}, split_column: part}}
generate:
  own: {{n: 2, steps: 2, {size}, call: {call}}}
score:
  size: {{use: jpeg}}
pair:
  main: {{use: topk_bottomk, k: 1, weights: {{size: 1.0}}, tie: 0.0, duplicates: keep, degenerate: keep}}
train:
  dpo: {{pairs: main, objective: {{use: dpo, beta: 2000}}, lora: {{rank: 2}}, steps: 2, batch_size: 2, learning_rate: 1e-2,
        validation: 0, device: cpu}}
eval:
  held_out: {{models: [dpo], scorers: [size], seeds: 1, bootstrap: 50}}
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    return {kind: tiny_pipeline(kind, root / kind) for kind in ("sd", "flux")}


def write_recipe(folder, base, images, fixed, size):
    """Two requests to train on and one to evaluate, each with a picture of its own."""
    rows = []
    for number in range(3):
        picture(number).save(folder / f"{number}.png")
        mask().save(folder / "hole.png")
        row = {"prompt": f"a coat {number}", "image": f"{number}.png", "mask_image": "hole.png"}
        row["control_image"] = row["image"]
        rows.append(row | {"part": "test" if number == 2 else "train"})
    (folder / "r.jsonl").write_text("\n".join(map(json.dumps, rows)))
    inputs, call = json.dumps({name: f"extra.{name}" for name in images}), json.dumps(fixed)
    text = RECIPE.format(
        run=folder / "run",
        base=base,
        source=folder / "r.jsonl",
        inputs=inputs,
        call=call,
        size=", ".join(f"{k}: {v}" for k, v in size.items()) or "batch_size: 8",
    )
    (folder / "recipe.yaml").write_text(text)
    return folder / "recipe.yaml"


TRAINED = [kontext, fill, flux2, instruct, qwen_edit_plus]  # SD inpainting: tests/train/data/test_inputs.py


@pytest.mark.parametrize("builder", TRAINED, ids=lambda f: f.__name__)
def test_each_request_keeps_its_own_image(builder, tiny, tmp_path, monkeypatch):
    small_areas(monkeypatch)
    fixed, images, _ = CASES[builder]
    torch.manual_seed(0)
    pipe = builder(tiny)
    pipe.save_pretrained(tmp_path / "model")
    run = Run(recipe=write_recipe(tmp_path, tmp_path / "model", images[0], fixed, size_for(pipe)))
    run.generate()
    alone = load_pipeline(tmp_path / "model")
    alone.set_progress_bar_config(disable=True)
    for c in list(run.store.iter_candidates(["own"]))[::3]:  # by diffusers alone, from the files that the source named
        given = {"mask_image": mask()} | dict.fromkeys(("image", "control_image"), picture(int(c.prompt[-1])))
        call = {name: given[name] for name in images[0]} | fixed | size_for(pipe)
        generator = torch.Generator().manual_seed(c.seed)
        image = alone(prompt=c.prompt, generator=generator, num_inference_steps=2, **call).images[0]
        assert np.abs(np.asarray(image).astype(int) - np.asarray(c.pil())).max() <= 1
    run.score()
    run.pair()
    plan = ModelLoader(run.store, run.recipe, run.recipe.train["dpo"], run.store.train("dpo"))
    source = PairSource.find(run.store, "main")
    data = prepare(plan, read_pairs(source), source, Processes("cpu"))
    beside = [data.conditions.get(data.condition_key(pair))[EXTRA_INPUT_KEY] for pair in data.pairs]
    assert len(beside) == 2 and not torch.equal(*beside)
    assert run.train()["dpo"]["done"]
    lora = load_file(run.store.train("dpo") / "final" / "pytorch_lora_weights.safetensors")
    idle = {key for key, value in lora.items() if "lora_B" in key and not value.any()}
    assert all(re.search(r"add_q_proj|to_add_out", key) for key in idle)  # nobody reads the last block's text
    if builder in (kontext, qwen_edit_plus):
        assert run.eval()["held_out"]["sets"]["held_out"].keys() == {"dpo"}


def test_sd2_from_generation_to_evaluation(tmp_path):
    """v-prediction throughout, and the same recipe without an image."""
    torch.manual_seed(0)
    sd2().save_pretrained(tmp_path / "model")
    run = Run(recipe=write_recipe(tmp_path, tmp_path / "model", {}, {}, SIZE))
    for stage in (run.generate, run.score, run.pair):
        stage()
    trained = run.train()["dpo"]
    assert trained["done"] and run.eval()["held_out"]["sets"]["held_out"].keys() == {"dpo"}
    metrics = [json.loads(line) for line in (run.store.train("dpo") / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in metrics if "loss" in line]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (
            {},
            r"FluxFillPipeline takes image, mask_image, but no request provides it: set model: {inputs: {image: extra.COLUMN}}",
        ),
        (
            {"image": "extra.note", "mask_image": "extra.mask_image"},
            "model.inputs gave image = 'a coat', which is neither an image",
        ),
        (
            {"imag": "extra.image"},
            r"takes no argument imag \(from model.inputs, generate.NAME or .*Did you mean 'image'",
        ),
        ({"image": "extra.imag"}, r"extra.imag is missing .* Did you mean 'image'"),
    ],
)
def test_wrong_names_are_answered_with_what_to_write(inputs, words, tiny, tmp_path):
    torch.manual_seed(0)
    fill(tiny).save_pretrained(tmp_path / "model")
    path = write_recipe(tmp_path, tmp_path / "model", {}, {}, SIZE)
    path.write_text(path.read_text().replace("inputs: {}", f"inputs: {json.dumps(inputs)}"))
    rows = (tmp_path / "r.jsonl").read_text().replace('"part"', '"note": "a coat", "part"')
    (tmp_path / "r.jsonl").write_text(rows)
    with pytest.raises(PrefkitError, match=words):
        Run(recipe=path).generate()
