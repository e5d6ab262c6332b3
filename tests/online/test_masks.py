from __future__ import annotations

from dataclasses import replace

import torch

from prefkit.models.maps import unpack
from prefkit.models.wiring import Wiring
from prefkit.train.online.masks import mask_of

WIRING = Wiring("P", "unet", "sample", "t", "identity", "identity", "identity", "index", "plain", "none", 8, "flow", 1000, {}, {})  # fmt: skip
BOX = {"box_left": 0.25, "box_top": 0.0, "box_right": 0.5, "box_bottom": 0.5}


def test_a_box_becomes_the_cells_it_touches():
    mask = mask_of(BOX, WIRING, torch.zeros(4, 8, 16), (128, 64))
    assert mask.shape == (4, 8, 16) and mask.sum() == 4 * 4 * 4
    assert mask[:, :4, 4:8].all()
    sliver = mask_of(BOX | {"box_right": 0.251}, WIRING, torch.zeros(4, 8, 16), (128, 64))
    assert sliver[:, :4, 4].all() and sliver.sum() == 16


def test_packed_tokens_get_the_same_cells():
    packed = mask_of(BOX, replace(WIRING, layout="packed"), torch.zeros(32, 16), (128, 64))
    assert torch.equal(unpack(packed[None], 8, 16)[0], mask_of(BOX, WIRING, torch.zeros(4, 8, 16), (128, 64)))


def test_without_a_box_the_whole_image_counts():
    like = torch.zeros(4, 8, 8)
    for aspects in ({}, {"box_left": 0.1}, BOX | {"box_right": 0.2}):
        assert mask_of(aspects, WIRING, like, (64, 64)).all()
