"""--dry-run makes the checks of the real command: the same exit code, and the same error; it writes nothing."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace

import drawing
import psutil
import pytest

from prefkit.cli import dry_run
from prefkit.cli.main import run
from prefkit.config import reader
from prefkit.errors import FingerprintError
from prefkit.store import Store
from prefkit.store.files import write_json
from tests.core.test_bad_input import edit, one_paragraph, stages

RECIPE = """
run: run
model: {base: tiny}
requests: {source: prompts.txt, test_share: 0.25}
generate: {own: {use: "draw.py:draw", n: 3}}
score: {blue: {use: "taste.py:blue"}}
pair: {main: {k: 1}}
train: {dpo: {pairs: main, steps: 1}}
eval: {held_out: {models: [dpo]}}
"""
TASTE = """def blue(images, prompts):
    return [image.resize((1, 1)).getpixel((0, 0))[2] for image in images]
def needy(images, prompts, user):
    return [1.0 for _ in images]
"""


def files(folder):
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def both(cli, recipe, *arguments):
    """(code, error) of the dry run, which writes nothing, and of the run."""
    before = files(recipe.parent)
    planned = cli(*arguments, "--dry-run")
    assert files(recipe.parent) == before
    done = cli(*arguments)
    return [(code, one_paragraph(err)) for code, _, err in (planned, done)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a recipe, candidates, scores, pairs, and a stand-in for a training of other settings."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copy(drawing.__file__, folder / "draw.py")
    (folder / "prompts.txt").write_text("\n".join(f"a {c} hat" for c in ("red", "blue", "green", "white", "black")))
    (folder / "taste.py").write_text(TASTE)
    (folder / "r.yaml").write_text(RECIPE)
    for verb in ("generate", "score", "pair"):
        assert run([verb, "-r", str(folder / "r.yaml"), "-q"]) == 0
    (folder / "run/train/dpo/final").mkdir(parents=True)
    write_json(folder / "run/train/dpo/spec.json", {"train": {"pairs": "main"}})
    return folder


OWN, BLUE = 'own: {use: "draw.py:draw", n: 3}', 'blue: {use: "taste.py:blue"}'
#: verb, text in the recipe or None (taste.py is changed), text in its place, exit code, part of the message
CASES = {
    "no prompts": ("generate", "prompts.txt", "absent.txt", 2, "absent.txt does not exist"),
    "size": ("generate", OWN, "own: {height: 63, width: 64}", 2, "needs multiples of 8"),
    "argument": ("generate", OWN, "own: {call: {foo: 1}}", 2, "takes no argument foo"),
    "changed seed": ("generate", "n: 3", "n: 3, seed: 7", 1, "which moves candidates/own and everything"),
    "untrained": ("generate", OWN, "own: {model: dpo}", 2, "train/dpo"),
    "changed scorer": ("score", None, "[1]", 1, "which moves scores/blue and everything"),
    "no function": ("score", "taste.py:blue", "taste.py:red", 2, "has no red"),
    "column": ("score", BLUE, 'c: {use: "taste.py:needy"}', 2, "needs user"),
    "architecture": ("score", BLUE, "c: {use: clip, model: ViT-Q}", 2, "no model 'ViT-Q'"),
    "tag": ("score", BLUE, "c: {use: clip, pretrained: x.pt}", 2, "which is not a file"),
    "fit": ("score", BLUE, "c: {use: vbpr, model: fitted/x}", 2, "fitted/x does not exist"),
    "generators": ("score", "blue: {", "blue: {generators: [other], ", 2, "no candidates of other"),
    "weights": ("pair", "k: 1", "weights: {red: 1}", 2, "no scores called red"),
    "k": ("pair", "k: 1", "k: 9", 2, "needs 18 scored candidates"),
    "trained pairs": ("pair", "k: 1", "k: 1, tie: 0.2", 1, "which moves pairs/main and everything"),
    "pairs": ("train", "pairs: main", "pairs: other", 2, "neither a name"),
    "objective": ("train", "steps: 1", "objective: {use: flow_grpo}", 2, "train.dpo"),
    "reward": (
        "train",
        "pairs: main, steps: 1",
        "objective: {use: ddpo}, online: {rewards: {red: 1}}",
        2,
        "online.generator",
    ),
    "extra": ("train", "steps: 1", "steps: 1, optimizer: 'nopackage:Adam'", 1, "nopackage"),
    "targets": ("train", "steps: 1", "steps: 1, lora: {targets: [nothing]}", 2, "ends in 'nothing'"),
    "evaluation": ("eval", "models: [dpo]", "models: [red]", 2, "eval.held_out.generator"),
    "all stages": ("run", None, "[1]", 1, "which moves scores/blue and everything made from it (pairs/main, train/dpo"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_dry_run_ends_as_the_run_does(case, made, tmp_path, monkeypatch, cli):
    verb, old, new, code, message = CASES[case]
    folder = shutil.copytree(made, tmp_path / "made")
    monkeypatch.chdir(folder)
    edit(folder / ("taste.py" if old is None else "r.yaml"), old or "[2]", new)
    dry, real = both(cli, folder / "r.yaml", verb, "-r", "r.yaml")
    assert dry == real and real[0] == code and message in real[1], (dry, real)


def test_new_candidates_of_a_trained_run_are_refused_by_both(made, tmp_path, monkeypatch, cli):
    monkeypatch.chdir(shutil.copytree(made, tmp_path / "made"))
    edit(tmp_path / "made/r.yaml", "n: 3", "n: 4")
    edit(tmp_path / "made/r.yaml", "eval: {held_out: {models: [dpo]}}\n", "")  # it needs a diffusion model
    dry, real = (cli("run", "-r", "r.yaml", *flags) for flags in (["--dry-run"], []))
    ends = [one_paragraph(err).partition("To make it again, ")[2] for _, _, err in (dry, real)]
    assert dry[0] == real[0] == 1 and ends[0] == ends[1] and "moves train/dpo" in ends[0]
    assert cli("run", "-r", "r.yaml", "--redo", "--dry-run")[0] == 0
    recipe, store = reader.read("r.yaml"), Store("run")
    with pytest.raises(FingerprintError, match="generate.own makes new candidates"):
        dry_run._check_grown(store, recipe, "dpo", ["own"])
    dry_run._check_grown(store, recipe, "dpo", [])
    narrow = replace(recipe, pair={"main": replace(recipe.pair["main"], generators=["other"])})
    dry_run._check_grown(store, narrow, "dpo", ["own"])


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
