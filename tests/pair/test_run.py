"""The pair stage on stored scores: what makes the pairs anew, and what a pair says of its scores."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from prefkit.api import Run
from prefkit.config import Pair, Recipe
from prefkit.store import Store
from prefkit.store.files import write_json
from prefkit.store.table import candidate_row
from prefkit.types import Candidate, Request

STRATEGY = """
class S:
    def __init__(self, options):
        pass

    def pairs(self, value, scores):
        order = value.argsort()
        return [(int(order[2]), int(order[LOSER]), float(value[order[2]] - value[order[LOSER]]))]
"""


def picture(seed, side=16):
    """A PNG of noise: no two are alike."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def paired(tmp_path):
    """Eight requests of three candidates with scores a and b; paired(**settings) -> (counts, pairs)."""
    store = Store.create(tmp_path / "run")
    store.write_requests([Request(f"r{i}", f"prompt {i}") for i in range(8)])
    members = [Candidate(f"c{i}", f"r{i // 3}", i % 3, i, image=picture(i), sha256=str(i)) for i in range(24)]
    store.candidates("own").append([candidate_row(c) for c in members])
    rng = np.random.default_rng(0)
    for alias in ("a", "b"):
        store.scores(alias).append([{"id": c.id, "value": float(rng.normal())} for c in members])
        write_json(store.scores(alias).folder / "spec.json", {"name": alias})

    def pair(**settings):
        run = Run(recipe=Recipe(run=str(store.folder), pair={"main": Pair(**settings)}))
        return run.pair()["main"], run.pairs("main")

    pair.store, pair.folder = store, tmp_path
    return pair


def test_another_split_makes_the_pairs_anew(paired):
    paired()
    assert paired()[0].get("unchanged")
    requests = paired.store.requests()
    paired.store.write_requests([replace(r, split="test") if r.request_id == "r0" else r for r in requests])
    counts, pairs = paired()
    assert not counts.get("unchanged") and set(pairs.split) == {"train", "test"}


def test_other_code_of_a_strategy_makes_the_pairs_anew(paired):
    path = paired.folder / "strategy.py"
    path.write_text(STRATEGY.replace("LOSER", "0"))
    use = f"{path}:S"
    wide = paired(use=use)[1]
    assert paired(use=use)[0].get("unchanged")
    path.write_text(STRATEGY.replace("LOSER", "1"))
    counts, close = paired(use=use)
    assert not counts.get("unchanged") and close.score_gap.mean() < wide.score_gap.mean()


def test_gaps_and_ties_do_not_depend_on_the_size_of_the_weights(paired):
    counts, pairs = paired(weights={"a": 1.0})
    small, same = paired(weights={"a": 0.03})
    assert small["pairs"] == counts["pairs"] > 0 and small["ties"] == counts["ties"]
    np.testing.assert_allclose(same.score_gap, pairs.score_gap, rtol=1e-12)
    np.testing.assert_allclose(same.p, pairs.p, rtol=1e-12)


def test_a_score_with_a_negative_weight_agrees_where_it_is_lower(paired):
    _, pairs = paired(weights={"a": 1.0, "b": -1.0})
    won = pairs.label_1.to_numpy() == 1
    gaps = {s: np.where(won, 1, -1) * (pairs[f"score_1_{s}"] - pairs[f"score_0_{s}"]) for s in ("a", "b")}
    np.testing.assert_allclose(pairs.agreement, ((gaps["a"] > 0).astype(float) + (gaps["b"] < 0)) / 2)
    assert pairs.agreement.max() == 1.0


def test_options_that_exclude_each_other_are_refused_before_anything_is_read(tmp_path):
    from prefkit.errors import UsageError
    from prefkit.pair.run import run_pair

    recipe = Recipe(pair={"main": Pair(normalise="winrate", scope="global")})
    with pytest.raises(UsageError, match="pair.main.scope is global, but winrate compares candidates of one request"):
        run_pair(Store(tmp_path / "run"), recipe, "main")
    assert not (tmp_path / "run").exists()
