"""`prefkit eval` of mesh models: paired samples of held-out requests, judges, statistics, the report, and a restart."""

from __future__ import annotations

import json

import numpy as np
import pytest
from bodies import people, write_requests

from prefkit.cli.main import run as main
from prefkit.mesh.payload import Mesh
from prefkit.store import Store

RECIPE = """
run: RUN
model: {base: "MODEL"}
requests: {source: "REQUESTS", split_column: split}
generate: {own: {use: mesh, n: 3, steps: 2, call: {render: RENDER}}}
score:
  reprojection: {use: mesh_reprojection}
  error: {use: mesh_error}
pair: {main: {k: 1, weights: {reprojection: 1}, duplicates: exact}}
train:
  dpo: {family: mesh, objective: {use: dpo, beta: 100}, pairs: main, steps: 3, batch_size: 4, lora: null, learning_rate: 1e-2, warmup: 0}
  still: {family: mesh, objective: {use: dpo, beta: 100}, pairs: main, steps: 1, batch_size: 4, lora: {rank: 2}, learning_rate: 1e-9}
eval: {held_out: {models: [dpo, still], seeds: 2, base_steps: [3]}}
"""


def recipe_of(folder, model, render):
    rows = [row | {"split": "test" if i < 7 else "train"} for i, row in enumerate(people(13))]
    places = {"RUN": folder / "run", "MODEL": model, "REQUESTS": write_requests(folder / "people.jsonl", rows)}
    text = RECIPE.replace("RENDER", render)
    for name, place in places.items():
        text = text.replace(name, str(place))
    (folder / "recipe.yaml").write_text(text)
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, mesh_model):
    """A run of the whole recipe, without stored pictures; its recipe, and its result."""
    recipe = recipe_of(tmp_path_factory.mktemp("mesh eval"), mesh_model, "false")
    assert main(["run", "-r", str(recipe)]) == 0
    store = Store(recipe.parent / "run")
    return store, recipe, json.loads((store.eval("held_out") / "result.json").read_text())


def samples(store, model):
    folder = Store(store.eval("held_out") / "held_out" / model)
    return {(c.request_id, c.index): (c.seed, Mesh.unpack(c.payload).joints3d) for c in folder.iter_candidates(["own"])}


def test_base_and_trained_models_are_sampled_at_the_same_seeds_on_held_out_requests(evaluated):
    store, *_ = evaluated
    base, tuned, still = (samples(store, name) for name in ("base", "dpo", "still"))
    held_out = {r.request_id for r in store.requests() if r.split == "test"}
    assert base.keys() == tuned.keys() == still.keys() == {(r, i) for r in held_out for i in (0, 1)}
    assert all(base[key][0] == tuned[key][0] == still[key][0] for key in base)
    gaps = {
        name: np.mean([np.abs(base[k][1] - of[k][1]).max() for k in base]) for name, of in (("t", tuned), ("s", still))
    }
    assert gaps["t"] > 1e-2 > 1e-4 > gaps["s"]


def test_the_result_has_wins_intervals_and_judges(evaluated):
    *_, result = evaluated
    rows = result["sets"]["held_out"]["dpo"]
    assert rows["error"]["used_for_pairs"] is False and rows["error"]["evaluation_only"]
    assert rows["reprojection"]["used_for_pairs"] is True
    for row in rows.values():
        assert (
            row["n_requests"] == 7 and row["n_pairs"] == 14 and 0 <= row["ci_low"] <= row["win_rate"] <= row["ci_high"]
        )
    assert {"mpjpe", "pa_mpjpe", "mpvpe"} <= rows["error"]["aspects"].keys()
    assert rows["error"]["base"] == pytest.approx(-rows["error"]["aspects"]["mpjpe"]["base"])
    still = result["sets"]["held_out"]["still"]["error"]
    assert still["verdict"] == "nothing changed" and rows["error"]["moved"] > 0 and still["diversity_base"] > 0
    assert result["controls"]["missing"] and not any("guidance" in item for item in result["controls"]["missing"])


def test_the_report_shows_meshes_before_and_after(evaluated):
    store, *_ = evaluated
    assert main(["report", str(store.folder)]) == 0
    page = (store.folder / "report.html").read_text()
    section = page[page.index('id="evaluation"') :]
    assert section.count("data:image/webp") >= 3 * 2 * 6 and 'class="gone"' not in page


def test_a_voting_page_of_meshes_without_pictures_is_refused_with_the_reason(evaluated, capsys):
    store, *_ = evaluated
    assert main(["report", str(store.folder), "--vote"]) == 2
    assert "candidates of own" in (error := capsys.readouterr().err) and "render: true" in error


def test_an_interrupted_evaluation_resumes(evaluated, capsys):
    store, recipe, result = evaluated
    folder = Store(store.eval("held_out") / "held_out" / "dpo")
    before = samples(store, "dpo")
    (store.eval("held_out") / "result.json").unlink()
    folder.candidates("own").parts()[0].unlink()  # killed before it was written
    folder.scores("error").parts()[0].unlink()
    assert main(["run", "-r", str(recipe)]) == 0
    said = capsys.readouterr().err
    assert said.count("candidates to make") == 1 and "generate own: 14 candidates to make" in said
    after = samples(store, "dpo")
    assert all((after[key][1] == before[key][1]).all() for key in before)
    assert json.loads((store.eval("held_out") / "result.json").read_text())["sets"] == result["sets"]
    assert main(["train", "-r", str(recipe), "--name", "dpo"]) == 0
    assert "next: prefkit eval" in capsys.readouterr().err
    assert main(["eval", "-r", str(recipe), "--dry-run"]) == 0
