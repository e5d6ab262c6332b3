"""--redo: entries with other settings, and everything made from them, move to RUN/.old and are made again."""

from __future__ import annotations

import json

import pytest

from prefkit.config import Recipe, redo
from prefkit.errors import FingerprintError
from prefkit.store import Store
from prefkit.store.files import read_json, write_json
from tests.core.test_bad_input import edit, one_paragraph, stages
from tests.hub.test_import_again import table


def entries(run):
    return {p.relative_to(run).as_posix() for p in run.glob("*/*") if p.parent.name[0] != "." and p.is_dir()}


def old(run):
    return {"/".join(p.relative_to(run / ".old").parts[1:]) for p in run.glob(".old/*/*/*")}


@pytest.fixture
def made(drawn, cli):
    """A run with pairs, and stand-ins for a training with a control and for its evaluation."""
    stages(cli, drawn, "generate", "score", "pair")
    drawn.write_text(drawn.read_text().partition("eval:")[0])  # it needs a diffusion model
    store = Store(drawn.parent / "run")
    for name in ("dpo", "dpo-sft", "other"):
        (store.train(name) / "final").mkdir(parents=True)
        pairs = "elsewhere" if name == "other" else "main"
        write_json(store.train(name) / "spec.json", {"train": {"pairs": pairs}})
    for model in ("base", "dpo", "other"):
        part = Store.create(store.eval("held_out") / "test" / model)
        (part.folder / "candidates" / "own").mkdir(parents=True)
    write_json(store.eval("held_out") / "result.json", {})
    return drawn


def test_a_changed_scorer_is_refused_with_the_list_and_redone_with_all_that_was_made_from_it(made, cli):
    run = made.parent / "run"
    (made.parent / "taste.py").write_text((made.parent / "taste.py").read_text().replace("255", "256"))
    before = entries(run)
    code, _, err = cli("run", "-r", made)
    text = one_paragraph(err)
    assert code == 1 and "add --redo, which moves scores/taste and everything made from it " in text
    assert "(pairs/main, train/dpo, train/dpo-sft, eval/held_out) to" in text and entries(run) == before
    code, out, _ = cli("run", "-r", made, "--redo", "--dry-run", "--json")
    plan = {(row["stage"], row["name"]): row.get("redo") for row in json.loads(out)}
    assert code == 0 and entries(run) == before and plan["generate", "own"] is plan["score", "size"] is None
    assert plan["score", "taste"] == "settings differ" and plan["pair", "main"] == "made from scores/taste"
    stale = (run / "scores" / "taste" / "spec.json").read_bytes()
    code, out, err = cli("score", "-r", made, "--redo", "--json")
    assert code == 0, err
    counts = json.loads(out)
    assert counts["taste"]["scored"] == counts["taste"]["wanted"] == counts["size"]["present"] > 0
    moved = {"scores/taste", "pairs/main", "train/dpo", "train/dpo-sft", "eval/held_out"}
    assert old(run) == moved and entries(run) == before - moved | {"scores/taste", "eval/held_out"}
    assert sorted(p.name for p in (run / "eval/held_out/test").iterdir()) == ["base", "other"]  # dpo did not make these
    assert not (run / "eval/held_out/result.json").exists()
    (place,) = (run / ".old").iterdir()
    assert (place / "scores/taste/spec.json").read_bytes() == stale
    code, out, _ = cli("clean", run, "--json")
    assert code == 0 and json.loads(out)["removed"] == 1 and not (run / ".old").exists()
    assert cli("pair", "-r", made)[0] == 0 and cli("clean", run, "-q")[0] == 0
    assert cli("clean", made.parent)[0] == 2


def test_other_generator_settings_outdate_everything(made):
    store = Store(made.parent / "run")
    error = FingerprintError("", store.folder / "candidates" / "own")
    everything = ["candidates/own", "scores/size", "scores/taste", "pairs/main", "train/dpo", "train/dpo-sft"]
    assert redo.outdated(store, Recipe(), error) == [*everything, "eval/held_out"]
    for folder in (None, made.parent, store.folder / "candidates" / "none"):
        assert redo.outdated(store, Recipe(), FingerprintError("", folder)) == []


def test_pairs_change_freely_until_a_model_is_trained_on_them(made, cli):
    run = made.parent / "run"
    code, _, err = cli("pair", "-r", made, "--k", 1)
    assert code == 1 and "k: stored 2, requested 1" in err and "(train/dpo, train/dpo-sft, eval/held_out)" in err
    assert cli("pair", "-r", made, "--k", 1, "--dry-run")[0] == 1
    assert cli("pair", "-r", made, "--k", 1, "--redo")[0] == 0 and "train/dpo" in old(run)
    assert cli("pair", "-r", made, "--k", 2)[0] == 0 and len(list((run / ".old").iterdir())) == 1


