"""What the first process finds is what all go by: files of another machine may be seen later."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from prefkit.store import Store
from prefkit.train.online.loop import OnlineTrainer
from prefkit.train.online.pair_learner import PairLearner
from prefkit.train.online.rounds import Round, round_folder


def group(said):
    return SimpleNamespace(broadcast=lambda own: said, lead=lambda work: said)


@pytest.mark.parametrize("there", [False, True])
def test_whether_a_round_has_pairs(tmp_path, there):
    store = Store(round_folder(tmp_path, 3))
    if there:
        store.pairs("main").mkdir(parents=True)
        (store.pairs("main") / "spec.json").write_text("{}")
    learner = PairLearner.__new__(PairLearner)
    processes = SimpleNamespace(main=False, wait=lambda: None, group=group(False))
    learner.objective = object()  # it needs no advantages
    learner.trainer = SimpleNamespace(folder=tmp_path, processes=processes)
    assert learner.learn(Round(3, [], []), None) == {"pairs": 0}


def test_why_a_training_stops():
    trainer = OnlineTrainer.__new__(OnlineTrainer)
    trainer.monitor, trainer.online, trainer.total = object(), SimpleNamespace(watch_every=1), 4
    trainer.step, trainer.stopped = 2, ""
    trainer.processes = SimpleNamespace(main=False, group=group("the watched scores have fallen"))
    trainer.evaluate(None)
    assert trainer.stopped == "the watched scores have fallen"
