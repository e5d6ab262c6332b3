"""A default follows from the recipe and the run folder, never from which flags are given."""

from __future__ import annotations

import pytest

from prefkit import Run
from prefkit.config.resolve import about, resolve
from prefkit.errors import RecipeError, UsageError
from prefkit.evaluate.sets import with_models
from prefkit.store import Store


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


def recipe(run, text=""):
    run.mkdir(exist_ok=True)
    (run / "recipe.yaml").write_text(f"model: {{base: tiny}}\n{text}")


@pytest.mark.parametrize("flags", [[], [("steps", "1")], [("learning_rate", "1e-4"), ("model.base", "x")]])
@pytest.mark.parametrize("where", ["recipe", "disk", "both"])
def test_the_only_pair_set_is_the_default_whatever_flags_are_there(run, flags, where):
    recipe(run, "" if where == "disk" else "pair: {mine: {}}\n")
    if where != "recipe":
        (run / "pairs/mine").mkdir(parents=True)
    assert resolve(str(run), None, "train", flags).train["dpo"].pairs == "mine"


def test_of_several_pair_sets_none_is_taken_and_what_is_said_is_kept(run):
    recipe(
        run,
        "pair: {mine: {}}\ntrain: {a: {steps: 3}, b: {pairs: elsewhere}, c: {online: {rewards: {x: 1}}}, d: null}\n",
    )
    found = resolve(str(run), None, "train", [("a.steps", "4")]).train
    assert [found[name].pairs for name in "abcd"] == ["mine", "elsewhere", "", "mine"]
    (run / "pairs/other").mkdir(parents=True)
    found = resolve(str(run), None, "train", [("a.steps", "4")]).train
    assert [found[name].pairs for name in "abcd"] == ["", "elsewhere", "", ""]
    assert resolve(str(run), None, "train", [("a.pairs", "''")]).train["a"].pairs == ""


def test_an_evaluation_without_models_is_of_every_training_at_its_time(run):
    def models(**planned):
        found = resolve(str(run), None, "eval", [("seeds", "2")])
        return with_models(Store(run), found, "held_out", **planned).eval["held_out"].models

    recipe(run, "train: {a: {pairs: x}, b: {pairs: x}}\n")
    assert models() == ["a", "b"]
    for name in ("b", "b-sft", "b-flipped"):
        (run / f"train/{name}/final").mkdir(parents=True)
    assert models() == ["b"] and models(planned=True) == ["a", "b"]
    Run(run, recipe=resolve(str(run), None, "eval", [("seeds", "2")])).save_recipe()
    (run / "train/a/final").mkdir(parents=True)  # after an evaluation has stored its settings
    assert models() == ["a", "b"]
    assert resolve(str(run), None, "eval", [("models", "[]")]).eval["held_out"].models == []


def test_a_nested_section_keeps_its_default_where_one_key_is_given(run):
    recipe(run)
    found = resolve(str(run), None, "train", [("objective.beta", "500"), ("lora.rank", "4")]).train["dpo"]
    assert (found.objective.use, found.objective.options, found.lora.rank) == ("dpo", {"beta": 500.0}, 4)


def test_use_never_overwrites_another_entry(run):
    recipe(run, "score: {blue: {use: jpeg}}\npair: {main: {}, people: {use: comparisons}}\n")
    flags = [("batch_size", "3"), ("use", "ocr")]
    found = resolve(str(run), None, "score", flags)
    assert {name: (e.use, e.batch_size) for name, e in found.score.items()} == {"blue": ("jpeg", 32), "ocr": ("ocr", 3)}
    assert about(found, "score", flags, []) == ["ocr"] and about(found, "score", [], []) == []
    found = resolve(str(run), None, "score", [("use", "jpeg"), ("batch_size", "3")])
    assert list(found.score) == ["blue"] and found.score["blue"].batch_size == 3
    flags = [("use", "comparisons")]
    found = resolve(str(run), None, "pair", flags)
    assert list(found.pair) == ["main", "people"] and about(found, "pair", flags, []) == ["people"]
    assert about(resolve(str(run), None, "pair", [("use", "topk_bottomk")]), "pair", [("use", "topk_bottomk")], []) == [
        "main"
    ]
    with pytest.raises(UsageError, match="has several entries"):
        resolve(str(run), None, "pair", [("k", "3")])


