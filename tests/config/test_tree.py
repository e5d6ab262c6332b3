"""What is read as YAML: bounded in depth, size and expansion, whatever is written."""

from __future__ import annotations

import os

import pytest

from prefkit.config import reader as recipe
from prefkit.config import tree
from prefkit.errors import RecipeError, UsageError

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a}]\n" for a, b in zip("abcdefghij", "bcdefghijk")
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, r"r.yaml:\d+: the references .* expand to more than 50,000 values"),
        ("fast: &a {x: *a}", "r.yaml:1: a reference .* is inside its own value"),
        ("fast: &a [[*a]]", "is inside its own value"),
        ("fast: " + "{a: " * 3000 + "1" + "}" * 3000, "r.yaml:1: nested deeper than 24 levels"),
        ("fast: " + "[" * 100_000, "nest"),
        ("fast: [" + "x," * 60_000 + "]", "more than 50,000 values"),
        ("run: x\n" + "# long\n" * 50_000, "larger than 256,000 bytes"),
        ('run: "a\\0b"', "r.yaml:1: .* contains a NUL character"),
        ('"a\\0b": 1', "contains a NUL character"),
        ('run: "\\ud800"', "a lone surrogate|not valid YAML"),
        ('run: "\\UFFFFFFFF"', "not valid YAML"),
        ("run: x\x07", "not valid YAML"),
        ("run: x\n---\nrun: y", "not valid YAML"),
        ("fast: {a: 1, a: 2}", "given twice"),
        ("generate: {a: {call: {x: 1, x: 2}}}", "given twice"),
    ],
)
def test_what_would_hang_or_break_is_a_sentence(tmp_path, text, message):
    (tmp_path / "r.yaml").write_bytes(text.encode())
    with pytest.raises(RecipeError, match=message):
        recipe.read(tmp_path / "r.yaml")


def test_aliases_that_stay_small_are_values(tmp_path):
    (tmp_path / "r.yaml").write_text("run: x\ngenerate: {a: &a {n: 3}, b: *a}\n")
    found = recipe.read(tmp_path / "r.yaml")
    assert found.generate["a"] == found.generate["b"] and found.generate["b"].n == 3


def test_a_recipe_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path, message in (
        (tmp_path, "is a folder"),
        (tmp_path / "fifo", "is not a file"),
        ("/dev/zero", "is not a file"),
    ):
        with pytest.raises(UsageError, match=message):
            recipe.read(path)


@pytest.mark.parametrize(
    ("text", "message"), [("[" * 200, "nested deeper"), ("&a [*a]", "inside its own value"), ("{", "is not valid YAML")]
)
def test_flags_are_read_by_the_same_reader(text, message):
    with pytest.raises(UsageError, match=message) as caught:
        tree.overlay({}, "pair.main.k", text)
    assert str(caught.value).startswith("--pair.main.k: ")


@pytest.mark.parametrize("colour", ["#fff", " #it's"])
def test_a_flag_that_begins_with_a_hash_is_a_string_and_no_comment(colour):
    found: dict = {}
    tree.overlay(found, "background", colour)
    assert found == {"background": colour}


def test_numbers_of_untyped_options_are_what_json_can_hold(tmp_path):
    values = "{a: 1e3, b: nan, c: .inf, d: 1e999, e: 99999999999999999999999, f: 7}"
    (tmp_path / "r.yaml").write_text(f"generate: {{a: {{call: {values}}}}}")
    found = recipe.read(tmp_path / "r.yaml").generate["a"].call
    assert found == {"a": 1000.0, "b": "nan", "c": ".inf", "d": "1e999", "e": "9" * 23, "f": 7}


def test_merge_keys_lay_a_mapping_below(tmp_path):
    text = (
        "score:\n  a: &a {use: jpeg, quality: 50}\n  b: {<<: *a, quality: 60}\n  c: {<<: [{quality: 70}, *a]}\nrun: x\n"
    )
    (tmp_path / "r.yaml").write_text(text)
    found = recipe.read(tmp_path / "r.yaml").score
    assert {name: (entry.use, entry.options) for name, entry in found.items()} == {
        "a": ("jpeg", {"quality": 50}),
        "b": ("jpeg", {"quality": 60}),
        "c": ("jpeg", {"quality": 70}),
    }
    (tmp_path / "r.yaml").write_text("score: {a: {<<: jpeg}}\n")
    with pytest.raises(RecipeError, match="r.yaml:1: << takes a mapping"):
        recipe.read(tmp_path / "r.yaml")
