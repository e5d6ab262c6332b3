"""Which scorers chose the pairs, what was trained on, which generator samples, which controls are there."""

from __future__ import annotations

import pytest

from prefkit.config import Eval, Generate, Model, Pair, Recipe, Train, compatibility
from prefkit.errors import UsageError
from prefkit.evaluate import sets
from prefkit.evaluate.sets import controls_report
from prefkit.evaluate.summary import summary_rows
from prefkit.models.load.trained import write_trained_on
from prefkit.store import Store
from prefkit.types import Request

RECIPE = Recipe(
    pair={"main": Pair(weights={"align": 1.0}), "open": Pair()},
    train={"dpo": Train(pairs="main"), "all": Train(pairs="open"), "foreign": Train(pairs="someone/pairs")},
)


def used_for_pairs(recipe, model, alias, evaluation_only, records=None):
    return sets.used_for_pairs(recipe, records or {}, model, alias, evaluation_only)


def test_the_pairs_of_the_model_itself_decide():
    assert used_for_pairs(RECIPE, "dpo", "align", False)
    assert not used_for_pairs(RECIPE, "dpo", "taste", False)
    assert used_for_pairs(RECIPE, "dpo-sft", "align", False)
    assert not used_for_pairs(RECIPE, "dpo-flipped", "taste", False)


def test_empty_weights_mean_all_that_are_not_evaluation_only():
    assert used_for_pairs(RECIPE, "all", "taste", False)
    assert not used_for_pairs(RECIPE, "all", "taste", True)


def test_base_variants_look_at_every_pair_set():
    assert used_for_pairs(RECIPE, "base-g5.0", "align", True)
    assert not used_for_pairs(RECIPE, "base-g5.0", "taste", True)


def test_of_pairs_from_elsewhere_nobody_knows_unless_the_training_kept_it():
    assert used_for_pairs(RECIPE, "foreign", "align", False) is None
    assert used_for_pairs(RECIPE, "not-in-the-recipe", "align", False) is None
    silent = {"foreign": {"captions": [], "scorers": None, "base": "x"}}
    assert used_for_pairs(RECIPE, "foreign", "align", False, silent) is None
    telling = {"foreign": {"captions": [], "scorers": ["align"], "base": "x"}}
    assert used_for_pairs(RECIPE, "foreign", "align", False, telling) is True
    assert used_for_pairs(RECIPE, "foreign", "taste", False, telling) is False


def test_the_record_of_the_training_goes_before_a_recipe_that_changed_since():
    record = {"dpo": {"captions": [], "scorers": ["taste"], "base": "x"}}
    assert used_for_pairs(RECIPE, "dpo", "taste", False, record) is True
    assert used_for_pairs(RECIPE, "dpo", "align", False, record) is False


def test_prompts_are_training_prompts_by_the_record_of_the_model_whatever_the_splits_are_now(tmp_path):
    store = Store.create(tmp_path / "run")
    held_out = [Request("a", "A  red hat", "test"), Request("b", "a boot", "test"), Request("c", "a coat", "test")]
    store.write_requests([*held_out, Request("d", "a BOOT", "train")])
    write_trained_on(store.train("dpo"), ["a red HAT", "a scarf"], None, Model(), "base")
    (store.train("dpo") / "final").mkdir()
    (store.train("old") / "final").mkdir(parents=True)
    records = sets.records_of(store, {"base": 0, "base-s3": 0, "dpo": 0, "old": 0})
    assert set(records) == {"dpo", "old"} and records["old"] is None
    assert sets.in_training(store, {"held_out": held_out}, records) == {"held_out": 2}
    assert sets.in_training(store, {"held_out": held_out}, {}) == {"held_out": 1}


def test_the_summary_tells_unknown_from_held_out():
    row = {"base": 1.0, "tuned": 2.0, "win_rate": 0.7, "ci_low": 0.6, "ci_high": 0.8, "verdict": "better"}
    scorers = {name: row | {"used_for_pairs": used} for name, used in (("a", True), ("b", None), ("c", False))}
    rows = summary_rows([{"sets": {"held_out": {"dpo": scorers}}}])
    assert [r["judge"] for r in rows] == ["c", "b?", "a*"]


def test_the_generator_of_an_evaluation_is_one_that_loads_models():
    drawn, own = Generate(use="gen.py:draw"), Generate(steps=7)
    recipe = Recipe(generate={"drawn": drawn, "own": own})
    assert sets.settings_of(recipe, Eval())[0] == "own"
    with pytest.raises(UsageError, match="cannot load trained models"):
        compatibility.check("eval", "e", recipe, Eval(generator="drawn"))
    with pytest.raises(UsageError, match="use: diffusers"):
        compatibility.check("eval", "e", Recipe(generate={"drawn": drawn}), Eval())


def test_missing_controls_are_named():
    cfg = Eval(models=["dpo"], base_guidance=[5.0])
    report = controls_report(cfg, {"base": 0, "dpo": 0, "dpo-sft": 0, "base-g5.0": 0})
    assert report["sft"] and not report["flipped"] and report["base_guidance"] and not report["base_steps"]
    assert [line.split(":")[0] for line in report["missing"]] == [
        "dpo-flipped",
        "base with different step counts (eval.base_steps)",
    ]
