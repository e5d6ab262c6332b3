from __future__ import annotations

import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from prefkit.errors import FingerprintError, UsageError
from prefkit.images import rgb
from prefkit.models.capture.maps import unpack
from prefkit.models.capture.wiring import Wiring
from prefkit.store.table import candidate_row
from prefkit.train.data.masks import box_mask, image_mask
from prefkit.train.monitor.validation import Validation
from prefkit.train.policy import errors_of
from prefkit.train.run import run_train
from prefkit.types import Candidate, Request

WIRING = Wiring("P", "unet", "sample", "t", "identity", "identity", "identity", "index", "plain", "none", 8, "flow", 1000, {}, {})  # fmt: skip
BOX = {"box_left": 0.25, "box_top": 0.0, "box_right": 0.5, "box_bottom": 0.5}


def test_a_box_becomes_the_cells_it_touches():
    mask = box_mask(BOX, WIRING, torch.zeros(4, 8, 16), (128, 64))
    assert mask.shape == (4, 8, 16) and mask.sum() == 4 * 4 * 4
    assert mask[:, :4, 4:8].all()
    sliver = box_mask(BOX | {"box_right": 0.251}, WIRING, torch.zeros(4, 8, 16), (128, 64))
    assert sliver[:, :4, 4].all() and sliver.sum() == 16


def test_packed_tokens_get_the_same_cells():
    packed = box_mask(BOX, replace(WIRING, layout="packed"), torch.zeros(32, 16), (128, 64))
    assert torch.equal(unpack(packed[None], 8, 16)[0], box_mask(BOX, WIRING, torch.zeros(4, 8, 16), (128, 64)))


def test_without_a_box_the_whole_image_counts():
    like = torch.zeros(4, 8, 8)
    for aspects in ({}, {"box_left": 0.1}, BOX | {"box_right": 0.2}):
        assert box_mask(aspects, WIRING, like, (64, 64)).all()


def test_a_mask_image_is_averaged_over_each_cell():
    pixels = np.zeros((64, 128), np.uint8)
    pixels[8:16, 16:20] = 255  # half of the cell in row 1, column 2
    found = image_mask(Image.fromarray(pixels), WIRING, torch.zeros(4, 8, 16), (128, 64))
    expected = torch.zeros(4, 8, 16)
    expected[:, 1, 2] = 0.5
    torch.testing.assert_close(found, expected, rtol=0, atol=1 / 255)
    packed = image_mask(Image.fromarray(pixels), replace(WIRING, layout="packed"), torch.zeros(32, 16), (128, 64))
    assert torch.equal(unpack(packed[None], 8, 16)[0], found)


