"""`model: inputs:` from a column of paths to candidates, conditions and an evaluation: each request with its own image."""

from __future__ import annotations

import hashlib
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from prefkit.api import Run
from prefkit.config import Requests
from prefkit.distributed.collectives import Processes
from prefkit.errors import UsageError
from prefkit.generate.inputs import Inputs
from prefkit.generate.requests import read_requests
from prefkit.models import offload as sequential_offload
from prefkit.models.capture.maps import EXTRA_INPUT_KEY
from prefkit.models.load.pipeline import load_pipeline
from prefkit.store import Store
from prefkit.train.data.pairs import PairSource, read_pairs
from prefkit.train.setup import ModelLoader, prepare

MAPPING = {"image": "extra.person", "mask_image": "extra.hole"}


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8))


@pytest.fixture(scope="session")
def inpainting(sd, tmp_path_factory):
    """A tiny inpainting pipeline with nine input channels."""
    import diffusers

    from prefkit.testing import wake_zeros

    base = load_pipeline(sd)
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel.from_config({**base.unet.config, "in_channels": 9})
    wake_zeros(unet)
    pipe = diffusers.StableDiffusionInpaintPipeline(**{**base.components, "unet": unet}, requires_safety_checker=False)
    folder = tmp_path_factory.mktemp("inpainting") / "model"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(recipe, inpainting, sd, tmp_path):
    rows = []
    hole = np.zeros((64, 64), np.uint8)
    hole[8:40, 16:60] = 255
    (tmp_path / "in").mkdir()
    Image.fromarray(hole).save(tmp_path / "in" / "hole.png")
    for number in range(6):
        picture(number % 3).save(tmp_path / "in" / f"{number}.png")  # two requests may show one person
        split = "test" if number == 5 else "train"
        row = {"prompt": f"a coat {number}", "person": f"in/{number}.png", "hole": "in/hole.png", "part": split}
        rows.append(row)
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = recipe.read_text().replace(f"base: {sd}", f"base: {inpainting}, inputs: {json.dumps(MAPPING)}")
    text = text.replace(f"{tmp_path / 'prompts.txt'}, test_share: 0.25", f"{tmp_path / 'r.jsonl'}, split_column: part")
    recipe.write_text(text.replace("n: 4, steps: 2", "n: 3, steps: 2").replace("k: 2", "k: 1"))
    return recipe


def pixels(candidate):
    return np.asarray(candidate.pil())


def test_each_request_keeps_its_own_image_from_generation_to_evaluation(recipe, inpainting, tmp_path, monkeypatch):
    run = Run(recipe=recipe)
    run.generate()
    store = run.store
    requests = {r.request_id: r for r in store.requests()}
    stored = store.inputs().frame()
    assert len(stored) == 4  # three persons and a hole, once each
    assert all(hashlib.sha256(found).hexdigest() == name for name, found in zip(stored.id, stored.bytes, strict=True))
    pipe = load_pipeline(inpainting)
    pipe.set_progress_bar_config(disable=True)
    candidates = list(store.iter_candidates(["own"]))
    assert len(candidates) == 15
    for c in candidates[::4]:  # by diffusers alone, one at a time, from the file that the source named
        number = int(c.prompt[-1])
        call = {"image": picture(number % 3), "mask_image": Image.open(tmp_path / "in" / "hole.png")}
        how = {"num_inference_steps": 2, "guidance_scale": 3.0, "height": 64, "width": 64}
        generator = torch.Generator().manual_seed(c.seed)
        alone = pipe(prompt=c.prompt, generator=generator, **how, **call).images[0]
        assert np.abs(np.asarray(alone).astype(int) - pixels(c)).max() <= 1
    run.score()
    run.pair()
    recipe_ = run.recipe
    plan = ModelLoader(store, recipe_, recipe_.train["dpo"], store.train("dpo"))
    source = PairSource.find(store, "main")
    gone, clear = [], sequential_offload.SequentialOffload.clear
    monkeypatch.setattr(
        sequential_offload.SequentialOffload, "clear", lambda turns: gone.append(turns.part) or clear(turns)
    )
    data = prepare(plan, read_pairs(source), source, Processes("cpu"))
    texts = gone[::-1][: gone[::-1].index("denoiser")].count("text")
    assert texts == 3 < len(data.conditions)  # two looks at the batch, and all conditions at once
    behind = {}
    for pair in data.pairs:
        content = data.conditions.get(data.condition_key(pair))[EXTRA_INPUT_KEY]
        behind.setdefault(requests[pair.request_id].extra["person"], []).append(content)
    assert len(behind) == 3
    firsts = [found[0] for found in behind.values()]
    assert not torch.equal(firsts[0], firsts[1]) and not torch.equal(firsts[1], firsts[2])
    assert all(torch.equal(own, found[0]) for found in behind.values() for own in found)
    assert run.train()["dpo"]["done"]
    result = run.eval()["held_out"]
    assert set(result["sets"]["held_out"]) == {"dpo"}
    shown = list(Store(store.eval("held_out") / "held_out" / "dpo").iter_candidates())
    assert {c.prompt for c in shown} == {"a coat 5"} and all(c.error is None for c in shown)


