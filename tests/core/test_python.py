"""prefkit.Run: functions and lists where a recipe has names and paths, settings as arguments, and errors."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest
import yaml
from drawing import draw

from prefkit import Run
from prefkit.errors import FingerprintError, PrefkitError, UsageError


def blue(images, prompts):
    return [float(np.asarray(image)[..., 2].mean()) for image in images]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("python") / "run"
    run = Run(folder, requests=["a cat", {"prompt": "a dog", "user": "007"}], generate={"own": draw}, score={"b": blue})
    assert repr(run) == f"Run({str(folder)!r}: no results yet)" and not folder.exists()
    assert run.generate(n=3)["own"]["made"] == 6 and run.score()["b"]["scored"] == 6
    assert run.pair("main", use="topk_bottomk", k=1)["main"]["pairs"] == 2
    return run


def test_functions_and_lists_make_a_run(run):
    again = Run(run.folder)
    assert again.recipe.generate["own"].n == 3 and again.recipe.pair["main"].options["k"] == 1
    assert dict(zip(run.requests().prompt, run.requests().extra)) == {"a cat": {}, "a dog": {"user": "007"}}
    assert len(again.scores()) == 6 and again.scores().b.notna().all()


def test_the_stored_recipe_is_kept_and_entries_are_merged(run):
    other = Run(run.folder, train={"x": {"steps": 3, "objective": {"use": "dpo", "beta": 7}}}, model={"base": "tiny"})
    other.save_recipe()
    more = Run(run.folder, train={"x": {"objective": {"beta": 9}}, "y": {}}, model={"revision": "r"})
    assert (more.recipe.model.base, more.recipe.model.revision, list(more.recipe.score)) == ("tiny", "r", ["b"])
    entry = more.recipe.train["x"]
    assert (entry.steps, entry.objective.options, list(more.recipe.train)) == (3, {"beta": 9}, ["x", "y"])
    assert Run(run.folder, train={"x": {"objective": {"use": "ipo"}}}).recipe.train["x"].objective.options == {}


def test_a_changed_function_is_a_changed_scorer(run):
    def scaled(factor):
        return lambda images, prompts: [factor * value for value in blue(images, prompts)]

    Run(run.folder, score={"scaled": scaled(2)}).score("scaled")
    assert Run(run.folder, score={"scaled": scaled(2)}).score("scaled")["scaled"]["scored"] == 0
    with pytest.raises(FingerprintError):
        Run(run.folder, score={"scaled": scaled(3)}).score("scaled")


def test_the_command_line_says_that_a_function_is_missing(run, cli):
    code, _, err = cli("score", run.folder, "--name", "b")
    assert code == 2 and "python:b" in err and "Pass it to prefkit.Run again" in err
    assert cli("pair", run.folder)[0] == 0  # needs no scorer


def test_a_notebook_shows_counts_and_images(run):
    page = run._repr_html_()
    assert page.count('<img src="data:image/webp;base64,') == 2 and "a dog" in page and "<td>own</td>" in page
    assert "candidates own: 6" in repr(run) and "No results yet" in Run(run.folder / "none")._repr_html_()


def test_import_export_vote_fit_and_push(run, tmp_path):
    out = run.export(tmp_path / "out", "folders", pairs="main")
    assert out["pairs"] == 2
    other = Run(tmp_path / "other")
    assert other.import_(run.store.pairs("main"), "pickapic", name="p", pairs=True)["pairs"] == {"train": 2}
    assert len(other.pairs("p")) == 2
    head = yaml.safe_load((other.store.pairs("p") / "README.md").read_text().split("---")[1])
    assert [config["config_name"] for config in head["configs"]] == ["default", "bytes"]
    assert {"name": "jpg_0", "dtype": "image"} in head["dataset_info"][0]["features"]
    assert os.path.exists(run.vote(n=2)["path"])
    assert run.push("you/pairs", dry_run=True)["dry_run"] is True

    class Count:
        def __init__(self, options):
            pass

        def run(self):
            return {"counts": {"pairs": 2}}

    assert run.fit(Count) == {"counts": {"pairs": 2}}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.generate(nn=4), r"generate.own.nn: unknown key. Did you mean 'n'"),
        (lambda r: r.generate("zz"), "no entry is called 'zz'"),
        (lambda r: r.generate(5), "5 is not the name of an entry"),
        (lambda r: r.generate(limit="x"), "limit must be a whole number above 0"),
        (lambda r: r.stage("pairs"), "no stage is called 'pairs'. Did you mean 'pair'"),
        (lambda r: r.score(use=5), "5 is not a name"),
        (lambda r: r.push("a/b", publik=True), "unknown argument 'publik'. Did you mean 'public'"),
        (lambda r: r.vote(n="x"), "vote.n: must be a whole number"),
        (lambda r: r.candidates("zz"), "no candidates called 'zz'"),
        (lambda r: r.fit(len), "a fitter must be a class"),
        (lambda r: r.fit("vbpr", x=1), "fit vbpr.x: unknown key"),
        (lambda r: Run(r.folder, requests=5), "neither a list of prompts or dicts nor a data frame"),
        (lambda r: Run(r.folder, requests=[{"prompt": object()}]), r"requests\[0\]: Object of type object"),
        (lambda r: Run(r.folder, generat={}), "^generat: unknown key. Did you mean 'generate'"),
        (lambda r: Run(r.folder / "none").report(), "is not a run folder"),
    ],
)
def test_mistakes_are_errors_of_prefkit(run, call, message):
    with pytest.raises(PrefkitError, match=message) as error:
        call(run)
    assert not re.search("recipe.yaml", str(error.value))


def test_a_mistake_in_the_recipe_file_keeps_its_line(tmp_path):
    (tmp_path / "r.yaml").write_text("run: x\ntrain: {a: {stepz: 1}}\n")
    with pytest.raises(UsageError, match="r.yaml:2: train.a.stepz: unknown key"):
        Run(recipe=tmp_path / "r.yaml", model={"base": "tiny"})
