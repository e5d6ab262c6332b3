"""A dry run ends as the run would, and writes nothing."""

from __future__ import annotations

import json
import shutil
import sys

import psutil
import pytest

from tests.core.test_bad_input import edit, stages


def files(folder):
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def both(cli, recipe, *arguments):
    """(code, last line) of the dry run, which writes nothing, and of the run."""
    before = files(recipe.parent)
    planned = cli(*arguments, "--dry-run")
    assert files(recipe.parent) == before
    done = cli(*arguments)
    return [(code, (err.strip().splitlines() or [""])[-1]) for code, _, err in (planned, done)]


@pytest.mark.parametrize(
    ("verb", "flags"),
    [
        ("generate", ["--format", ""]),
        ("generate", ["--splits", "[nope]"]),
        ("generate", ["--requests.source", "none.txt"]),
        ("score", []),
        ("pair", []),
        ("train", ["--steps", "-1"]),
        ("train", ["--schedule", "xyz"]),
        ("train", ["--pairs", "none"]),
        ("train", []),
        ("eval", []),
        ("eval", ["--models", "[]", "--scorers", "[nope]"]),
    ],
)
def test_the_first_command_of_a_new_run(drawn, cli, verb, flags):
    planned, done = both(cli, drawn, verb, "-r", drawn, *flags)
    assert planned == done and done[0] == 2, done


@pytest.mark.parametrize(
    ("verb", "flags", "code"),
    [
        ("generate", ["--seed", "7"], 1),
        ("score", ["--name", "size", "--size.quality", "50"], 1),
        ("pair", ["--tie", "1e6"], 2),
        ("pair", ["--weights", "{sise: 1}"], 2),
        ("pair", ["--k", "9"], 2),
    ],
)
def test_what_was_made_with_other_settings_is_found(drawn, cli, verb, flags, code):
    stages(cli, drawn, "generate", "score")
    planned, done = both(cli, drawn, verb, "-r", drawn, *flags)
    assert planned == done and done[0] == code, (planned, done)


def test_a_limited_run_is_planned_as_it_would_be_done(drawn, cli):
    _, out, _ = cli("run", "-r", drawn, "--limit", 1, "--dry-run", "--json")
    assert {row["name"]: row.get("wanted") for row in json.loads(out)}["own"] == 4
    stages(cli, drawn, "generate", "score", "pair")
    shutil.move(drawn.parent / "run", f"{drawn.parent}/run-limit1")
    _, out, _ = cli("run", "-r", drawn, "--limit", 1, "--dry-run", "--json")
    wanted = {row["name"]: row.get("wanted") for row in json.loads(out)}
    assert wanted["taste"] > 4 and wanted["dpo"] == 4  # all that is there, and the recipe's steps


def test_another_entry_of_the_same_stage_excuses_nothing(drawn, cli):
    """`size` has all to do, and `taste` was scored by another scorer: the run ends with that."""
    stages(cli, drawn, "generate")
    assert cli("score", "-r", drawn, "-q", "--name", "taste")[0] == 0
    taste = drawn.parent / "taste.py"
    taste.write_text(taste.read_text().replace("255", "256"))
    planned, done = both(cli, drawn, "score", "-r", drawn)
    assert planned == done and done[0] == 1 and "taste" in done[1], (planned, done)


STARTS = """
import json, sys
open("LOG", "a").write("started\\n")
print(json.dumps({"protocol": 1, "spec": {"name": "mine", "version": "1"}}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    print(json.dumps({"request": asked["request"], "scores": [1.0] * len(asked["items"])}), flush=True)
open("LOG", "a").write("ended\\n")
"""


def test_a_plan_starts_a_scorer_of_another_process_once_and_ends_it(drawn, cli):
    log = drawn.parent / "log"
    (drawn.parent / "own.py").write_text(STARTS.replace("LOG", str(log)))
    edit(drawn, "{use: jpeg}", f"{{use: 'exec:{sys.executable} {drawn.parent}/own.py'}}")
    edit(drawn, "own: {", "sd: {n: 1, steps: 1}\n  own: {")
    edit(drawn, "models: [dpo], scorers: [size, taste]", "models: [], scorers: [size], base_steps: [2, 3]")
    stages(cli, drawn, "generate")
    before = set(psutil.Process().children())
    for verb in ("score", "eval"):
        log.unlink(missing_ok=True)
        code, _, err = cli(verb, "-r", drawn, "--dry-run")
        assert code == 0 and log.read_text().count("started") == 1, (verb, err)
        assert set(psutil.Process().children()) == before


def test_a_whole_recipe_is_planned_though_nothing_is_made_yet_but_not_with_a_fault(drawn, cli):
    edit(drawn, "eval:\n  held_out: {", "eval:\n  held_out: {generator: sd, ")
    edit(drawn, "generate:\n", "generate:\n  sd: {n: 1, steps: 1}\n")
    assert cli("run", "-r", drawn, "--dry-run")[0] == 0
    for flags, message in (
        (["--train.dpo.schedule", "xyz"], "schedule: 'xyz' is unknown"),
        (["--pair.main.weights", "{sise: 1}"], "no scores called sise exist, only size, taste"),
        (["--pair.main.weights", "{size: 0}"], "every weight is 0"),
        (["--pair.main.k", "9"], "needs 18 scored candidates per request, but no request has more than"),
        (["--eval.held_out.models", "[nope]"], "train/nope"),
        (["--train.dpo.pairs", "nope"], "'nope' is neither a name under"),
    ):
        code, out, err = cli("run", "-r", drawn, *flags, "--dry-run")
        assert code == 2 and message in err and "generate" in out, (flags, err)


def test_the_controls_of_a_training_are_checked_too(drawn, cli):
    stages(cli, drawn, "generate", "score", "pair")
    control = drawn.parent / "run" / "train" / "dpo-sft"
    (control / "final").mkdir(parents=True)
    (control / "spec.json").write_text('{"call": "another"}')
    planned, done = both(cli, drawn, "train", "-r", drawn, "--controls")
    assert planned == done and done[0] == 1 and "dpo-sft was made with other settings" in done[1]
    assert cli("run", "-r", drawn, "--controls", "--dry-run")[0] == 1
    assert cli("train", "-r", drawn, "--dry-run")[0] == 0