def test_images_are_known_by_content_wherever_they_lie(tmp_path):
    store = Store.create(tmp_path / "run")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        picture(1).save(tmp_path / folder / "p.png")
        (tmp_path / folder / "r.jsonl").write_text('{"prompt": "x", "person": "p.png", "hole": 0.5}')
    found = [read_requests(Requests(str(tmp_path / f / "r.jsonl")), MAPPING, store) for f in ("a", "b")]
    assert found[0] == found[1] and len(store.inputs().frame()) == 1
    given = Inputs(MAPPING, store).of(found[0][0])
    assert np.array_equal(np.asarray(given["image"]), np.asarray(picture(1))) and given["mask_image"] == 0.5
    assert read_requests(Requests(str(tmp_path / "a" / "r.jsonl")), MAPPING) == found[0]  # a dry run
    buffer = io.BytesIO()
    picture(1).save(buffer, "PNG")
    import pandas as pd

    pd.DataFrame({"prompt": ["x"], "person": [{"bytes": buffer.getvalue(), "path": "p"}]}).to_parquet(
        tmp_path / "r.parquet"
    )
    (row,) = read_requests(Requests(str(tmp_path / "r.parquet")), {"image": "extra.person"}, store)
    assert row.extra["person"] == found[0][0].extra["person"]


@pytest.mark.parametrize(
    ("row", "mapping", "words"),
    [
        ({"person": "none.png"}, {"image": "extra.person"}, "none.png does not exist"),
        ({"person": "broken.png"}, {"image": "extra.person"}, "broken.png is not a readable image"),
        ({"person": "p.png"}, {"image": "person"}, "write extra.NAME"),
    ],
)
def test_what_is_wrong_with_an_input_is_said(tmp_path, row, mapping, words):
    (tmp_path / "broken.png").write_bytes(b"no image")
    picture(0).save(tmp_path / "p.png")
    (tmp_path / "r.jsonl").write_text(json.dumps({"prompt": "x", **row}))
    with pytest.raises(UsageError, match=words):
        read_requests(Requests(str(tmp_path / "r.jsonl")), mapping, Store.create(tmp_path / "run"))


def test_a_request_without_its_image_is_refused(tmp_path):
    (tmp_path / "r.jsonl").write_text('{"prompt": "x", "persons": "p.png"}')
    source = Requests(str(tmp_path / "r.jsonl"))
    with pytest.raises(
        UsageError,
        match="extra.hole is missing in this request, whose columns besides the prompt are persons",
    ):
        read_requests(source, MAPPING)
    with pytest.raises(UsageError, match=r"columns besides the prompt are persons. Did you mean 'persons'\?"):
        read_requests(source, {"image": "extra.person"})
    (request,) = read_requests(source)  # as a run may hold it from before
    with pytest.raises(UsageError, match="'x' has no column person"):
        Inputs(MAPPING, Store(tmp_path)).of(request)


def test_an_image_of_16_bits_keeps_its_greys(tmp_path):
    store = Store.create(tmp_path / "run")
    Image.fromarray(np.full((8, 8), 64 * 257, np.uint16)).save(tmp_path / "deep.png")
    (tmp_path / "r.jsonl").write_text('{"prompt": "x", "hole": "deep.png"}')
    mapping = {"mask_image": "extra.hole"}
    (request,) = read_requests(Requests(str(tmp_path / "r.jsonl")), mapping, store)
    assert np.unique(np.asarray(Inputs(mapping, store).of(request)["mask_image"])).tolist() == [64]