@pytest.mark.parametrize("flags", [[("use", "comparisons")], [("use", "comparisons"), ("prior", "2")]])
@pytest.mark.parametrize("text", ["", "pair: {a: {}, b: {use: margin}}\n", "pair: {a: {use: comparisons}}\n"])
def test_the_hint_after_an_import_works_in_every_run(run, flags, text):
    recipe(run, text)
    found = resolve(str(run), None, "pair", flags)
    (name,) = about(found, "pair", flags, [])
    assert found.pair[name].use == "comparisons" and all(
        found.pair[n].use != "comparisons" for n in found.pair if n != name
    )


@pytest.mark.parametrize(("verb", "key", "old", "new"), [("score", "use", "jpeg", "ocr"), ("pair", "use", "margin", "pareto"),
    ("train", "objective.use", "kto", "ipo"), ("train", "objective", "kto", "ipo")])  # fmt: skip
@pytest.mark.parametrize("there", [{}, {"mine": 0}, {"mine": 0, "more": 0}])
def test_a_plug_in_means_its_entry_or_a_new_one_of_its_name(run, verb, key, old, new, there):
    entry = {"objective": {"use": old}} if verb == "train" else {"use": old}
    recipe(run, f"{verb}: {dict.fromkeys(there, entry)}\n")
    found = {use: resolve(str(run), None, verb, [(key, use)]) for use in (old, new)}
    chosen = {use: about(found[use], verb, [(key, use)], []) for use in found}
    assert chosen == {old: list(there) or [old], new: [new]} and list(getattr(found[new], verb)) == [*there, new]
    second = resolve(str(run), None, verb, [(key, old)], ["second"])
    assert about(second, verb, [(key, old)], ["second"]) == ["second"] and "second" in getattr(second, verb)
    recipe(run, f"{verb}: {{{new}: {entry}}}\n")
    with pytest.raises(UsageError, match=f"{new} of {verb} uses {old}. Name the new entry with --name"):
        resolve(str(run), None, verb, [(key, new)])


def test_sections_given_in_python_are_laid_over_the_run_s_own_recipe(run):
    from prefkit import Run

    recipe(run, "score: {size: {use: jpeg}}\n")
    given = {"b": {"pairs": "main", "steps": 3}}
    found = Run(run, train=given).recipe
    assert (found.model.base, list(found.score), found.train["b"].steps) == ("tiny", ["size"], 3)
    assert given == {"b": {"pairs": "main", "steps": 3}}
    function = test_a_recipe_given_as_a_run_says_r
    assert Run(run, score={"t": {"use": function}}).recipe.score["t"].use == f"python:{function.__name__}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "generate: {n: 4}",
            r"generate.n: is a key of an entry, and every entry needs a name: write generate: {own: {n: 4}}",
        ),
        ("score: {use: jpeg}", r"every entry needs a name: write score: {own: {use: jpeg}}"),
        ("pair: {a: {strategy: margin}}", "Did you mean 'use'"),
        ("train: {a: {lr: 1}}", "Did you mean 'learning_rate'"),
        ("train: {a: {beta: 1}}", "Did you mean 'objective.beta'"),
    ],
)
def test_keys_in_the_wrong_place_or_by_another_tool_s_name(run, text, message):
    recipe(run, text)
    with pytest.raises(RecipeError, match=message):
        resolve(str(run), None, "run")


def test_a_recipe_given_as_a_run_says_r(cli):
    for verb in ("run", "generate", "report"):
        code, _, err = cli(verb, "recipe.yaml")
        assert code == 2 and f"Write `prefkit {verb} -r recipe.yaml`" in err
