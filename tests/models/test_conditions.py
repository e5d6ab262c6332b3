from __future__ import annotations

import pytest
import torch

from prefkit.errors import CaptureError, UsageError
from prefkit.models import trees
from prefkit.models.capture.call import capture
from prefkit.models.capture.conditions import batch_rules, capture_conditions, collate, signature
from prefkit.models.capture.record import record_run
from prefkit.testing import TINY_KINDS

PROMPTS = ["a red cat", "a dog in a hat"]


def assert_equal_trees(a, b):
    a, b = dict(trees.leaves(a)), dict(trees.leaves(b))
    assert a.keys() == b.keys()
    for path, leaf in a.items():
        if isinstance(leaf, torch.Tensor):
            torch.testing.assert_close(leaf, b[path], rtol=1e-5, atol=1e-5, msg=path)
        else:
            assert leaf == b[path], path


@pytest.mark.parametrize("kind", TINY_KINDS)
def test_conditions_are_what_a_real_call_passes(load, kind):
    pipe = load(kind)
    wiring = capture(pipe, height=64, width=64)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    call = {"prompt": PROMPTS, "height": 64, "width": 64, "num_inference_steps": 2, "generator": generators}
    real = record_run(pipe, wiring.denoiser, call | dict(wiring.no_guidance)).steps[0].arguments
    del real[wiring.sample], real[wiring.time]
    ours = capture_conditions(pipe, wiring, PROMPTS, height=64, width=64)
    assert_equal_trees(collate(wiring, ours), real)


@pytest.mark.parametrize("kind", TINY_KINDS)
def test_conditions_need_neither_the_denoisers_nor_the_vaes_weights(load, kind):
    whole = load(kind)
    wiring = capture(whole, height=64, width=64)
    light = load(kind, parts={"text"})
    assert all(parameter.is_meta for parameter in getattr(light, wiring.denoiser).parameters())
    assert all(parameter.is_meta for parameter in light.vae.parameters())
    for a, b in zip(
        capture_conditions(light, wiring, PROMPTS, height=64, width=96),
        capture_conditions(whole, wiring, PROMPTS, height=64, width=96),
        strict=True,
    ):
        assert_equal_trees(a, b)


def test_the_embedded_guidance_of_flux_keeps_the_value_of_generation(load):
    pipe = load("flux")
    wiring = capture(pipe, height=64, width=64)
    for guidance in (1.5, 3.5):
        call = {"guidance_scale": guidance, "true_cfg_scale": 4.0, "negative_prompt": "dull"}
        (tree,) = capture_conditions(pipe, wiring, ["a cat"], height=64, width=64, call=call)
        assert tree["guidance"].tolist() == [guidance]
        assert len(tree["encoder_hidden_states"]) == 1


def test_classifier_free_guidance_is_left_out(load):
    pipe = load("sd")
    wiring = capture(pipe, height=64, width=64, call={"guidance_scale": 7.5})
    plain = capture_conditions(pipe, wiring, ["a cat"], height=64, width=64)[0]
    guided = capture_conditions(pipe, wiring, ["a cat"], height=64, width=64, call={"guidance_scale": 7.5})[0]
    assert_equal_trees(plain, guided)
    with pytest.raises(UsageError, match="guidence"):
        capture_conditions(pipe, wiring, ["a cat"], call={"guidence": 7.5})


def test_signatures_tell_what_may_share_a_batch(load):
    pipe = load("flux")
    wiring = capture(pipe, height=64, width=64)
    square = capture_conditions(pipe, wiring, PROMPTS, height=64, width=64)
    wide, tall = (
        capture_conditions(pipe, wiring, PROMPTS[:1], height=h, width=w)[0] for h, w in ((32, 128), (128, 32))
    )
    assert signature(wiring, square[0]) == signature(wiring, square[1])
    assert len({signature(wiring, tree) for tree in (square[0], wide, tall)}) == 3  # img_ids differ in value only


def test_batch_rules():
    once = {"a": torch.ones(1, 3), "b": torch.ones(2), "c": [(1, 2)], "d": None, "e": ({"f": torch.ones(3, 1)}, 5)}
    twice = {"a": torch.ones(2, 3), "b": torch.ones(2), "c": [(1, 2)] * 2, "d": None, "e": ({"f": torch.ones(3, 2)}, 5)}
    rules = batch_rules(once, twice, "X")
    assert rules == {"a": 0, "b": "shared", "c": "list", "d": "shared", "e.0.f": 1, "e.1": "shared"}
    for bad in ({"a": torch.ones(3, 3)}, {"a": torch.zeros(1, 3)}, {"a": None}):
        with pytest.raises(CaptureError, match="X: a"):
            batch_rules({"a": torch.ones(1, 3)}, bad, "X")


def test_trees_survive_the_way_through_bytes():
    tree = {
        "a": torch.randn(2, 3).bfloat16(),
        "b": [None, 1.5, (torch.arange(3), "x")],
        "c": {"d.e": torch.zeros(0), "f": []},
    }
    back = trees.loads(trees.dumps(tree))
    assert_equal_trees(tree, back)
    assert isinstance(back["b"][2], tuple) and back["c"]["f"] == [] and back["a"].dtype == torch.bfloat16
