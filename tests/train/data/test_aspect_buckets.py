from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from prefkit.errors import UsageError
from prefkit.train.data.aspect_buckets import bucket, fit
from prefkit.train.data.pairs import PairImage
from prefkit.train.run import run_train
from prefkit.types import Candidate


@pytest.mark.parametrize("resolution, step", [(512, 64), (1024, 64), (768, 64), (256, 32), (64, 16)])
def test_buckets_keep_area_and_aspect(resolution, step):
    for aspect in np.geomspace(0.4, 2.5, 41):
        height, width = bucket(float(aspect), resolution)
        assert height % step == width % step == 0
        if resolution >= 512:
            assert abs(height * width / resolution**2 - 1) < 0.15 and abs(width / height / aspect - 1) < 0.2
    assert bucket(1.0, resolution) == (resolution, resolution)


def test_an_image_is_scaled_without_distortion_and_cropped_around_the_centre():
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[:, 32:96] = 255  # a square in the middle of a wide image
    assert np.asarray(fit(Image.fromarray(pixels), PairImage("a", 0, bucket=(32, 32)))).min() > 200
    wide = np.asarray(fit(Image.fromarray(pixels), PairImage("a", 0, bucket=(32, 64)))).astype(int)
    assert wide[:, :14].max() < 50 and wide[:, 18:46].min() > 200 and wide[:, 50:].max() < 50


def sized(png, rng, *sizes):
    rows = []
    for i, (a, b, caption) in enumerate(sizes):
        row = {
            "jpg_0": png(rng, a),
            "jpg_1": png(rng, b, smooth=False),
            "label_0": float(i % 2),
            "label_1": 1.0 - i % 2,
        }
        rows.append(row | {"caption": caption})
    return rows


def test_both_sides_of_every_pair_get_one_size(run, png, loop_of, capsys):
    rng = np.random.default_rng(0)
    rows = sized(png, rng, ((100, 100), (90, 110), "a"), ((200, 50), (160, 40), "b"), ((200, 100), (60, 120), "c"))
    rows.append(rows[0] | {"caption": "b"})  # one image in two frames
    store, recipe = run(rows=rows, resolution=64, batch_size=4)
    loop = loop_of(store, recipe)
    sizes = {pair.row: loop.data.size(pair) for pair in loop.data.pairs}
    assert sizes == {0: (64, 64), 1: (48, 96), 2: (64, 64), 3: (48, 96)}
    assert len(loop.data.conditions._part) == 3  # one per caption and size
    for pair in loop.data.pairs:
        for image in pair.images:
            assert loop.data.latents.notes[image.key] == list(sizes[pair.row])
    err = " ".join(capsys.readouterr().err.split())
    assert "lose more than 20% to cropping" in err
    shapes = {tuple(batch.latents.shape[2:]) for batch in loop.micro_batches(0)[0]}
    assert shapes == {(8, 8), (6, 12)}
    assert torch.isfinite(loop.losses(loop.micro_batches(0)[0][0])[0]).all()


def test_the_latents_are_those_of_the_image_in_its_frame(run, png, loop_of, folders):
    from prefkit.train.families.diffusers import DiffusersFamily

    rows = sized(png, np.random.default_rng(1), ((100, 100), (90, 110), "a"))
    loop = loop_of(*run(rows=rows, resolution=64, validation=0, batch_size=1))
    family = DiffusersFamily(call={"height": 64, "width": 64})
    family.load({"base": folders["sd"]})
    (pair,) = loop.data.pairs
    for image in pair.images:
        picture = Image.open(io.BytesIO(rows[0][f"jpg_{image.column}"])).convert("RGB")
        expected = family.latents([Candidate("x", "", 0, 0, decoded=fit(picture, PairImage("a", 0, bucket=(64, 64))))])[
            0
        ]
        torch.testing.assert_close(loop.data.latents.get(image.key)["latents"], expected, rtol=1e-4, atol=1e-5)


def test_images_of_that_size_already_train_as_without(run):
    losses = []
    for where, resolution in (("plain", None), ("assign_buckets", 64)):
        store, recipe = run(where=where, resolution=resolution, steps=2)
        run_train(store, recipe, "dpo")
        losses.append(
            [json.loads(line)["loss"] for line in (store.train("dpo") / "metrics.jsonl").read_text().splitlines()]
        )
    assert losses[0] == losses[1]


def test_what_does_not_go_with_a_frame(run):
    with pytest.raises(UsageError, match="resolution"):
        run_train(*run(resolution=8), "dpo")
