"""The command line as a user meets it: codes, streams, messages, resume."""

from __future__ import annotations

import json
import re
import signal
import time

import pytest


def test_a_whole_recipe_end_to_end_and_again(recipe, cli):
    code, out, err = cli("run", "-r", recipe, "--json", "--controls")
    assert code == 0, err
    found = json.loads(out)
    assert found["generate"]["own"]["failed"] == 0 and found["pair"]["main"]["pairs"] > 0
    run = recipe.parent / "run"
    assert {p.name for p in (run / "train").iterdir()} == {"dpo", "dpo-sft", "dpo-flipped", ".cache"}
    row = json.loads((run / "eval/held_out/result.json").read_text())["sets"]["held_out"]["dpo"]["taste"]
    keys = {"base", "tuned", "win_rate", "ci_low", "ci_high", "tie_share", "n_requests", "used_for_pairs"}
    assert keys <= set(row) and row["used_for_pairs"] and row["n_requests"] > 0
    page = (run / "report.html").read_text()
    assert ("http://" not in page and "https://" not in page and "a red dress" in page) or "a blue" in page
    code, out, err = cli("run", "-r", recipe, "--json")
    again = json.loads(out)
    assert code == 0 and again["generate"]["own"]["made"] == 0 and again["score"]["taste"]["scored"] == 0
    assert again["pair"]["main"]["unchanged"]


def test_the_dataset_loads_with_datasets(recipe, cli):
    import datasets

    for verb in ("generate", "score", "pair"):
        assert cli(verb, "-r", recipe, "-q")[0] == 0
    found = datasets.load_dataset(str(recipe.parent / "run/pairs/main"))
    table = found["train"]
    assert table[0]["jpg_0"].mode == "RGB" and set(table.unique("label_0")) <= {0.0, 1.0}
    assert all(a + b == 1 for a, b in zip(table["label_0"], table["label_1"]))
    for row in table:
        won = 0 if row["label_0"] else 1
        assert row[f"score_{won}_taste"] > row[f"score_{1 - won}_taste"] and row["score_gap"] > 0.1
    assert 0 < sum(table["label_0"]) < len(table)


