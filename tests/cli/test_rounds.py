"""Offline rounds: each starts from the model of the round before; a killed run ends as an unbroken one."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from prefkit.api import Run
from prefkit.config import Eval, Generate, Lora, Model, Pair, Recipe, Train, reader, rounds
from prefkit.errors import NotYet, UsageError
from prefkit.models.load.revision import weights_revision
from prefkit.store import Store
from prefkit.store.files import read_json, read_lines

RECIPE = """
run: run
rounds: 3
model: {base: sd}
requests: {source: p.txt, test_share: 0.4}
generate: {own: {n: 2, steps: 2, guidance: 1.0, height: 64, width: 64, batch_size: 4}}
score: {size: {use: jpeg}}
pair: {main: {use: topk_bottomk, k: 1, tie: 0, weights: {size: 1.0}, duplicates: keep}}
train:
  dpo: {pairs: main, lora: {rank: 4, alpha: 6}, steps: 3, learning_rate: 3e-3, warmup: 0, validation: 0, batch_size: 2,
        checkpoint_every: 1}
eval:
  held: {models: [dpo], seeds: 1, bootstrap: 50, base_steps: [1]}
"""


def module(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found
    spec.loader.exec_module(found)
    return found


KIT = module("rounds_forked", Path(__file__).parents[1] / "core" / "forked.py")


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory, sd):
    where = tmp_path_factory.mktemp("rounds")
    (where / "p.txt").write_text("\n".join(f"a {c} {i}" for c in KIT.COLOURS for i in KIT.ITEMS[:3]))
    (where / "r.yaml").write_text(RECIPE)
    shutil.copytree(sd, where / "sd")
    return where


@pytest.fixture(scope="module")
def whole(laid_out, tmp_path_factory):
    """(folder, stdout and stderr) of an unbroken run of three rounds."""
    where = tmp_path_factory.mktemp("whole") / "w"
    shutil.copytree(laid_out, where)
    KIT.preload()
    code, text = KIT.call(["run", "-r", "r.yaml"], where)
    assert code == 0, text
    return where, text


def part(where, number):
    return where / "run" / "rounds" / str(number)


def adapter(folder):
    return folder / "train" / "dpo" / "final" / "pytorch_lora_weights.safetensors"


def outcome(where, numbers=(1, 2, 3)):
    """Candidates, scores, pairs, weights and evaluation of every round."""
    found = {}
    for number in numbers:
        folder = part(where, number)
        for kind in ("candidates", "scores", "pairs", "eval"):
            found[number, kind] = KIT.rows(folder / kind)
        found[number, "weights"] = KIT.tensors(adapter(folder))
        found[number, "result"] = json.dumps(KIT.said(folder / "eval" / "held" / "result.json"), sort_keys=True)
    return found


def spec(folder, *place):
    return read_json(folder.joinpath(*place, "spec.json"))


def test_each_round_starts_from_the_model_of_the_round_before(whole, monkeypatch):
    where, _ = whole
    monkeypatch.chdir(where)
    assert spec(part(where, 1), "candidates", "own")["adapters"] == {}
    for number in (2, 3):
        folder, before = part(where, number), weights_revision(adapter(part(where, number - 1)).parent)
        assert spec(folder, "candidates", "own")["adapters"] == {before: 1.0}
        assert spec(folder, "train", "dpo")["model"]["adapters"] == [[before, 1.0]]
        recipe = reader.read(folder / "recipe.yaml")
        assert recipe.train["dpo"].lora.resume and recipe.rounds == 1
        first = read_lines(folder / "train" / "dpo" / "metrics.jsonl")[0]
        assert math.isclose(first["loss"], math.log(2), rel_tol=1e-5)  # the policy is its reference, as published
    frames = [Store(part(where, n)).candidates("own").frame(["id", "request_id", "index", "seed"]) for n in (1, 2, 3)]
    assert len({tuple(f.request_id) for f in frames}) == 1
    assert len(set().union(*(f.seed for f in frames))) == sum(map(len, frames))  # no seed occurs twice
    assert len({KIT.tensors(adapter(part(where, n))) for n in (1, 2, 3)}) == 3


def test_every_round_is_compared_with_the_model_before_the_first(whole):
    where, text = whole
    results = [read_json(part(where, n) / "eval" / "held" / "result.json") for n in (1, 2, 3)]
    rows = [result["sets"]["held_out"]["dpo"]["size"] for result in results]
    assert len({row["base"] for row in rows}) == 1 and len({row["tuned"] for row in rows}) == 3
    assert all(row["tuned_interval"][0] <= row["tuned"] <= row["tuned_interval"][1] for row in rows)
    for model in ("base", "base-s1"):  # sampled once
        tables = {KIT.rows(part(where, n) / "eval" / "held" / "held_out" / model) for n in (1, 2, 3)}
        assert len(tables) == 1
        assert text.count(f"eval held: model {model} on") == 3
    assert text.count("generate own: 3 candidates to make") + text.count("generate own: 4 candidates to make") <= 5


def test_the_reports_show_the_rounds(whole, cli, monkeypatch):
    where, text = whole
    monkeypatch.chdir(where)
    for number in (1, 2, 3):
        assert re.search(rf"round {number} of 3 is done: 8 candidates, \d pairs, 3 steps; .*size\* .* -> ", text)
    page = (where / "run" / "report.html").read_text()
    names = yaml.safe_load(RECIPE)["score"]
    assert f"<b>{len(names)}</b><span>scorers</span>" in page
    for number in (1, 2, 3):
        assert f'<a href="rounds/{number}/report.html">' in page and (part(where, number) / "report.html").exists()
    row = read_json(part(where, 3) / "eval" / "held" / "result.json")["sets"]["held_out"]["dpo"]["size"]
    cell = f"{row['tuned']:.3g} [{row['tuned_interval'][0]:.3g}, {row['tuned_interval'][1]:.3g}]"
    assert cell in page and cell in text
    code, out, _ = cli("report", "run", "--json")
    assert code == 0 and json.loads(out)["train"]["round 3/dpo"] == {"step": 3, "final": True}
    code, out, _ = cli("report", "run/rounds/2", "--json")
    assert code == 0 and json.loads(out)["train"] == {"dpo": {"step": 3, "final": True}}


def test_round_two_equals_single_commands_on_a_recipe_by_hand(whole, cli, monkeypatch):
    where, _ = whole
    monkeypatch.chdir(where)
    recipe = yaml.safe_load(RECIPE) | {"run": "hand"}
    del recipe["rounds"], recipe["eval"]
    recipe["model"]["adapters"] = {"run/rounds/1/train/dpo/final": 1.0}
    recipe["generate"]["own"]["seed"] = rounds.seed_of(0, 2)
    recipe["train"]["dpo"]["lora"] = {"rank": 4, "resume": True}
    Path("hand.yaml").write_text(yaml.safe_dump(recipe))
    for verb in ("generate", "score", "pair", "train"):
        code, _, err = cli(verb, "-r", "hand.yaml")
        assert code == 0, err
    for kind in ("candidates", "scores", "pairs"):
        assert KIT.rows(Path("hand", kind)) == KIT.rows(part(where, 2) / kind)
    assert KIT.tensors(adapter(Path("hand"))) == KIT.tensors(adapter(part(where, 2)))


def test_a_repeated_run_makes_nothing_and_a_changed_one_is_refused(whole, cli, monkeypatch):
    where, _ = whole
    monkeypatch.chdir(where)
    before = outcome(where)
    code, out, err = cli("run", "run", "--json")
    assert code == 0, err
    results = json.loads(out)["rounds"]
    assert all(results[n]["generate"]["own"]["made"] == 0 for n in "123") and outcome(where) == before
    saved = Path("run/recipe.yaml").read_bytes()
    for flags, key in (
        (["--train.dpo.learning_rate", "1e-4"], "train.learning_rate"),
        (["--generate.own.seed", "5", "--dry-run"], "settings.seed"),
    ):
        code, _, err = cli("run", "run", *flags)
        assert code == 1 and f"was made with other settings ({key}: stored" in err
    assert "add --redo" in err and "the rounds after this one" in err
    code, out, err = cli("run", "run", "--train.dpo.learning_rate", "1e-4", "--redo", "--dry-run", "--json")
    plan = {(row["round"], row["stage"]): row.get("redo") for row in json.loads(out)}
    assert code == 0 and plan[1, "pair"] is None and plan[1, "train"] == "settings differ"
    assert plan[1, "eval"] == "made from train/dpo" and plan[2, "generate"] == "made from round 1"
    assert outcome(where) == before and Path("run/recipe.yaml").read_bytes() == saved
    code, _, err = cli("train", "run")
    assert code == 2 and "prefkit train run/rounds/1" in err
    code, _, err = cli("run", "run", "--rounds", "1")
    assert code == 2 and "several rounds" in err


@pytest.mark.parametrize(
    "line",
    [
        "report run --vote",
        "report run --filter align>0",
        "report run --request x",
        "push run --to you/pairs --dry-run",
        "push run --to you/pairs --train dpo --dry-run",
        "export run out --as folders",
        "fit mesh --run run",
        "import r.yaml run --as folders",
    ],
)
def test_commands_on_the_run_of_all_rounds_name_the_rounds(whole, cli, monkeypatch, line):
    monkeypatch.chdir(whole[0])
    before = sorted(Path("run").iterdir())
    code, _, err = cli(*line.split())
    assert code == 2 and "run is a run of several rounds" in err and "run/rounds/1 to run/rounds/3" in err
    assert sorted(Path("run").iterdir()) == before and not Path("out").exists()


def test_the_first_round_is_1(whole, monkeypatch):
    monkeypatch.chdir(whole[0])
    for number in (0, -1):
        with pytest.raises(UsageError, match="the first round is 1"):
            Run("run").round(number)


def killed(where, number, verb, count):
    """Run in a child that kills itself before its `count`-th renaming of a file in this stage of this round."""
    pid = os.fork()
    if not pid:
        from prefkit.evaluate import reuse

        replace_file, stage, copy = os.replace, Run.stage, reuse.copy_base
        state = {"left": -1}

        def counted(*names):
            state["left"] -= state["left"] > 0
            if state["left"] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            replace_file(*names)

        def armed(run, name, *rest, **options):
            here = (run.folder.name, name) == (str(number), verb)
            state["left"] = count if here else -1
            return stage(run, name, *rest, **options)

        def copied(first, store, recipe):
            state["left"] = count if (store.folder.name, verb) == (str(number), "copy") else -1
            copy(first, store, recipe)

        os.replace, Run.stage, reuse.copy_base = counted, armed, copied
        pid = KIT.start(["run", "-r", "r.yaml", "--rounds", "2", "-q"], where, where.parent / "killed.log")
        os._exit(0 if KIT.finish(pid) == -signal.SIGKILL else 1)
    return KIT.finish(pid) == 0


KILLS = {"copy": 2, "generate": 3, "score": 2, "pair": 1, "train": 4, "eval": 5}


def test_a_round_killed_in_every_stage_ends_as_an_unbroken_one(whole, laid_out, tmp_path):
    where = tmp_path / "w"
    shutil.copytree(laid_out, where)
    shutil.copytree(part(whole[0], 1), part(where, 1))
    for verb, count in KILLS.items():
        assert killed(where, 2, verb, count), f"{verb} of round 2 was not killed"
    code, text = KIT.call(["run", "-r", "r.yaml", "--rounds", "2"], where)
    assert code == 0, text
    assert outcome(where, (1, 2)) == outcome(whole[0], (1, 2))
    assert not KIT.litter(where)


def test_dry_run_describes_every_round(laid_out, cli, monkeypatch):
    monkeypatch.chdir(laid_out)
    code, out, err = cli("run", "-r", "r.yaml", "--dry-run", "--json")
    assert code == 0, err
    rows = json.loads(out)
    assert [(row["round"], row["stage"]) for row in rows if row["stage"] in ("generate", "eval")] == [
        (n, stage) for n in (1, 2, 3) for stage in ("generate", "eval")
    ]
    made = {row["round"]: row["to do"] for row in rows if row["stage"] == "generate"}
    assert made[1] == made[2] == made[3] > 0
    assert "starts from the model of round 2" in next(row["missing"] for row in rows if row["round"] == 3)
    assert not Path("run").exists()


@pytest.mark.parametrize(
    "flags, text",
    [
        (["--rounds", "0"], "--rounds is 0: it must be at least 1"),
        (["--rounds", "101"], "it must be at most 100"),
        (["--train.other.pairs", "main"], "exactly one entry (found: dpo, other)"),
        (["--train.dpo.online.rounds", "2"], "the training is online (dpo)"),
        (["--train.dpo.objective", "d3po"], "the training is online (d3po)"),
        (["--train.dpo.pairs", "owner/data"], "an entry under `pair` of this recipe"),
        (["--generate.own.model", "dpo"], "Remove its key `model`"),
        (["--generate.own.use", "draw.py:draw"], "no entry under `generate` can sample a trained model"),
        (["--model.adapters", "{some/adapter: 1.0}"], "train.NAME.lora.resume to true"),
    ],
)
def test_unfit_recipes_are_refused_before_any_work(laid_out, cli, monkeypatch, flags, text):
    monkeypatch.chdir(laid_out)
    for more in ([], ["--dry-run"]):
        code, _, err = cli("run", "-r", "r.yaml", *flags, *more)
        assert code == 2 and text in err
    assert not Path("run").exists()


def test_a_folder_with_tables_of_its_own_is_refused(laid_out, cli, monkeypatch, tmp_path):
    monkeypatch.chdir(laid_out)
    Store.create(tmp_path / "plain")
    (tmp_path / "plain" / "candidates" / "own").mkdir(parents=True)
    code, _, err = cli("run", "-r", "r.yaml", "--run", tmp_path / "plain")
    assert code == 2 and "already contains a run without rounds (it has candidates)" in err


def test_a_failed_first_command_leaves_no_folder(laid_out, cli, monkeypatch):
    monkeypatch.chdir(laid_out)
    code, _, err = cli("run", "-r", "r.yaml", "--generate.own.scheduler", "NoScheduler")
    assert code == 2 and "NoScheduler" in err and not Path("run").exists()


def test_full_weights_continue_as_the_base_of_the_next_round(laid_out, tmp_path, monkeypatch):
    monkeypatch.chdir(laid_out)
    recipe = reader.read("r.yaml")
    train = replace(recipe.train["dpo"], lora=None, steps=1)
    run = Run(recipe=replace(recipe, run=str(tmp_path / "full"), rounds=2, train={"dpo": train}, eval={}))
    with pytest.raises(NotYet):
        run.round(2)
    for number, part in enumerate(run.rounds(), 1):
        for verb in ("generate", "score", "pair", "train")[: 4 if number == 1 else 1]:
            part.stage(verb)
    base = tmp_path / "full" / "rounds" / "1" / "train" / "dpo" / "final"
    assert (part.recipe.model.base, part.recipe.model.adapters) == (str(base), {})
    assert spec(part.folder, "candidates", "own")["model"] == weights_revision(base)


def test_the_recipe_of_a_round():
    recipe = Recipe(
        run="r",
        rounds=2,
        model=Model(base="m"),
        generate={"own": Generate(seed=7)},
        pair={"main": Pair()},
        train={"dpo": Train(pairs="main", lora=Lora(alpha=3, targets=["to_q"]))},
        eval={"held": Eval(), "own": Eval(seed=4, base=Model(base="other"))},
    )
    assert rounds.recipe_of(recipe, 1) == replace(recipe, run="r/rounds/1", rounds=1)
    second = rounds.recipe_of(recipe, 2, Model(base="m", adapters={"a": 1.0}))
    assert second.generate["own"].seed not in (7, rounds.seed_of(7, 3), rounds.seed_of(8, 2))
    assert second.train["dpo"].lora == Lora(resume=True)
    assert (second.eval["held"].seed, second.eval["held"].base) == (7, Model(base="m"))
    assert (second.eval["own"].seed, second.eval["own"].base) == (4, Model(base="other"))
    with pytest.raises(UsageError, match="exactly one entry"):
        rounds.check(replace(recipe, train={}))


def test_the_recipes_of_the_documentation_are_valid(cli, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs" / "rounds.md").read_text(encoding="utf-8")
    recipes = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(recipes) == 2
    for number, recipe in enumerate(recipes):
        Path(f"{number}.yaml").write_text(recipe)
        code, out, err = cli("run", "-r", f"{number}.yaml", "--dry-run", "--json")
        assert code == 0, err
        rows = json.loads(out)
        assert [row["wanted"] for row in rows if row["stage"] == "train" and "wanted" in row] == (
            [] if not number else [3]
        )
        assert {row["round"] for row in rows if "round" in row} == (set() if number else {1, 2, 3})
