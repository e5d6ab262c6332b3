"""Processes that share work, as threads of this one: what one of them raises, all of them raise."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from torch.distributed import HashStore

from prefkit import errors
from prefkit.config import Generate, Recipe, Requests, Score, redo
from prefkit.distributed import Group
from prefkit.generate import run as generate
from prefkit.score import passes
from prefkit.score import run as stage
from prefkit.store import Store
from prefkit.store.table import candidate_row
from prefkit.types import Candidate, Request

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.PrefkitError)]
GIVEN = {
    errors.NotYet: ("not made yet", "score", ("a", "b")),
    errors.DamagedError: (Path("x"), "x is damaged"),
    errors.TooManyFailures: ("too many", {"a": {"failed": 3}}),
}


def in_both(work):
    """What work(group) returns or raises in each of two processes."""
    store, found = HashStore(), [None, None]

    def act(rank):
        group = Group(rank, 2, store)
        try:
            found[rank] = work(group)
        except Exception as error:
            found[rank] = error
        group.heart.stopping.set()

    threads = [threading.Thread(target=act, args=(rank,), daemon=True) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a process waits for ever"
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_of_one_process_is_the_same_in_the_others(kind):
    error = kind(*GIVEN.get(kind, ("what went wrong",)))

    def fail():
        raise error

    first, other = in_both(lambda group: group.lead(fail))
    assert first is error
    assert type(other) is kind and str(other) == str(first) and other.elsewhere
    assert other.exit_code == first.exit_code
    if kind is errors.NotYet:
        assert (other.verb, tuple(other.names)) == (first.verb, first.names)
    if kind is errors.TooManyFailures:
        assert other.counts == first.counts


def test_a_scorer_that_one_process_cannot_make_stops_in_both_and_the_others_score(tmp_path, monkeypatch):
    """As where a package lacks on one machine. Processes that went on with different scorers would wait for ever."""
    store = Store.create(tmp_path / "run")
    store.write_requests([Request(f"r{i}", f"thing {i}") for i in range(4)])
    store.candidates("own").append([candidate_row(Candidate(f"c{i}", f"r{i}", 0, i, path="x")) for i in range(4)])
    here, scorer_of = threading.local(), stage.scorer_of

    def made(recipe, alias):
        if alias == "first" and here.group.rank:
            raise errors.PluginError("no module named fancy")
        return scorer_of(recipe, alias)

    monkeypatch.setattr(stage, "scorer_of", made)
    monkeypatch.setattr(stage, "group", lambda: here.group)
    monkeypatch.setattr(passes, "device_of", lambda wanted: "cpu")
    (tmp_path / "length.py").write_text("def length(prompts):\n    return [float(len(p)) for p in prompts]\n")
    own = Score(use=f"{tmp_path}/length.py:length")
    recipe = Recipe(run=str(store.folder), score={"first": own, "second": own})

    def work(group):
        here.group = group
        return stage.run_scores(store, recipe, ["first", "second"])

    found = in_both(work)
    assert [type(error) for error in found] == [errors.PluginError] * 2
    assert {str(error) for error in found} == {"no module named fancy"}
    assert not store.scores("first").parts()
    assert len(store.scores("second").ids()) == 4


def test_redo_of_candidates_is_agreed_by_all_processes(tmp_path, monkeypatch):
    """Rank 0 moves the outdated candidates only when rank 1, which reads them late, has found them outdated too."""
    (tmp_path / "p.txt").write_text("a hat\na boot\n")
    (tmp_path / "draw.py").write_text(
        "from PIL import Image\ndef draw(prompts, seeds):\n    return [Image.new('RGB', (8, 8), (s % 256, 0, 0)) for s in seeds]\n"
    )
    store, here = Store.create(tmp_path / "run"), threading.local()
    recipe = Recipe(run=str(store.folder), requests=Requests(source=f"{tmp_path}/p.txt"))
    with_seed = [
        replace(recipe, generate={"own": Generate(use=f"{tmp_path}/draw.py:draw", n=2, seed=seed)}) for seed in (0, 1)
    ]
    checked = generate.checked

    def late(*arguments):
        until = time.monotonic() + 0.5
        while here.group.rank and time.monotonic() < until and store.candidates("own").folder.exists():
            time.sleep(0.01)
        return checked(*arguments)

    monkeypatch.setattr(generate, "group", lambda: here.group)

    def work(group):
        here.group = group
        put_away = partial(redo.put_away, store)
        counts = []
        for wanted in with_seed:
            act = partial(generate.run_generate, store, wanted, "own")
            counts.append(redo.redoing(store, wanted, act, group.lead, put_away)["made"])
            group.lead(lambda: monkeypatch.setattr(generate, "checked", late))
        return counts

    assert in_both(work) == [[4, 4], [4, 4]]
    assert len(list((store.folder / ".old").glob("*/candidates/own"))) == 1
