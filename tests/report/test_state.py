"""Counts against what was put in."""

from __future__ import annotations

from report_synthetic import candidates, requests, score_rows, store_rows

from prefkit.report import status
from prefkit.store import Store


def test_counts_of_a_full_run(full):
    found = status(full)
    assert found["requests"] == {"train": 12, "test": 8}
    assert found["candidates"] == {"own": {"done": 46, "failed": 2}}
    assert found["scores"]["align"] == {"done": 45, "failed": 3}
    assert found["scores"]["broken"] == {"done": 0, "failed": 48}
    assert found["pairs"] == {"main": {"train": 22}}
    assert found["train"] == {"dpo": {"step": 60, "final": True}}
    assert found["eval"] == {"held": {"done": True, "sets": ["held_out"]}}
    assert found["decisions"] == {"reject": 1}


def test_a_redone_failure_counts_once(tmp_path):
    store = Store.create(tmp_path / "redone")
    members = requests(2)
    store.write_requests(members)
    store_rows(store, "own", candidates(members, 2, "own", failed=3))
    found = candidates(members, 2, "own")
    store_rows(store, "own", found)
    store.scores("align").append(score_rows(found, 0, failed=4))
    store.scores("align").append(score_rows(found[:2], 0))
    assert status(store)["candidates"]["own"] == {"done": 4, "failed": 0}
    assert status(store)["scores"]["align"] == {"done": 2, "failed": 2}
