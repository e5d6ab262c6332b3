"""The generator that sees pictures of an outfit: its pictures, its samples, and a training of one step."""

from __future__ import annotations

import json
import sys
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image

from prefkit.models.capture.call import capture
from prefkit.models.load.pipeline import load_pipeline
from prefkit.tiny.domain import Scene
from prefkit.tiny.scene import render


@pytest.fixture
def generator(fashion, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = {name: sys.modules.pop(name, None) for name in ("generator", "pictured", "machine")}
    yield __import__("generator")
    for name, module in before.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


@pytest.fixture
def pictured(generator):
    return sys.modules["pictured"]


def test_items_are_cut_out_and_averaged_where_they_lie(pictured):
    red, blue = (pictured.cut_out(render(Scene("dress", c, "mint"), 0)) for c in ("red", "blue"))
    assert red[:4, :, 3].max() == 0 and red[32, 32, 3] == 1 and 0.1 < (red[..., 3] > 0.5).mean() < 0.6
    mean = np.asarray(pictured.overlay([red, blue]), float)
    assert (mean[:4] == pictured.CANVAS).all()
    np.testing.assert_allclose(mean[32, 32], 255 * (red[32, 32, :3] + blue[32, 32, :3]) / 2, atol=1)
    alone = np.asarray(pictured.overlay([red, np.zeros_like(blue)]), float)  # an item hides nothing beside it
    np.testing.assert_allclose(alone[32, 32], 255 * red[32, 32, :3], atol=1)


def test_samples_obey_the_rule_and_splits_share_no_piece(generator, fashion):
    pieces = {}
    for split in ("train", "test"):
        rng = np.random.default_rng(0)
        drawn = [generator.draw_sample(split, number, rng) for number in range(60)]
        for others, scene in drawn:
            assert len(others) == 3 and fashion.rule.goes_with(scene.colour, [colour for _, colour in others])
        pieces[split] = {p for others, scene in drawn for p in (*others, (scene.item, scene.colour))}
    assert not pieces["train"] & pieces["test"]


def test_requests_with_pictures(pictured, fashion, tmp_path):
    fashion.world.write_world(tmp_path / "fashion", 2, 2, 0)
    assert pictured.write_pictures(tmp_path / "fashion") == 4
    for row in map(json.loads, (tmp_path / "fashion/pictured.jsonl").read_text().splitlines()):
        assert " to go with " not in row["prompt"] and " background" in row["prompt"]
        items = [pictured.cut_out(Image.open(tmp_path / "fashion" / name)) for name in row["outfit"]]
        assert np.array_equal(Image.open(tmp_path / "fashion" / row["picture"]), pictured.overlay(items))


def test_a_training_of_one_step_writes_a_pipeline_that_prefkit_reads(generator, tmp_path, monkeypatch):
    monkeypatch.setattr(generator, "BATCH", 8)
    torch.manual_seed(0)
    wide = generator.WideInput(torch.nn.Conv2d(4, 8, 3, padding=1))
    x = torch.randn(2, 8, 5, 5)
    assert torch.equal(wide(x), wide.old(x[:, :4]))  # the new channels begin at zero
    torch.nn.init.normal_(wide.new.weight)
    torch.testing.assert_close(wide.folded()(x), wide.old(x[:, :4]) + wide.new(x[:, 4:]))
    generator.train(Namespace(out=tmp_path / "model", seed=0, steps=1, outfits=8, lr=4e-4, threads=1))
    pipe = load_pipeline(tmp_path / "model")
    assert pipe.unet.conv_in.weight[:, 4:].any()
    assert capture(pipe, call={"image": Image.new("RGB", (64, 64))}).input == "extra_channels"
