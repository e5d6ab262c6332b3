"""Wrong requests, keys that meshes do not use, and stages for images: refused with a reason, never ignored."""

from __future__ import annotations

import json
import logging
import re

import numpy as np
import pytest
import torch
from bodies import people, write_requests

from prefkit.cli.main import run as main
from prefkit.errors import UsageError
from prefkit.mesh.body import JOINT_NAMES
from prefkit.mesh.diffusion.condition import mask_of
from prefkit.mesh.observed import observed
from prefkit.store import Store
from prefkit.train.families.mesh import MeshFamily
from prefkit.types import Request

RECIPE = """
run: RUN
model: {base: MODEL}
requests: {source: REQUESTS, test_share: 0}
generate: {own: {use: mesh, n: 1, steps: 2, call: {render: false}}}
train: {dpo: {family: mesh, objective: dpo, lora: null, pairs: own}}
"""


@pytest.fixture
def recipe(tmp_path, mesh_model):
    """Write a recipe of 3 requests, one changed by `change`; return its path."""

    def write(change=None, *swaps):
        rows = people(3)
        rows[1] |= change or {}
        text, places = RECIPE, {"RUN": tmp_path / "run", "MODEL": mesh_model}
        for name, place in (places | {"REQUESTS": write_requests(tmp_path / "people.jsonl", rows)}).items():
            text = text.replace(name, json.dumps(str(place)))
        for old, new in swaps:
            assert old in text
            text = text.replace(old, new, 1)
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"keypoint_names": 3}, "keypoint_names 3 must be one of free18"),
        ({"keypoint_names": "coco"}, "keypoint_names 'coco' is unknown"),
        ({"bbox": [1, 2, -5, 10]}, "bbox must be .x, y, width, height. with a width and height above 0"),
        ({"bbox": [1, 2, 3]}, "bbox must be four numbers"),
        ({"bbox": "wide"}, "bbox must be four numbers"),
        ({"camera": "pinhole"}, "`camera` .* is invalid"),
        (
            {"keypoints2d": [[1, 2, 1]] * 12},
            "keypoints2d has 12 rows, but keypoint_names .unset: free18. defines 18",
        ),
    ],
)
def test_an_invalid_request_is_a_value_error_with_the_reason(change, reason):
    row = {key: value for key, value in people(1)[0].items() if key != "keypoint_names"} | change
    with pytest.raises(ValueError, match=reason):
        observed(row, JOINT_NAMES)


def test_an_invalid_camera_fails_its_own_candidates_only(recipe, tmp_path):
    assert main(["generate", "-r", str(recipe({"camera": {"focal": 0, "principal": [1, 2], "size": [3, 4]}}))]) == 3
    errors = [c.error for c in Store(tmp_path / "run").iter_candidates() if c.error]
    assert len(errors) == 1 and "`camera`" in errors[0]


@pytest.mark.parametrize("mask", ["x", [1] * 19, [0.5] * 20, ["a"] * 20, [None] * 20, {"a": 1}, [[1], [1, 0]]])
def test_a_wrong_mask_is_a_value_error(mask):
    with pytest.raises(ValueError, match="pose_mask must be 20 numbers, each 0 or 1"):
        mask_of({"pose_mask": mask})
    with pytest.raises(ValueError, match="shape_mask must be 0 or 1"):
        mask_of({"shape_mask": mask})


@pytest.mark.parametrize(
    ("verb", "swap", "reason"),
    [
        ("generate", ("steps: 2", "steps: 2, guidance: 5"), "generate.own.guidance is set, but has no effect"),
        ("generate", ("steps: 2", "steps: 2, width: 64"), "generate.own.width is set"),
        ("generate", ("steps: 2", "steps: 2, height: 64"), "generate.own.height is set"),
        ("generate", ("steps: 2", "steps: 2, compile: true"), "generate.own.compile is set"),
        ("generate", ("steps: 2", "steps: 2, scheduler: DDIMScheduler"), "generate.own.scheduler is set"),
        ("generate", ("steps: 2", "steps: 2, negative_prompt: x"), "generate.own.negative_prompt is set"),
        ("generate", ("steps: 2", "steps: 2000"), "the model has 1000 timesteps"),
        (
            "generate",
            ("use: mesh, n: 1, steps: 2, call: {render: false}", "n: 1"),
            "is a mesh model, not an image pipeline",
        ),
        ("generate", ("model: {", "model: {quantize: int8, "), "model.quantize is set"),
        ("train", ("model: {", "model: {vae_tiling: true, "), "model.vae_tiling is set"),
        ("train", ("objective: dpo", "objective: ddpo"), "objective ddpo trains online"),
        ("train", ("pairs: own", "online: {rewards: {a: 1}}"), "objective dpo trains online"),
        (
            "eval",
            ("train:", "eval: {held_out: {base_guidance: [3]}}\ntrain:"),
            "eval.held_out.base_guidance is [3.0], but mesh models have no guidance",
        ),
        (
            "eval",
            ("generate: {own: {use: mesh, ", "eval: {h: {}}\ngenerate: {own: {use: a.py:b, "),
            "use: mesh, whose sampling settings",
        ),
    ],
)
def test_what_meshes_do_not_use_is_refused(recipe, capsys, verb, swap, reason):
    assert main([verb, "-r", str(recipe(None, swap))]) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("prediction", ["sample", "epsilon"])
