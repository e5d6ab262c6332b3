"""The whole loop on meshes: generate, score, pair, train with every kind of objective, report, vote and push."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from bodies import people, write_requests

from prefkit.cli.main import run as main
from prefkit.errors import StoreError
from prefkit.mesh.payload import Mesh
from prefkit.store import Store
from prefkit.train.setup import load_objective

RECIPE = """
run: RUN
model: {base: "MODEL"}
requests: {source: "REQUESTS", test_share: 0.2}
generate:
  truth: {use: "PLUGINS:Truth", n: 1}
  perturbed: {use: "PLUGINS:Perturbed", n: 2}
  own: {use: mesh, n: 3, steps: 2, call: {render: false}}
  seen: {use: mesh, n: 2, steps: 2, height: 64}
score:
  error: {use: "PLUGINS:TrueError"}
pair:
  labels: {k: 1, weights: {error: 1}, generators: [truth, perturbed]}
  own: {k: 1, weights: {error: 1}, generators: [own], lists: true}
  seen: {k: 1, weights: {error: 1}, generators: [seen], duplicates: exact}
train:
  base: {family: mesh, objective: sft, pairs: labels, steps: 6, batch_size: 4, lora: null, learning_rate: 1e-3}
  dpo: {family: mesh, objective: {use: dpo, beta: 100}, pairs: own, steps: 3, batch_size: 4, lora: null}
  lora: {family: mesh, objective: {use: dpo, beta: 100}, pairs: own, steps: 3, batch_size: 4, lora: {rank: 2, targets: [up, down]}}
  kto: {family: mesh, objective: kto, pairs: own, steps: 3, batch_size: 4, lora: null}
  lpo: {family: mesh, objective: lpo, pairs: own, steps: 3, batch_size: 4, lora: null}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory, mesh_model, plugins):
    """A run with candidates, scores, pairs and trainings, and its recipe."""
    folder = tmp_path_factory.mktemp("mesh run")
    source = write_requests(folder / "people.jsonl", people(14))
    places = {"RUN": folder / "run", "MODEL": mesh_model, "REQUESTS": source, "PLUGINS": plugins}
    text = RECIPE
    for name, place in places.items():
        text = text.replace(name, str(place))
    recipe = folder / "recipe.yaml"
    recipe.write_text(text)
    for verb in ("generate", "score", "pair", "train"):
        assert main([verb, "-r", str(recipe)]) == 0
    return Store(folder / "run"), recipe


def test_candidates_are_meshes_with_and_without_a_picture(made):
    store, _ = made
    own, seen = (list(store.iter_candidates([name])) for name in ("own", "seen"))
    assert all(c.image is None and c.error is None for c in own) and all(c.pil().size == (256, 256) for c in seen)
    meshes = [Mesh.unpack(c.payload) for c in [*own, *seen]]
    assert {m.joints3d.shape for m in meshes} == {(18, 3)} and all(np.isfinite(m.joints3d).all() for m in meshes)


def test_hypothesis_0_starts_from_zeros_and_batches_do_not_matter(made, mesh_model):
    from prefkit.config import Generate, Model
    from prefkit.generate.generators import candidate_seed, open_generator

    store, _ = made
    requests = store.requests()[:3]
    call = open_generator(Model(base=str(mesh_model)), Generate(use="mesh", steps=2, call={"render": False}))
    first = [candidate_seed(0, r.request_id, 0) for r in requests]
    other = [candidate_seed(1, r.request_id, 0) for r in requests]  # no candidate 0 of this run: drawn
    together, again = call(requests, first), [call([r], [s])[0] for r, s in zip(requests, first)]
    for a, b in zip(together, again):
        np.testing.assert_allclose(*(Mesh.unpack(each["payload"]).joints3d for each in (a, b)), atol=1e-5)
    stored = {(c.request_id, c.index): Mesh.unpack(c.payload).joints3d for c in store.iter_candidates(["own"])}
    for r, a, drawn in zip(requests, together, call(requests, other)):
        if r.split == "train":
            np.testing.assert_allclose(Mesh.unpack(a["payload"]).joints3d, stored[r.request_id, 0], atol=1e-5)
        assert np.abs(Mesh.unpack(drawn["payload"]).joints3d - Mesh.unpack(a["payload"]).joints3d).max() > 1e-3


