from __future__ import annotations

from pathlib import Path

import pytest

from prefkit.config import Recipe
from prefkit.config import reader as recipe
from prefkit.errors import RecipeError, UsageError


def write(folder: Path, text: str) -> Path:
    (folder / "r.yaml").write_text(text)
    return folder / "r.yaml"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: x\ngenerate:\n  own: {step: 3}", r"r.yaml:3: generate.own.step: unknown key. Did you mean 'steps'\?"),
        ("run: x\nscores: {}", r"r.yaml:2: scores: unknown key. Did you mean 'score'\?"),
        ("run: x\ngenerate:\n  own:\n    n: many", "r.yaml:4: generate.own.n: must be a whole number, not many"),
        ("run: x\ngenerate:\n  own:\n    steps: 2.5", "r.yaml:4: generate.own.steps: must be a whole number, not 2.5"),
        ("run: x\ngenerate: own", "r.yaml:2: generate: must be a mapping"),
        ("run: x\ngenerate:\n  own: {splits: null}", "r.yaml:3: generate.own.splits: must be a list. Leave it out"),
        (
            "run: x\nscore:\n  a: {use: clop, model: x}",
            "r.yaml:3: score.a.use: no scorer is called 'clop'. Did you mean 'clip'",
        ),
        ("run: x\nscore:\n  a: {use: clip, modle: x}", r"r.yaml:3: score.a.modle: unknown key. Did you mean 'model'\?"),
        (
            "run: x\nscore:\n  a: {use: jpeg, direction: up}",
            "r.yaml:3: score.a.direction: must be one of compress, expand",
        ),
        ("run: x\npair:\n  a: {k: two}", "r.yaml:3: pair.a.k: must be a whole number, not two"),
        ("run: x\nrun: y", "r.yaml:2: run: the key is given twice"),
        ("run: [x", "r.yaml:.*: not valid YAML"),
        ("- a", "r.yaml:1: a recipe is a mapping"),
        (
            "run: x\ntrain:\n  d: {objective: {use: dpo, bata: 3}}",
            "r.yaml:3: train.d.objective.bata: unknown key. Did you mean 'beta'",
        ),
    ],
)
def test_errors_name_file_line_key_and_the_nearest_name(tmp_path, text, message):
    with pytest.raises(RecipeError, match=message):
        recipe.read(write(tmp_path, text))


def test_types_decide_how_values_are_read(tmp_path):
    found = recipe.read(
        write(
            tmp_path,
            "run: no\nmodel: {base: 1e3, revision: null, adapters: {a: 1}}\ntrain:\n  t: {learning_rate: 1e-4, lora: null}\n"
            "generate:\n  g: {call: {eta: 1e-3, flag: true, word: 'true', none: null}, negative_prompt: 'null'}\n",
        )
    )
    assert found.run == "no" and found.model.base == "1e3" and found.model.revision is None
    assert found.model.adapters == {"a": 1.0}
    assert found.train["t"].learning_rate == 1e-4 and found.train["t"].lora is None
    assert found.generate["g"].call == {"eta": 1e-3, "flag": True, "word": "true", "none": None}
    assert found.generate["g"].negative_prompt == "null"


def test_the_resolved_recipe_reads_back_to_itself(recipe, tmp_path):
    from prefkit.config.reader import dump, read

    found = read(recipe)
    (tmp_path / "again.yaml").write_text(dump(found))
    assert read(tmp_path / "again.yaml") == found
    assert dump(read(tmp_path / "again.yaml")) == dump(found)


def test_a_missing_recipe_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="could not be read: No such file"):
        recipe.read(tmp_path / "none.yaml")


def test_flags_win_over_the_recipe(recipe):
    from prefkit.config.resolve import resolve

    found = resolve(None, str(recipe), "generate", [("steps", "7"), ("model.revision", "v2"), ("own.guidance", "1e0")])
    assert (found.generate["own"].steps, found.model.revision, found.generate["own"].guidance) == (7, "v2", 1.0)
    assert found.generate["own"].n == 4


def test_a_flag_of_several_entries_asks_which(recipe):
    from prefkit.config.resolve import resolve

    with pytest.raises(UsageError, match="has several entries"):
        resolve(None, str(recipe), "score", [("batch_size", "2")])
    found = resolve(None, str(recipe), "score", [("batch_size", "2")], ["size"])
    assert found.score["size"].batch_size == 2 and found.score["taste"].batch_size == Recipe().score.get("x", 32)


def test_a_short_flag_names_a_unique_option_of_a_block(recipe):
    from prefkit.config.resolve import resolve

    def train(*flags):
        return resolve(None, str(recipe), "train", flags).train["dpo"]

    found = train(("beta", "500"), ("rank", "3"), ("lora.alpha", "4"))
    assert found.objective.options == {"beta": 500.0} and (found.lora.rank, found.lora.alpha) == (3, 4)
    found = train(("dpo.sft", "0.5"), ("dpo.objective", "ipo"))  # the plug-in's name first, wherever it is given
    assert (found.objective.use, found.objective.options) == ("ipo", {"sft": 0.5})
    found = train(("online.rewards", "{size: 1}"), ("samples", "6"), ("steps", "7"))
    assert (found.online.samples, found.online.steps, found.steps) == (6, None, 7)
    with pytest.raises(UsageError, match="dpo.samples: unknown key"):
        train(("samples", "6"))  # no block `online`
    with pytest.raises(UsageError, match="unknown key. Did you mean"):
        train(("lora", "none"), ("rank", "3"))
    with pytest.raises(UsageError, match="train.dpo.objective: must be a mapping"):
        train(("dpo.objective", "[1]"), ("beta", "3"))


def test_a_short_flag_of_two_blocks_is_refused_with_both_names(recipe, tmp_path):
    from prefkit.config.resolve import resolve

    (tmp_path / "o.py").write_text(
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Options:\n    #: x\n    dropout: float = 0.0\n"
        "class O:\n    Options = Options\n"
    )
    flags = [("dpo.objective", f"{tmp_path}/o.py:O"), ("dropout", "0.1")]
    with pytest.raises(UsageError, match="--objective.dropout, --lora.dropout"):
        resolve(None, str(recipe), "train", flags)


def test_an_option_of_a_plug_in_that_is_named_alone_keeps_the_name(tmp_path):
    from prefkit.config.resolve import resolve

    path = write(tmp_path, "run: x\nscore: {size: jpeg}\ntrain: {a: {objective: ipo}}")
    found = resolve(None, str(path), "score", [("size.direction", "expand"), ("train.a.objective.sft", "0.5")])
    assert (found.score["size"].use, found.train["a"].objective.use) == ("jpeg", "ipo")


def test_flags_reach_entries_whose_names_have_dashes(tmp_path):
    from prefkit.config import resolve

    path = tmp_path / "r.yaml"
    path.write_text("run: r\ntrain:\n  dpo-all: {pairs: p}\n  dpo_few: {pairs: p}\n")
    flags = [("train.dpo_all.steps", "3"), ("dpo_all.seed", "4"), ("dpo_few.steps", "5")]
    recipe = resolve.resolve(None, str(path), "train", flags)
    assert {name: (entry.steps, entry.seed) for name, entry in recipe.train.items()} == {
        "dpo-all": (3, 4),
        "dpo_few": (5, recipe.train["dpo_few"].seed),
    }
