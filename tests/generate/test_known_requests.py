"""Requests that a run has already: they keep their split, and cannot change under their id."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from prefkit.config import Recipe, Requests
from prefkit.errors import UsageError
from prefkit.generate.run import sync_requests
from prefkit.store import Store


@pytest.fixture
def run(tmp_path):
    """sync(rows, **settings): the run's requests after these rows of the source."""
    store = Store.create(tmp_path / "run")

    def sync(rows, **settings):
        (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
        recipe = Recipe(run=str(store.folder), requests=Requests(str(tmp_path / "p.jsonl"), **settings))
        return sync_requests(store, recipe)

    sync.store = store
    return sync


def test_a_known_request_keeps_its_split_and_it_is_said(run, capsys):
    rows = [{"prompt": f"prompt {i}"} for i in range(20)]
    first = run(rows, test_share=0.0)
    assert "split" not in capsys.readouterr().err
    again = run([*rows, {"prompt": "a new one"}], test_share=1.0)
    assert again[:20] == first and again[20].split == "test"
    assert [r.split for r in run.store.requests()] == ["train"] * 20 + ["test"]
    err = capsys.readouterr().err
    assert "20 requests keep their split" in err and "Use a new run to split again" in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "a dog"}, "the prompt of request 'r0' in .* changed"),
        ({"user": {"id": 2}}, "the extra of request 'r0' in .* changed"),
        ({"prompt": "a dog", "user": None}, "the prompt and extra of request 'r0' in .* changed"),
    ],
)
def test_another_request_under_a_known_id_is_refused(run, change, message):
    row = {"request_id": "r0", "prompt": "a cat", "user": {"id": 1, "likes": ["é", 0.1, None]}}
    kept = run([row])
    assert run([row]) == kept
    with pytest.raises(UsageError, match=message) as error:
        run([row | change])
    assert "'r0'" in str(error.value) and "its own request_id" in str(error.value)
    assert run.store.requests() == [replace(kept[0])]


def test_requests_that_another_process_adds_meanwhile_stay(run, monkeypatch):
    run([{"prompt": "a hat"}])
    other, lock = Store(run.store.folder), Store.lock

    def late(store, what, seconds=0):
        """The other process writes between our reading of the requests and our turn to write."""
        monkeypatch.setattr(Store, "lock", lock)
        other.write_requests([*other.requests(), replace(other.requests()[0], request_id="theirs", prompt="a scarf")])
        return lock(store, what, seconds)

    monkeypatch.setattr(Store, "lock", late)
    run([{"prompt": "a hat"}, {"prompt": "a coat"}])
    assert sorted(r.prompt for r in run.store.requests()) == ["a coat", "a hat", "a scarf"]