def test_a_score_that_is_added_later_changes_pairs_only_until_a_model_is_trained_on_them(made, cli):
    """With default weights, which are those of all scores."""
    store = Store(made.parent / "run")
    path = store.pairs("main") / "spec.json"
    edit(made, ", weights: {taste: 1.0}", "")
    assert cli("pair", "-r", made, "--redo")[0] == 0  # moves the trainings
    write_json(store.train("dpo") / "spec.json", {"train": {"pairs": "main"}})
    before = path.read_bytes()
    edit(made, "score:\n", "score:\n  later: {use: jpeg, quality: 20}\n")
    assert cli("score", "-r", made)[0] == 0
    for more in (["--dry-run"], []):
        code, _, err = cli("pair", "-r", made, *more)
        assert code == 0 and "before later was added, so they are still made without it" in " ".join(err.split())
    for more in (["--dry-run"], []):  # refused, so nothing is made without it
        code, _, err = cli("pair", "-r", made, "--k", 1, *more)
        assert code == 1 and "k: stored 2, requested 1" in err and "later was added" not in err
    assert path.read_bytes() == before and read_json(path)["spec"]["weights"] == {"size": 1, "taste": 1}
    command = ["pair", "-r", made, "--weights", "{later: 1, size: 1, taste: 1}"]
    assert cli(*command)[0] == 1 and cli(*command, "--redo")[0] == 0
    assert read_json(path)["spec"]["weights"] == {"later": 1, "size": 1, "taste": 1}
    edit(made, "score:\n", "score:\n  latest: {use: jpeg, quality: 30}\n")
    assert cli("score", "-r", made)[0] == cli("pair", "-r", made)[0] == 0
    assert "latest" in read_json(path)["spec"]["weights"]  # no training is left


def test_a_corrected_import_replaces_the_earlier_one_and_what_was_made_from_it(tmp_path, cli):
    source, run = table(tmp_path, "left left right"), tmp_path / "run"
    command = ["import", source, run, "--as", "table", "--pairs", "--map", "prompt=p,image_a=a,image_b=b,winner=w"]
    assert cli(*command, "--values", "a=left,b=right")[0] == 0
    write_json(Store(run).train("dpo") / "spec.json", {"train": {"pairs": "table"}})
    wrong = json.loads((run / ".imports" / "table.json").read_text())
    table(tmp_path, "right right right right")  # the file was corrected
    code, _, err = cli(*command, "--values", "a=left,b=right")
    assert code == 2 and "from it (comparisons/table, pairs/table, train/dpo) to" in one_paragraph(err)
    assert old(run) == set() and json.loads((run / ".imports" / "table.json").read_text())["trace"] == wrong["trace"]
    code, out, err = cli(*command, "--values", "a=left,b=right", "--redo", "--json")
    assert code == 0 and json.loads(out)["comparisons"] == sum(json.loads(out)["pairs"].values()) == 4, err
    assert old(run) == {"candidates/table", "comparisons/table", "pairs/table", "train/dpo", ".imports/table.merged"}
    assert set(Store(run).comparisons("table").frame().outcome) == {"b"} and len(Store(run).requests()) == 4
    assert cli(*command, "--values", "a=left,b=right", "--redo")[0] == 0 and len(list((run / ".old").iterdir())) == 1


FITTER = """
from dataclasses import dataclass
from prefkit.fit.folder import FitFolder

class Fit:
    @dataclass(frozen=True)
    class Options:
        out: str = ""
        rate: float = 0.1

    def __init__(self, options):
        self.options = options

    def run(self):
        folder = FitFolder("own", self.options.out, self.options, {})
        return folder.present() or folder.write({}, lambda path: (path / "weights").write_text(str(self.options.rate)))
"""


def test_a_fit_with_other_settings_moves_the_earlier_one(tmp_path, cli):
    (tmp_path / "own.py").write_text(FITTER)
    fit = ["fit", f"{tmp_path}/own.py:Fit", "--out", tmp_path / "fitted" / "own", "--rate"]
    assert cli(*fit, 1)[0] == 0
    code, _, err = cli(*fit, 2)
    assert code == 1 and "add --redo" in err
    assert cli(*fit, 2, "--redo")[0] == cli(*fit, 2, "--redo")[0] == 0
    assert [p.read_text() for p in (tmp_path / "fitted").glob(".old/*/own/weights")] == ["1.0"]
    assert (tmp_path / "fitted/own/weights").read_text() == "2.0"
    assert cli("clean", tmp_path / "fitted")[0] == 0 and not (tmp_path / "fitted" / ".old").exists()


def test_candidates_of_a_trained_model_are_not_inputs_of_that_training():
    """Scores of all candidates would otherwise be moved with the training that was made from them."""
    graph = {
        "candidates/own": set(),
        "candidates/tuned": {"train/dpo"},
        "scores/align": {"candidates/own", "candidates/tuned"},
        "pairs/main": {"candidates/own", "candidates/tuned", "scores/align"},
        "train/dpo": {"pairs/main"},
        "pairs/second": {"candidates/tuned", "scores/align"},
    }
    redo._break_cycle(graph, "candidates/tuned", "train/dpo")
    assert graph["scores/align"] == {"candidates/own"} and graph["pairs/main"] == {"candidates/own", "scores/align"}
    assert graph["pairs/second"] == {"candidates/tuned", "scores/align"} and graph["candidates/tuned"] == {"train/dpo"}


def test_imported_tables_are_not_offered_to_redo(tmp_path):
    """No stage can make them again."""
    store = Store.create(tmp_path / "run")
    for kind, spec in (("candidates/base", {"imported": "t.csv"}), ("pairs/main", {"spec": {"comparisons": "votes"}})):
        folder = store.folder / kind
        folder.mkdir(parents=True)
        write_json(folder / "spec.json", spec)
        assert redo.outdated(store, Recipe(), FingerprintError("changed", folder, ["spec"])) == []
