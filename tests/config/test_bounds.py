"""Every number has a bound, and every default lies within it."""

from __future__ import annotations

import dataclasses
import math

import pytest

from prefkit import config, registry
from prefkit.config import bounds
from prefkit.config.reader import build
from prefkit.errors import UsageError

SETTINGS = [getattr(config, n) for n in ("Generate", "Score", "Compare", "Pair", "Train", "Online", "Lora", "Eval")]
SETTINGS.append(config.Requests)
UNBOUNDED = ("learning_rate", "max_grad_norm")  # nothing is counted or allocated by them
PLUGIN_PACKAGES = ("scorer", "strategy", "objective", "exporter", "fitter")


def options():
    for kind in PLUGIN_PACKAGES:
        for name in registry.builtin(kind):
            found = getattr(registry.load(kind, name), "Options", None)
            if found is not None:
                yield found


def numbers(kind):
    for f in dataclasses.fields(kind):
        if any(word in str(f.type) for word in ("int", "float")):
            yield f.name, f.default


def test_every_default_is_within_its_bound():
    checked = 0
    for kind in [*SETTINGS, *options()]:
        for name, default in numbers(kind):
            bound = bounds.of(kind, name)
            assert math.isfinite(bound.low) and math.isfinite(bound.high), (kind, name)
            if isinstance(default, (int, float)):
                assert bounds.broken(kind, name, default) is None, (kind, name, default)
                checked += 1
    assert checked > 120


def test_every_bound_is_of_a_field_that_there_is():
    known = {f.name for kind in [*SETTINGS, config.Model, *options()] for f in dataclasses.fields(kind)}
    assert set(bounds.BOUNDS) - known <= {"chunk"}  # of scorers on other machines


@pytest.mark.parametrize("section", ["generate", "compare", "pair", "train", "eval"])
def test_no_number_of_a_section_takes_ten_to_the_twenty_two(section):
    kind = getattr(config, section.capitalize())
    for name, _ in numbers(kind):
        for text in (*(["1" + "0" * 22] if name not in UNBOUNDED else []), "-1" + "0" * 22, "-1" + "0" * 400):
            hint = str(kind.__annotations__[name])
            value = [text] if "list" in hint else {"x": text} if "dict" in hint else text
            with pytest.raises(UsageError, match=f"{section}.a.{name}"):
                build(config.Recipe, {section: {"a": {name: value}}}, "")


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"train": {"t": {"steps": -1}}}, "train.t.steps is -1: it must be at least 1."),
        ({"train": {"t": {"learning_rate": 0}}}, "train.t.learning_rate is 0: it must be above 0."),
        (
            {"train": {"t": {"objective": {"use": "dpo", "beta": -1}}}},
            "train.t.objective.beta is -1: it must be at least 0.",
        ),
        ({"train": {"t": {"online": {"rewards": {"a": 1e9}}}}}, "train.t.online.rewards of a is 1e.09"),
        ({"eval": {"e": {"base_steps": [3, 0]}}}, r"eval.e.base_steps \[1\] is 0: it must be at least 1."),
        ({"requests": {"test_share": 1.5}}, "requests.test_share is 1.5: it must be between 0 and 1."),
        ({"score": {"s": {"use": "jpeg", "quality": 101}}}, "score.s.quality is 101: it must be at most 100."),
        ({"score": {"CON": {"use": "jpeg"}}}, "'CON' cannot be a name: Windows"),
        ({"score": {"a" * 101: {"use": "jpeg"}}}, "it has 101 letters, and at most 100 are allowed"),
        ({"score": {"..": {"use": "jpeg"}}}, "'..' cannot be a name"),
        ({"score": {"a.": {"use": "jpeg"}}}, "'a.' cannot be a name"),
    ],
)
def test_what_is_outside_is_named(tree, message):
    with pytest.raises(UsageError, match=message):
        build(config.Recipe, tree, "")


def test_a_huge_product_is_refused_before_it_is_planned(recipe, cli):
    lines = "\n".join(f"prompt {i}" for i in range(2500))
    (recipe.parent / "prompts.txt").write_text(lines)
    for more in ([], ["--dry-run"]):
        code, _, err = cli("generate", "-r", recipe, "--n", "10000", "--requests.test_share", "0", *more)
        assert code == 2 and "25,000,000 candidates, more than the limit of 20,000,000" in err