def test_weighted_errors_against_float64():
    rng = np.random.default_rng(0)
    residual, weight = rng.normal(size=(3, 4, 8, 8)), rng.uniform(size=(3, 4, 8, 8))
    found = errors_of(torch.from_numpy(residual).float(), True, torch.from_numpy(weight).float())
    np.testing.assert_allclose(found.mean, (weight * residual**2).mean((1, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(found.residual, weight * residual, rtol=1e-5, atol=1e-7)
    ones = errors_of(found.residual, True, torch.ones(3, 4, 8, 8))
    plain = errors_of(found.residual, True)
    assert torch.equal(ones.mean, plain.mean) and torch.equal(ones.residual, plain.residual)


def masked(run, pair_rows, extra, **given):
    """A run whose requests, found by the pairs' captions, have this extra."""
    rows = pair_rows(4)
    for row in rows:
        row["request_id"] = row["caption"]
    store, recipe = run(rows=rows, mask="where", **given)
    store.write_requests([Request(row["caption"], row["caption"], extra=extra) for row in rows])
    return store, recipe


@pytest.fixture
def first_step(loop_of, gradients):
    def step(store, recipe):
        loop = loop_of(store, recipe)
        return loop, *gradients(loop)

    return step


def test_a_mask_of_ones_changes_no_bit(run, pair_rows, first_step):
    _, shown, gradient = first_step(*run(rows=[r | {"request_id": r["caption"]} for r in pair_rows(4)], where="plain"))
    for extra in ({"where": [0, 0, 1, 1]}, {"where": None}):
        loop, own, other = first_step(*masked(run, pair_rows, extra, where=str(extra)))
        assert own == shown and torch.equal(other, gradient)
        assert next(iter(loop.micro_batches(0)[0])).weight.eq(1).all()


def test_training_sees_only_what_counts(run, pair_rows, loop_of):
    """The mask excludes the right half of the error: the policy's, the reference's, and that on held-out pairs."""
    loop = loop_of(*masked(run, pair_rows, {"where": [0, 0, 0.5, 1]}))
    (batch,) = loop.micro_batches(0)[0]
    seen = []
    loop.objective.loss = lambda policy, reference, groups: seen.append((policy, reference)) or (policy.mean[:2], {})
    loop.losses(batch)
    with torch.no_grad():
        residual = loop.residuals(loop.policy.net, batch)["image"].double()
    expected = residual[..., :4].square().sum((1, 2, 3)) / residual[0].numel()
    for errors in seen[0]:
        torch.testing.assert_close(errors.mean.detach().double(), expected, rtol=1e-5, atol=0)
    loop.validation = Validation(loop.family, loop.data, loop.data.pairs, 8, 1.0)
    measured = loop.measure(reference=False)
    loop.data.weights = None
    assert (measured > 0).all() and (measured < loop.measure(reference=False)).all()


def test_masks_by_inputs_id_and_those_that_make_no_sense(run, pair_rows, loop_of, first_step):
    half = np.zeros((64, 64), np.uint8)
    half[:, :32] = 255
    buffer, turned = io.BytesIO(), Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(half).transpose(Image.Transpose.ROTATE_90).save(buffer, "PNG", exif=turned)
    store, recipe = masked(run, pair_rows, {"where": "mask"}, where="id")
    store.inputs().append([{"id": "mask", "bytes": buffer.getvalue()}])
    _, shown, gradient = first_step(store, recipe)
    _, own, other = first_step(*masked(run, pair_rows, {"where": [0, 0, 0.5, 1]}, where="box"))
    assert own == shown and torch.equal(other, gradient)
    wrong = [
        ({}, "has the key 'where'"),
        ({"where": "gone"}, "no input image with that id"),
        ({"where": [0.5, 0, 0.2, 1]}, "neither a box"),
    ]
    for number, (extra, message) in enumerate(wrong):
        with pytest.raises(UsageError, match=message):
            loop_of(*masked(run, pair_rows, extra, where=f"wrong{number}"))


def test_the_two_images_of_a_pair_may_be_masked_differently(run, pair_rows, loop_of):
    rows = pair_rows(2)
    for i, row in enumerate(rows):
        row |= {"candidate_0": f"c{i}0", "candidate_1": f"c{i}1", "request_id": "r"}
    store, recipe = run(rows=rows, mask="where")
    store.write_requests([Request("r", "other", extra={"where": None})])
    boxes = {"c00": [0, 0, 0.5, 1], "c01": [0, 0, 1, 0.25]}  # those of the second pair are the request's
    found = [Candidate(f"c{i}{j}", "r", 2 * i + j, 0, image=rows[i][f"jpg_{j}"],
                       extra={"where": boxes[f"c{i}{j}"]} if i == 0 else {}) for i in (0, 1) for j in (0, 1)]  # fmt: skip
    store.candidates("other").append([candidate_row(c) for c in found])
    loop = loop_of(store, recipe)
    shares = {}
    for batch in loop.micro_batches(0)[0]:
        for place, weight in enumerate(batch.weight):
            pair = batch.members[place % len(batch.members)]
            shares[pair.images[place // len(batch.members)].candidate] = weight.mean().item()
    assert shares == {"c00": 0.5, "c01": 0.25, "c10": 1.0, "c11": 1.0}


TWO_HEADS = """
from prefkit.train.families.diffusers import DiffusersFamily
class Two(DiffusersFamily):
    def residuals(self, net, latents, draw, condition):
        image = super().residuals(net, latents, draw, condition)["image"]
        return {"image": image, "low": 0.5 * image[:, :2]}
"""


def test_two_heads_are_added_and_each_starts_at_log_two(run, tmp_path, loop_of, gradients):
    (tmp_path / "two.py").write_text(TWO_HEADS)
    store, recipe = run(family=f"{tmp_path}/two.py:Two", lora=None, validation=2)
    loop = loop_of(store, recipe)
    shown, gradient = gradients(loop)
    assert shown["loss"] == pytest.approx(2 * math.log(2), abs=1e-6)
    assert shown["image/implicit_accuracy"] == shown["low/implicit_accuracy"] == 0.5
    alone = []
    for head in ("image", "low"):
        loop.policy.net.zero_grad()
        whole = type(loop.family).residuals
        loop.family.residuals = lambda *given, head=head, whole=whole: {head: whole(loop.family, *given)[head]}
        own, part = gradients(loop)
        assert own["loss"] == pytest.approx(math.log(2), abs=1e-6)
        alone.append(part)
    del loop.family.residuals
    assert (sum(alone) - gradient).norm() < 1e-4 * gradient.norm()
    loop.policy.net.zero_grad()
    loop.run()
    assert loop.winner_warning.smooth != 0  # the guard on winners sees the mean over heads


def test_a_candidate_that_says_null_is_masked_as_its_request_says(run, pair_rows, loop_of):
    rows = pair_rows(1)
    rows[0] |= {"candidate_0": "c0", "candidate_1": "c1", "request_id": "r"}
    store, recipe = run(rows=rows, mask="where", batch_size=1)
    store.write_requests([Request("r", "other", extra={"where": [0, 0, 0.5, 1]})])
    found = [Candidate(f"c{i}", "r", i, 0, image=rows[0][f"jpg_{i}"], extra={"where": None}) for i in (0, 1)]
    store.candidates("other").append([candidate_row(c) for c in found])
    (batch,) = loop_of(store, recipe).micro_batches(0)[0]
    assert batch.weight.mean((1, 2, 3)).tolist() == [0.5, 0.5]


def test_another_mask_is_seen_and_no_training_goes_on_with_it(run, pair_rows, loop_of):
    store, recipe = masked(run, pair_rows, {"where": [0, 0, 0.5, 1]})
    run_train(store, recipe, "dpo", limit=1)
    requests = [replace(r, extra={"where": [0, 0, 1, 0.25]}) for r in store.requests()]
    (store.folder / "requests.parquet").unlink()
    store.write_requests(requests)
    (batch,) = loop_of(store, recipe).micro_batches(0)[0]
    assert batch.weight.mean().item() == 0.25
    with pytest.raises(FingerprintError, match="masks"):
        run_train(store, recipe, "dpo")


def test_mask_images_of_16_bits_and_those_that_are_broken(run, pair_rows, loop_of):
    buffer = io.BytesIO()
    Image.fromarray(np.full((64, 64), 16384, np.uint16)).save(buffer, "PNG")
    grey = rgb(buffer.getvalue())
    found = image_mask(grey, WIRING, torch.zeros(4, 8, 8), (64, 64))
    torch.testing.assert_close(found, torch.full((4, 8, 8), 63 / 255), rtol=1e-6, atol=0)
    store, recipe = masked(run, pair_rows, {"where": "mask"})
    store.inputs().append([{"id": "mask", "bytes": b"no image"}])
    with pytest.raises(UsageError, match="cannot be read as an image"):
        loop_of(store, recipe)
