"""What the first process finds is what all go by: files of another machine may be seen later."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from prefkit.store import Store
from prefkit.train.online.loop import OnlineTrainer
from prefkit.train.online.pair_learner import PairLearner
from prefkit.train.online.rounds import Round, folder_of


def group(said):
    return SimpleNamespace(broadcast=lambda own: said, lead=lambda work: said)


@pytest.mark.parametrize("there", [False, True])
def test_whether_a_round_has_pairs(tmp_path, there):
    store = Store(folder_of(tmp_path, 3))
    if there:
        store.pairs("main").mkdir(parents=True)
        (store.pairs("main") / "spec.json").write_text("{}")
    learner = PairLearner.__new__(PairLearner)
    learner.folder = tmp_path
    learner.updates = SimpleNamespace(processes=SimpleNamespace(main=False, wait=lambda: None, group=group(False)))
    assert learner.learn(Round(3, [], []), None) == {"pairs": 0}


def test_why_a_training_stops():
    loop = OnlineTrainer.__new__(OnlineTrainer)
    loop.watch, loop.online = object(), SimpleNamespace(watch_every=1, rounds=4)
    loop.number, loop.stopped = 2, ""
    loop.processes = SimpleNamespace(main=False, group=group("the watched scores have fallen"))
    loop.look(None)
    assert loop.stopped == "the watched scores have fallen"
