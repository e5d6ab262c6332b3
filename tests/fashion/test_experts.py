"""The recipe of the three experts on a small world: fits, candidates, scores, pairs, and what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefkit.store import Store

ROOT = Path(__file__).parents[2]
EXPERTS = ("quality", "compatibility", "taste", "personal")


def trim(folder):
    """Keep few items, to save time: eight interactions per user, and no neutral items."""
    kept = [line for line in (folder / "outfits.csv").read_text().splitlines(True) if not line.startswith("only")]
    (folder / "outfits.csv").write_text("".join(kept))
    head, *rows = (folder / "interactions.csv").read_text().splitlines(True)
    rows = [row for row in rows if int(row.split(",")[2]) < 8]
    (folder / "interactions.csv").write_text("".join([head, *rows]))
    items = {row.split(",")[1] for row in rows} | {"item"}
    kept = [line for line in (folder / "items.csv").read_text().splitlines(True) if line.split(",")[0] in items]
    (folder / "items.csv").write_text("".join(kept))


@pytest.fixture
def world(fashion, tmp_path, monkeypatch):
    """tmp_path/fashion, with requests more: an unknown user, no user, no other items, and none of these columns."""
    monkeypatch.chdir(tmp_path)
    fashion.world.write_world(tmp_path / "fashion", 4, 1, 24)
    trim(tmp_path / "fashion")
    path = tmp_path / "fashion" / "requests.jsonl"
    first = json.loads(path.read_text().splitlines()[0])
    with open(path, "a") as file:
        for changed in (
            {"request_id": "stranger", "user": "eve"},
            {"request_id": "nobody", "user": None},
            {"request_id": "alone", "outfit": [], "colours": []},
            {"request_id": "bare", "user": ..., "outfit": ...},
        ):
            row = {name: value for name, value in (first | changed).items() if value is not ...}
            file.write(json.dumps(row) + "\n")
    return tmp_path


def recipe(folder):
    text = (ROOT / "pipelines/fashion/experts.yaml").read_text().replace('"pipelines/', f'"{ROOT}/pipelines/')
    text = text.replace("n: 8, steps: 12", "n: 4, steps: 2")
    (folder / "experts.yaml").write_text(text)
    return folder / "experts.yaml"


def test_the_experts_on_a_small_world(world, cli):
    fits = (
        ("outfit_compat", "--outfits", "fashion/outfits.csv", "--epochs", 3),
        ("vbpr", "--interactions", "fashion/interactions.csv", "--items", "fashion/items.csv", "--epochs", 3),
    )
    for name, *options in fits:
        code, _, error = cli("fit", name, *options, "--encoder", "tiny")
        assert code == 0, error
    code, _, error = cli("run", "-r", recipe(world))
    assert code == 3, error  # a fifth of the scores is missing, so that `run` stops before the pairs
    store = Store(world / "runs/fashion-experts")
    names = {row["id"]: row["request_id"] for row in store.candidates("own").read(["id", "request_id"]).to_pylist()}
    assert len(names) == 28  # of the seven training requests
    unknown = {"stranger", "nobody", "bare"}
    missing = {"compatibility": {"alone", "bare"}, "taste": unknown, "personal": unknown}
    for expert in EXPERTS:
        rows = store.scores(expert).read().to_pylist()
        without = {names[row["id"]] for row in rows if row["value"] is None}
        assert len(rows) == 28 and without == missing.get(expert, set())
        assert all(row["error"] for row in rows if row["value"] is None)
        values = [row["value"] for row in rows if row["value"] is not None]
        assert len(set(values)) > len(values) // 2  # values, not a constant
    code, _, error = cli("pair", "-r", world / "experts.yaml")
    assert code == 0, error
    for pairs in ("ours", "published"):
        assert (world / "runs/fashion-experts/pairs" / pairs / "spec.json").is_file()
    rows = store.scores("rule").read().to_pylist()
    assert {row["value"] for row in rows} <= {0.0, 1.0} and len(rows) == 28
