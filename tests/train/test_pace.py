"""Measurements of held-out pairs within a share of the training's time, by a clock that the test winds."""

from __future__ import annotations

import json
from types import SimpleNamespace as Has

import pytest

from prefkit.errors import UsageError
from prefkit.train import pace
from prefkit.train.run import run_train
from prefkit.train.trainer import Trainer

ONE = Has(main=True, sum=lambda tensor: tensor)


@pytest.mark.parametrize(
    ("share", "measurement", "every"),
    [(0.1, 1.9, 10), (0.1, 2.0, 10), (0.1, 2.1, 20), (0.1, 0.0, 10), (0.01, 2.0, 100), (2.0, 2.0, 10)],
)
def test_the_interval_is_the_least_multiple_that_the_share_allows(tmp_path, share, measurement, every):
    """Steps of 2 s, one slow: 10 of them take 20 s, a tenth of which is 2 s."""
    found = pace.Pace(share, 10, tmp_path)
    found.measurement, found.steps = measurement, [60.0, 2.0, 2.0]
    due = [step for step in range(1, 201) if found.due(step, ONE)]
    assert due == list(range(every, 201, every))
    again = pace.Pace(share, 10, tmp_path)
    again.measurement, again.steps = 9.0, [1.0]
    again.resume(30)
    assert [step for step in range(1, 201) if again.due(step, ONE)] == due
    other = pace.Pace(share, 7, tmp_path)  # validate_every was changed meanwhile: what was decided holds
    other.resume(30)
    assert [step for step in range(1, 201) if other.due(step, ONE)] == due


def measured(store):
    rows = map(json.loads, (store.train("dpo") / "metrics.jsonl").read_text().splitlines())
    return [row["step"] for row in rows if "validation" in row]


def test_a_resumed_training_keeps_the_pace_whatever_the_clock_says(run, monkeypatch):
    now, cost = [0.0], {"measure": 3.0, "accumulate": 1.0}
    for name in cost:
        inner = getattr(Trainer, name)

        def timed(self, *given, name=name, inner=inner, **more):
            now[0] += cost[name]
            return inner(self, *given, **more)

        monkeypatch.setattr(Trainer, name, timed)
    monkeypatch.setattr(pace, "clock", lambda: now[0])
    settings = {"steps": 7, "validation": 2, "validate_every": 1, "validation_share": 1.0, "checkpoint_every": 1}
    store, recipe = run(**settings)
    run_train(store, recipe, "dpo", limit=4)
    cost["measure"] = 100.0
    run_train(store, recipe, "dpo")
    assert measured(store) == [0, 3, 6, 7]
    with pytest.raises(UsageError, match="validation_share"):
        run_train(*run(where="none", validation_share=0.0), "dpo")
