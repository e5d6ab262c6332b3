"""The page that compares runs: what differs, evaluations, the same seeds, curves; and runs that cannot be compared."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from report_synthetic import full_run, requests

from prefkit.errors import UsageError
from prefkit.report.compare import compare_runs
from prefkit.store import Store
from prefkit.store.files import read_json, write_json

RECIPE = """
run: x
model: {base: tiny, revision: null}
score:
  judge: {use: clip, api_key: KEY}
train:
  dpo: {objective: {use: dpo, beta: BETA}, steps: 60, judges: [{use: mllm, api_key: KEY}]}
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of the same requests that differ in beta, an API key, an extra scorer and a curve."""
    folder = tmp_path_factory.mktemp("compared")
    first = full_run(folder / "low <beta>")
    shutil.copytree(first.folder, folder / "high")
    second = Store(folder / "high")
    for store, beta in ((first, "500"), (second, "5000")):
        text = RECIPE.replace("BETA", beta).replace("KEY", f"hunter{beta}")
        more = "  size: {use: jpeg, quality: 80}\n" if beta == "5000" else ""
        (store.folder / "recipe.yaml").write_text(text.replace("train:", f"{more}train:"))
    path = second.eval("held") / "result.json"
    result = json.loads(path.read_text())
    result["sets"]["held_out"]["dpo"]["align"] |= {"win_rate": 0.31, "verdict": "worse"}
    result.pop("checksum", None)
    path.write_text(json.dumps(result))
    return first, second


@pytest.fixture(scope="module")
def page(runs):
    path = compare_runs(runs)
    assert path.parent == runs[0].folder.parent.resolve() and path.name == "compare-low-beta-high.html"
    return path.read_text()


def section(page: str, name: str) -> str:
    return page[page.index(f'<section id="{name}">') :].partition("</section>")[0]


def rows(text: str) -> list[list[str]]:
    found = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.S) for row in text.split("<tr>")[2:]]
    return [[" ".join(re.sub(r"<[^>]+>", " ", cell).split()) for cell in row] for row in found]


def test_settings_that_differ_and_no_secrets(page):
    assert rows(section(page, "settings")) == [
        ["score.size", "–", "jpeg"],
        ["score.judge.api_key", "(hidden)", "(hidden)"],
        ["train.dpo.objective.beta", "500", "5000"],
        ["train.dpo.judges[0].api_key", "(hidden)", "(hidden)"],
    ]
    assert "hunter" not in page and "<beta>" not in page


def test_verdicts_of_a_judge_stand_below_each_other(page):
    found = [row for row in rows(section(page, "evaluation")) if row[2] == "dpo" and row[0] == "align"]
    assert [(row[1], row[4].split()[-1], row[7]) for row in found] == [
        ("low &lt;beta&gt;", "better", "0.68"),
        ("high", "worse", "0.31"),
    ]


def test_the_same_seeds_and_one_base(page):
    images = section(page, "images")
    cards = images.split('<div class="card">')[1:]
    assert len(cards) == 6
    for card in cards:
        assert re.findall(r'<div class="row"><b>(.*?)</b>', card) == ["base", "low &lt;beta&gt;: dpo", "high: dpo"]
        seeds = [re.findall(r'alt="[^"]*?seed (\d+):', row) for row in card.split('<div class="row">')[1:]]
        assert len(seeds[0]) == 4 and seeds[0] == seeds[1] == seeds[2]


def test_curves_of_all_runs_in_one_chart(page):
    figures = section(page, "curves").split("<figure>")[1:]
    loss = next(figure for figure in figures if "<b>loss</b>" in figure)
    assert re.findall(r"<title>([^<]*)</title></g>", loss) == ["low &lt;beta&gt;", "high"]
    assert loss.count("<polyline") == 2 and not [figure for figure in figures if "learning rate" in figure]


def test_runs_that_cannot_be_compared_are_refused(runs, tmp_path, cli):
    other = Store.create(tmp_path / "other")
    other.write_requests(requests(3, "elsewhere"))
    with pytest.raises(UsageError, match="no request in common"):
        compare_runs([runs[0], other])
    with pytest.raises(UsageError, match="given twice"):
        compare_runs([runs[0], Store(runs[0].folder)])
    with pytest.raises(UsageError, match="not a run folder"):
        compare_runs([runs[0], Store(tmp_path)])
    code, _, err = cli("report", runs[0].folder, runs[1].folder, "--vote")
    assert code == 2 and "--vote is for one run" in err


def test_the_verb_and_python_write_the_same_page(runs, cli, tmp_path):
    from prefkit import Run

    code, out, err = cli("report", runs[0].folder, runs[1].folder, "--json")
    found = json.loads(out)
    assert code == 0 and {row["run"] for row in found["runs"]} == {str(store.folder) for store in runs}, err
    shutil.copytree(runs[0].folder, tmp_path / "without recipe")
    (tmp_path / "without recipe" / "recipe.yaml").unlink()
    path = Run(tmp_path / "without recipe").report(runs[1].folder)
    assert section(path.read_text(), "images").count("<img") == section(
        Path(found["report"]).read_text(), "images"
    ).count("<img")


def test_evaluations_on_other_requests_are_told(runs, tmp_path):
    shutil.copytree(runs[1].folder, tmp_path / "fewer")
    fewer = Store(tmp_path / "fewer")
    for model in ("base", "dpo"):
        part = Store(fewer.eval("held") / "held_out" / model)
        kept = part.requests()[:5]
        (part.folder / "requests.parquet").unlink()
        part.write_requests(kept)
    page = compare_runs([runs[0], fewer]).read_text()
    assert "evaluated on different requests" in page and "5 in all of them" in page


def test_only_requests_of_the_latest_evaluation_count(runs, tmp_path):
    """An evaluation with --limit after a larger one: the images of the larger one are still there."""
    shutil.copytree(runs[1].folder, tmp_path / "fewer")
    fewer = Store(tmp_path / "fewer")
    path = fewer.eval("held") / "result.json"
    kept = [r.request_id for r in Store(fewer.eval("held") / "held_out" / "base").requests()][:1]
    write_json(path, read_json(path) | {"requests": {"held_out": kept}})
    page = compare_runs([runs[0], fewer]).read_text()
    assert "evaluated on different requests" in page and "1 in all of them" in page
    assert section(page, "images").count('<div class="card">') == 1
