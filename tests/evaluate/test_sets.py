"""Which scorers chose the pairs, which controls are there."""

from __future__ import annotations

from prefkit.config import Eval, Pair, Recipe, Train
from prefkit.evaluate.sets import controls_report, used_for_pairs

RECIPE = Recipe(
    pair={"main": Pair(weights={"align": 1.0}), "open": Pair()},
    train={"dpo": Train(pairs="main"), "all": Train(pairs="open"), "foreign": Train(pairs="someone/pairs")},
)


def test_the_pairs_of_the_model_itself_decide():
    assert used_for_pairs(RECIPE, "dpo", "align", False)
    assert not used_for_pairs(RECIPE, "dpo", "taste", False)
    assert used_for_pairs(RECIPE, "dpo-sft", "align", False)
    assert not used_for_pairs(RECIPE, "dpo-flipped", "taste", False)
    assert not used_for_pairs(RECIPE, "foreign", "align", False)


def test_empty_weights_mean_all_that_are_not_evaluation_only():
    assert used_for_pairs(RECIPE, "all", "taste", False)
    assert not used_for_pairs(RECIPE, "all", "taste", True)


def test_base_variants_look_at_every_pair_set():
    assert used_for_pairs(RECIPE, "base-g5.0", "align", True)
    assert not used_for_pairs(RECIPE, "base-g5.0", "taste", True)


def test_missing_controls_are_named():
    cfg = Eval(models=["dpo"], base_guidance=[5.0])
    report = controls_report(cfg, {"base": 0, "dpo": 0, "dpo-sft": 0, "base-g5.0": 0})
    assert report["sft"] and not report["flipped"] and report["base_guidance"] and not report["base_steps"]
    assert [line.split(":")[0] for line in report["missing"]] == [
        "dpo-flipped",
        "base at other step counts (eval.base_steps)",
    ]