def test_streams_data_on_stdout_the_rest_on_stderr(recipe, forks):
    done = forks.run("generate", "-r", recipe, "--limit", 1, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["own"]["made"] == 4
    assert "Hint: next: prefkit score" in done.stderr and "\x1b" not in done.stdout + done.stderr
    silent = forks.run("generate", "-r", recipe, "--limit", 1, "-q")
    (warning,) = silent.stderr.splitlines()  # warnings are not silenced
    assert (
        silent.returncode == 0
        and warning.startswith("Warning: held out for eval: 2 of 12")
        and "wanted" in silent.stdout
    )


def test_dry_run_writes_nothing(recipe, cli):
    code, out, _ = cli("run", "-r", recipe, "--dry-run", "--json")
    rows = json.loads(out)
    assert code == 0 and [r["stage"] for r in rows] == ["generate", "score", "score", "pair", "train", "eval"]
    assert rows[0]["wanted"] == rows[0]["to do"] > 0 and "prefkit generate" in rows[1]["missing"]
    assert not (recipe.parent / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["genrate"], "Did you mean 'generate'"),
        (["generate"], "no run is given. Give a run folder"),
        (["generate", "-r", "none.yaml"], "none.yaml could not be read"),
        (["generate", "x", "--limit", "0"], "'0' is not a whole number above 0"),
        (["generate", "x", "--steps"], "--steps needs a value"),
        (["generate", "x", "--stepz", "3"], "stepz: unknown key. Did you mean 'steps'"),
        (["generate", "x", "--model.base", "/none/here", "--requests.source", "none.txt"], "none.txt does not exist"),
        (["score", "x", "--use", "clop"], "no scorer is called 'clop'"),
        (["score", "x", "--use", "jpeg"], "nothing to score"),
        (["pair", "x"], "has no scores"),
        (["train", "x"], "pairs"),
        (["report", "x"], "is not a run folder"),
    ],
)
def test_usage_errors_exit_2_with_one_paragraph(tmp_path, monkeypatch, cli, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = cli(*arguments)
    assert code == 2 and message in err and out == ""
    assert err.startswith("Error: ") and "Traceback" not in err and len(err.strip().splitlines()) == 1


def test_a_folder_that_is_no_pipeline(tmp_path, cli):
    (tmp_path / "p.txt").write_text("a hat\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/x.json").write_text("{}")
    code, _, err = cli(
        "generate",
        tmp_path / "run",
        "--model.base",
        tmp_path / "model",
        "--requests.source",
        tmp_path / "p.txt",
        "--requests.test_share",
        0,
    )
    assert code == 2 and "without model_index.json" in err


def test_help_shows_the_recipes_values_and_the_plugins_options(recipe, cli):
    code, out, _ = cli("generate", "-r", recipe, "--steps", "9", "--help")
    assert code == 0 and "--steps" in out and " 9 " in out and "denoising steps" in out
    assert re.search(r"--background +white +colour behind transparent images", out)
    code, out, _ = cli("pair", "-r", recipe, "--help")
    assert "options of topk_bottomk" in out and "pairs per request" in out
    code, out, _ = cli("train", "-r", recipe, "--rank", 3, "--help")
    assert "options of objective dpo" in out and re.search(r"--beta +\d", out) and re.search(r"--rank +3", out)
    for verb in ("generate", "score", "pair", "train", "eval", "report", "run", "plugins"):
        code, out, _ = cli(verb, "--help")
        assert code == 0 and out.startswith(f"prefkit {verb}: ")


@pytest.mark.parametrize(
    ("verb", "key", "value", "message"),
    [
        ("pair", "k", "3", "needs 6 scored candidates per request, but no request has more than 4"),
        ("pair", "k", "0", "--pair.main.k is 0: it must be at least 1."),
        ("pair", "weights", "{size: 0}", "every weight is 0"),
        ("pair", "weights", "{sise: 1}", "no scores called sise"),
        ("pair", "normalise", "pooled", "normalise 'pooled' is unknown"),
    ],
)
def test_pairing_that_cannot_be(recipe, cli, verb, key, value, message):
    for stage in ("generate", "score"):
        assert cli(stage, "-r", recipe, "-q", "--limit", 9)[0] == 0
    code, _, err = cli(verb, "-r", recipe, f"--{key}", value)
    assert code == 2 and message in err


def test_equal_scores_leave_no_pair(recipe, cli):
    (recipe.parent / "taste.py").write_text("def muted(images, prompts):\n    return [0.1 for _ in images]\n")
    for stage in ("generate", "score"):
        assert cli(stage, "-r", recipe, "-q", "--limit", 9)[0] == 0
    code, _, err = cli("pair", "-r", recipe)
    assert code == 2 and "are ties (gaps of" in err and not (recipe.parent / "run/pairs/main").exists()


def test_decisions_leave_candidates_out(recipe, cli):
    for stage in ("generate", "score", "pair"):
        assert cli(stage, "-r", recipe, "-q")[0] == 0
    import pandas as pd

    run = recipe.parent / "run"
    victim = pd.read_parquet(next((run / "pairs/main/train").glob("*.parquet"))).candidate_0[0]
    (run / "decisions.csv").write_text(f"id,verdict,reason,by\n{victim},reject,ugly,me\n")
    code, out, _ = cli("pair", "-r", recipe, "--json", "-q")
    assert code == 0 and json.loads(out)["main"]["decided_reject"] == 1
    after = pd.read_parquet(next((run / "pairs/main/train").glob("*.parquet")))
    assert victim not in {*after.candidate_0, *after.candidate_1}


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


SLOW = """
import time
from PIL import Image
def draw(prompts, seeds):
    time.sleep(0.3)
    return [Image.new("RGB", (8, 8), (s % 255, s // 255 % 255, 9)) for s in seeds]
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_generate_killed_and_resumed_equals_uninterrupted(recipe, cli, how, forks):
    folder = recipe.parent
    (folder / "slow.py").write_text(SLOW)
    text = recipe.read_text().replace("own: {n: 4", f"own: {{use: '{folder}/slow.py:draw', n: 4")
    recipe.write_text(text)
    code = "import prefkit.generate.run as g; g.FLUSH_ROWS = 4\nfrom prefkit.cli.main import main; main()"
    process = forks.start("generate", "-r", recipe, code=code)
    parts = folder / "run/candidates/own"
    wait_for(lambda: len(list(parts.glob("part-*.parquet"))) >= 2)
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (-9 if how == signal.SIGKILL else 130)
    assert how == signal.SIGKILL or "Interrupted" in err
    from prefkit.store import Store

    before = Store(folder / "run").candidates("own").ids()
    code, out, _ = cli("generate", "-r", recipe, "--json")
    counts = json.loads(out)["own"]
    assert code == 0 and 0 < len(before) < counts["wanted"] and counts["made"] == counts["wanted"] - len(before)
    code, out, _ = cli("generate", folder / "other", "-r", recipe, "--json")
    one, two = ({c.id: c.sha256 for c in Store(folder / name).iter_candidates()} for name in ("run", "other"))
    assert one == two


def test_no_permission_and_a_full_disk_are_errors_not_traces(recipe, cli, monkeypatch):
    import prefkit.store.files as store

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    assert cli("generate", "-r", recipe, "--limit", 1)[0] == 0
    monkeypatch.setattr(store.os, "replace", full)
    code, _, err = cli("score", "-r", recipe, "--name", "size")
    assert code == 1 and "No space left on device" in err
    monkeypatch.undo()
    assert cli("score", "-r", recipe, "--name", "size")[0] == 0


def test_the_python_api_is_the_same_thing(recipe):
    from prefkit import Run

    run = Run(recipe=recipe)
    run.generate(limit=3)
    run.score()
    counts = run.pair()["main"]
    assert len(run.requests()) == 12 and len(run.candidates()) == 12
    assert set(run.scores()) == {"id", "size", "taste"} and len(run.pairs("main")) == counts["pairs"]
    again = Run(run.folder)
    assert again.recipe == run.recipe


def test_a_limited_run_is_a_trial_in_a_folder_of_its_own(recipe, cli):
    code, _, err = cli("run", "-r", recipe, "--limit", 2, "--dry-run")
    assert code == 0 and "run-limit2" in err


def test_the_fast_variant_is_laid_over_the_recipe(recipe, cli, tmp_path):
    assert "has no section `fast:`" in cli("run", "-r", recipe, "--fast", "--dry-run")[2]
    run = tmp_path / "quick"
    recipe.write_text(f"{recipe.read_text()}\nfast:\n  run: {run}\n  generate.own.n: 2\n  pair.main.k: 1\n")
    code, out, _ = cli("run", "-r", recipe, "--fast", "--dry-run", "--json")
    fast = next(row for row in json.loads(out) if row.get("stage") == "generate")
    full = next(
        row for row in json.loads(cli("run", "-r", recipe, "--dry-run", "--json")[1]) if row["stage"] == "generate"
    )
    assert code == 0 and fast != full


def test_a_shipped_recipe_is_found_by_name(cli, monkeypatch, tmp_path):
    from prefkit.config.resolve import resolve
    from prefkit.config.shipped import shipped_recipes

    monkeypatch.chdir(tmp_path)
    assert "demo" in shipped_recipes()
    found, fast = resolve("demo", None, "run"), resolve("demo", None, "run", fast=True)
    assert found.run == "runs/demo" and fast.run != found.run and fast.fast == {}
    assert resolve("demos", None, "run").run == "demos"