def test_pairs_of_meshes_name_their_candidates(made):
    store, _ = made
    (path,) = (store.pairs("own") / "train").glob("*.parquet")
    rows = pq.read_table(path).to_pylist()
    ids = {c.id: c.sha256 for c in store.iter_candidates(["own"])}
    assert rows and all(row["jpg_0"] is None and row["image_0_uid"] == ids[row["candidate_0"]] for row in rows)
    (path,) = (store.pairs("seen") / "train").glob("*.parquet")
    assert all(row["jpg_0"].startswith(b"\x89PNG") for row in pq.read_table(path).to_pylist())


def test_two_heads_start_at_twice_log_2_and_every_objective_ends(made):
    store, _ = made
    for name in ("base", "dpo", "lora", "kto", "lpo"):
        assert json.loads((store.train(name) / "result.json").read_text())["done"], name
    rows = [json.loads(line) for line in (store.train("dpo") / "metrics.jsonl").read_text().splitlines()]
    first = next(row for row in rows if row.get("step") == 1)
    assert first["loss"] == pytest.approx(2 * np.log(2)) and first["pose/margin"] == first["shape/margin"] == 0.0


def test_trained_meshes_are_sampled_again(made, tmp_path):
    store, recipe = made
    for name in ("dpo", "lora"):
        text = recipe.read_text().replace(
            "score:", f"  {name}: {{use: mesh, n: 1, steps: 2, model: {name}}}\nscore:", 1
        )
        (tmp_path / f"{name}.yaml").write_text(text)
        assert main(["generate", "-r", str(tmp_path / f"{name}.yaml"), "--name", name]) == 0
    base = {c.request_id: Mesh.unpack(c.payload).joints3d for c in store.iter_candidates(["own"]) if c.index == 0}
    for name in ("dpo", "lora"):
        tuned = {c.request_id: Mesh.unpack(c.payload).joints3d for c in store.iter_candidates([name])}
        assert tuned.keys() == base.keys() and any((tuned[r] != base[r]).any() for r in base)


def test_report_and_vote_page_show_meshes(made):
    store, _ = made
    assert main(["report", str(store.folder)]) == 0
    page = (store.folder / "report.html").read_text()
    assert 'class="gone"' not in page and "data:image" in page
    assert main(["report", str(store.folder), "--vote", "--n", "4"]) == 0
    keys = [json.loads(path.read_text()) for path in (store.folder / "votes").glob("*.json")]
    pictured = {c.id for c in store.iter_candidates() if c.image is not None}
    (pairs,) = [key["pairs"] for key in keys if "pairs" in key]
    assert pairs and {pair[side] for pair in pairs for side in ("a", "b")} <= pictured


def test_pushed_pairs_load_and_carry_no_payload(made, tmp_path):
    from datasets import load_dataset

    from prefkit.hub.dataset_files import stage_dataset
    from prefkit.hub.takedown import removed

    store, _ = made
    stage_dataset(store, "seen", tmp_path / "seen", removed(store))
    files = str(tmp_path / "seen" / "train" / "*.parquet")
    loaded = load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) and "payload" not in loaded.column_names and all(loaded["jpg_0"])
    with pytest.raises(StoreError, match="not rendered"):
        stage_dataset(store, "own", tmp_path / "own", removed(store))


def test_an_image_scorer_says_that_meshes_without_a_picture_have_none(made, tmp_path, capsys):
    _, recipe = made
    text = recipe.read_text().replace("score:", "score:\n  size: {use: jpeg, generators: [own]}", 1)
    (tmp_path / "r.yaml").write_text(text)
    assert main(["score", "-r", str(tmp_path / "r.yaml"), "--name", "size"]) == 2
    assert "render: false" in capsys.readouterr().err


def test_the_recipe_of_the_docs_is_valid(tmp_path):
    from prefkit.config import compatibility, resolve

    page = (Path(__file__).parents[2] / "docs" / "mesh.md").read_text(encoding="utf-8")
    path = tmp_path / "recipe.yaml"
    path.write_text(page.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    recipe = resolve.resolve(None, str(path), "generate", [])
    compatibility.check("generate", "hypotheses", recipe)
    compatibility.check("pair", "main", recipe)
    compatibility.check("eval", "held_out", recipe)
    compatibility.check("train", "dpo", recipe, recipe.train["dpo"], load_objective("dpo", recipe.train["dpo"]))