def test_masked_entries_have_no_gradient(tmp_path, prediction):
    from prefkit.mesh.diffusion.network import MeshDenoiser, write_model

    torch.manual_seed(0)
    folder, family = write_model(tmp_path / "m", MeshDenoiser(18, 32, 48, 1), prediction), MeshFamily()
    family.load({"base": str(folder), "device": "cpu", "dtype": "float32"})
    row = people(1)[0] | {"pose_mask": [int(n != 3) for n in range(20)], "shape_mask": 0}
    condition = family.collate(family.conditions([Request("a", "x", extra=row)], (0, 0)))
    outputs = []
    family.net.leave.register_forward_hook(lambda _, __, output: outputs.append(output) or output.retain_grad())
    latents = torch.randn(1, 130)
    heads = family.residuals(family.net.requires_grad_(True), latents, family.draw("g", 0, latents[0]), condition)
    sum(head.square().mean() for head in heads.values()).backward()
    assert np.flatnonzero(outputs[0].grad[0] == 0).tolist() == [*range(18, 24), *range(120, 130)]


def test_the_log_of_a_library_about_a_missing_kernel_is_hidden():
    assert main(["--version"]) == 0
    assert not logging.getLogger("bitsandbytes.backends.cpu.ops").isEnabledFor(logging.WARNING)


@pytest.mark.parametrize(
    ("confidence", "reason"),
    [
        (0.0, "no keypoint has a confidence above 0"),
        (2.0, "confidence of keypoint 0 is 2; it must be from 0 .not detected. to 1"),
        (-0.5, "confidence of keypoint 0 is -0.5"),
        (None, "confidence of keypoint 0 is nan"),
    ],
)
def test_an_unusable_confidence_has_one_reason_everywhere(recipe, tmp_path, confidence, reason, mesh_model):
    """generate, score and train give the same reason; train names the request."""
    from prefkit.mesh.diffusion.condition import condition_of
    from prefkit.score.core import make_scorer
    from prefkit.types import Candidate

    change = {"keypoints2d": [[x, y, confidence] for x, y, _ in people(3)[1]["keypoints2d"]]}
    row = people(3)[1] | change
    for read in (lambda: observed(row, JOINT_NAMES), lambda: condition_of(row, 18)):
        with pytest.raises(ValueError, match=reason):
            read()
    assert main(["generate", "-r", str(recipe(change))]) == 3
    store = Store(tmp_path / "run")
    failed = [c for c in store.iter_candidates() if c.error]
    assert len(failed) == 1
    assert re.search(reason, failed[0].error)
    good = next(c for c in store.iter_candidates() if not c.error)
    (score,) = make_scorer("mesh_reprojection", {}).score([Candidate("c", "r", 0, 0, payload=good.payload, extra=row)])
    assert score.value is None
    assert re.search(reason, score.error)
    family = MeshFamily()
    family.load({"base": mesh_model, "device": "cpu", "dtype": "float32"})
    with pytest.raises(UsageError, match=f"request r7 cannot be trained on: .*{reason}"):
        family.conditions([Request("r7", "x", extra=row)], (0, 0))


def test_masks_that_leave_nothing_to_learn_are_refused_with_the_request(mesh_model):
    family, row = MeshFamily(), people(1)[0] | {"pose_mask": [0] * 20, "shape_mask": 0}
    family.load({"base": mesh_model, "device": "cpu", "dtype": "float32"})
    with pytest.raises(UsageError, match="request r7 cannot be trained on: pose_mask and shape_mask are 0 everywhere"):
        family.conditions([Request("r7", "x", extra=row)], (0, 0))
    assert mask_of({"pose_mask": [0] * 20}).sum() == 10 and mask_of({"shape_mask": 0}).sum() == 120


def test_a_lora_target_that_the_network_lacks_is_a_usage_error(mesh_model):
    from prefkit.models.lora.adapters import add_lora

    family = MeshFamily()
    family.load({"base": mesh_model, "device": "cpu", "dtype": "float32"})
    with pytest.raises(
        UsageError, match="no module name in MeshDenoiser ends in 'upp'. Did you mean 'up'.* end in down, enter"
    ):
        add_lora(family.net, 2, 2, ["film", "upp"])
    with pytest.raises(UsageError, match="ends in '0' is a Block, which cannot have an adapter.* time.0"):
        add_lora(family.net, 2, 2, ["0"])
    family.load({"base": mesh_model, "device": "cpu", "dtype": "float32"})
    assert add_lora(family.net, 2, 2) > 0  # a mesh network has no attention; its own targets are the default
