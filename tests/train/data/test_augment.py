"""Flips: chosen by (group, visit), the same for all images of a group, and applied to their masks too."""

from __future__ import annotations

import io
import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from prefkit.errors import UsageError
from prefkit.train.data.aspect_buckets import crop_box, fit
from prefkit.train.data.augment import Augmentation
from prefkit.train.data.groups import Group
from prefkit.train.data.pairs import PairImage, PairRow, PairSource, read_pairs
from prefkit.train.run import run_train
from prefkit.train.trainer import Trainer
from prefkit.types import Candidate, Request

WIDE = {"bucket": (64, 64), "original_size": (64, 128)}
FLIPS = Augmentation(flip=True)


def test_a_visit_has_one_view_for_all_its_images():
    pair = PairRow("id", 0, "a", None, (PairImage("a" * 40, 0, **WIDE), PairImage("b" * 40, 1, **WIDE)))
    three = Group("id", 0, "a", None, (*pair.images, PairImage("c" * 40, 0, **WIDE)), (1.0, 0.0, 0.0))
    seen = Counter()
    for visit in range(800):
        win, lose = FLIPS.at(pair, visit).images
        seen[win.flip] += 1
        assert win.flip == lose.flip and win.key != lose.key
        assert FLIPS.at(pair, visit) == FLIPS.at(pair, visit)
        assert FLIPS.at(three, visit).images[:2] == (win, lose)
    assert len(seen) == 2 and min(seen.values()) > 340
    assert FLIPS.at(pair, -1) is pair  # measurements
    assert {group.win.key for group in FLIPS.every(pair)} == set(FLIPS.keys(pair.win))
    assert len(set(FLIPS.keys(pair.win))) == 2


def test_a_view_shows_the_part_it_says():
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[:, :64, 0], pixels[:, 64:, 1] = 255, 255  # red on the left, green on the right
    picture = Image.fromarray(pixels)
    image = PairImage("a", 0, **WIDE)
    found = np.asarray(fit(picture, image)).astype(int)
    assert abs((found[..., 0].mean(0) > 127).sum() - 32) <= 1
    mirrored = np.asarray(fit(picture, PairImage("a", 0, **WIDE, flip=True))).astype(int)
    assert (mirrored == found[:, ::-1]).all()
    assert crop_box(image) == pytest.approx((0.25, 0, 0.75, 1))
    assert crop_box(PairImage("a", 0, bucket=(64, 64), original_size=(128, 64))) == pytest.approx((0, 0.25, 1, 0.75))


def test_training_sees_each_view_encoded(run, loop_of):
    loop = loop_of(*run(flip=True, batch_size=4))
    images = {(row, column): image for row, *both in source_images(loop) for column, image in enumerate(both)}
    family = whole_family(loop)
    flips = set()
    for step in range(4):
        for batch in loop.micro_batches(step)[0]:
            count = len(batch.members)
            for place, group in enumerate(batch.members):
                for which, image in enumerate(group.images):
                    picture = Image.open(io.BytesIO(images[group.row, image.column])).convert("RGB")
                    picture = ImageOps.mirror(picture) if image.flip else picture
                    expected = family.latents([Candidate("x", "", 0, 0, decoded=picture)])[0]
                    torch.testing.assert_close(batch.latents[which * count + place], expected, rtol=1e-4, atol=1e-5)
                    flips.add(image.flip)
    assert flips == {True, False}


def source_images(loop):
    from prefkit.store import Store

    return PairSource.find(Store(loop.folder.parents[1]), "main").images()


def whole_family(loop):
    from prefkit.train.families.diffusers import DiffusersFamily

    family = DiffusersFamily()
    family.load({"base": loop.family.pipe.config._name_or_path})
    family.pipe.vae.float()
    return family


def lines(store):
    rows = [json.loads(line) for line in (store.train("dpo") / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ("seconds", "crc")} for row in rows]


def test_what_is_visited_is_cached_and_resume_and_kept_errors_are_exact(run, pair_rows, monkeypatch):
    used = set()
    micro_batches = Trainer.micro_batches

    def noted(self, step):
        found = micro_batches(self, step)
        used.update(image.key for batches in found for b in batches for g in b.members for image in g.images)
        return found

    monkeypatch.setattr(Trainer, "micro_batches", noted)
    settings = {"rows": pair_rows(5, size=(96, 64)), "resolution": 64, "flip": True, "validation": 1}
    whole, recipe = run(where="whole", steps=5, **settings)
    run_train(whole, recipe, "dpo")
    held = {s.key for p in framed_held(whole, recipe) for s in p.images}
    (latents,) = (whole.folder / "train" / ".cache").glob("*/latents")
    from prefkit.train.data.cache import Cache

    assert set(Cache(latents).notes) == used | held and len(used) > 8
    parts, recipe = run(where="parts", steps=5, cache_reference=True, **settings)
    run_train(parts, recipe, "dpo", limit=3)
    run_train(parts, recipe, "dpo")
    again = run(where="parts", steps=5, cache_reference=True, **settings)[1]
    (parts.train("dpo")).rename(parts.train("dpo").with_name("first"))
    run_train(parts, again, "dpo")  # from the kept errors of the reference
    assert lines(parts) == lines(whole)


def framed_held(store, recipe):
    from prefkit.train.data.aspect_buckets import assign_buckets
    from prefkit.train.monitor.validation import split

    source = PairSource.find(store, "main")
    return split(assign_buckets(read_pairs(source), source, store, 64), recipe.train["dpo"].validation)[1]


@pytest.mark.parametrize("kind", ["box", "image"])
def test_masks_are_mirrored_and_cropped_along(run, pair_rows, loop_of, kind):
    rows = [row | {"request_id": row["caption"]} for row in pair_rows(4, size=(160, 64))]
    store, recipe = run(rows=rows, mask="where", resolution=64, flip=True)
    if kind == "image":
        drawn = np.zeros((64, 160), np.uint8)
        drawn[:32, 40:60] = 255
        buffer = io.BytesIO()
        Image.fromarray(drawn).save(buffer, "PNG")
        store.inputs().append([{"id": "drawn", "bytes": buffer.getvalue()}])
    where = [0.25, 0.0, 0.375, 0.5] if kind == "box" else "drawn"
    store.write_requests([Request(row["caption"], row["caption"], extra={"where": where}) for row in rows])
    loop = loop_of(store, recipe)
    seen = {}
    for step in range(6):
        for batch in loop.micro_batches(step)[0]:
            assert batch.weight.shape == batch.latents.shape
            seen |= {batch.members[0].win.flip: batch.weight[0, 0]}
    assert set(seen) == {True, False} and torch.equal(seen[True], seen[False].flip(-1))
    expected = torch.zeros(6, 12)  # a frame of 48 x 96 shows four fifths of an image of 64 x 160
    expected[:3, 2:5] = 1  # (0.25 - 0.1) / 0.8 * 12 = 2.25 to (0.375 - 0.1) / 0.8 * 12 = 4.125
    assert torch.equal((seen[False] > 0).float(), expected)


def test_views_that_would_be_wrong_are_refused(run, pair_rows, capsys):
    rows = [row | {"caption": "a cat on the left"} for row in pair_rows(4)]
    run_train(*run(where="sided", rows=rows, flip=True, steps=1), "dpo")
    assert "1 prompts say left or right" in capsys.readouterr().err
    with pytest.raises(UsageError, match="model.inputs"):
        run_train(*run(where="edits", flip=True, model={"inputs": {"image": "extra.person"}}), "dpo")
