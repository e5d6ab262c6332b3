from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest

from prefkit.config import Choice
from prefkit.errors import FingerprintError, UsageError
from prefkit.train.curriculum import Curriculum
from prefkit.train.data.pairs import PairImage, PairRow
from prefkit.train.run import run_train


def pairs_of(gaps, kind="rank_gap"):
    return [
        PairRow(f"p{i}", i, "x", None, PairImage("a", 0), PairImage("b", 1), **{kind: gap})
        for i, gap in enumerate(gaps)
    ]


def test_easy_pairs_come_first_and_all_in_the_end():
    gaps = [1, 7, 3, 5, 2, 6, 4, 0]
    stream = Curriculum(pairs_of(gaps), stages=4, seed=0, length=40)
    for stage in range(4):
        seen = {gaps[stream.place(position)[0]] for position in range(10 * stage, 10 * stage + 10)}
        assert seen == set(range(7, 5 - 2 * stage, -1))
    order = [stream.place(position) for position in range(60)]  # beyond the end it goes on
    assert max(Counter(order).values()) == 1  # no pair meets a visit twice: no draw comes twice
    again = Curriculum(pairs_of(gaps), stages=4, seed=0, length=40)
    assert [again.place(position) for position in reversed(range(60))] == order[::-1]  # a function of the position
    other = Curriculum(pairs_of(gaps), stages=4, seed=1, length=40)
    assert [other.place(position) for position in range(60)] != order


def test_stages_need_no_whole_division():
    stream = Curriculum(pairs_of([0.5, 0.25, 1.0], "score_gap"), stages=5, seed=3, length=7)
    assert len({stream.place(position) for position in range(20)}) == 20
    assert stream.place(0)[0] == 2 and {stream.place(position)[0] for position in range(7, 13)} == {0, 1, 2}


def test_gaps_must_be_there():
    with pytest.raises(UsageError, match="no order from easy to hard"):
        Curriculum([*pairs_of([1]), *pairs_of([1.0], "score_gap")], 2, 0, 8)


def rows_of(pair_rows):
    return [row | {"rank_gap": i, "score_gap": 1.0} for i, row in enumerate(pair_rows(8))]


def lines(store):
    return [json.loads(line) for line in (store.train("dpo") / "metrics.jsonl").read_text().splitlines()]


def test_training_follows_it_and_resumes_exactly(run, pair_rows, loop_of):
    rows = rows_of(pair_rows)
    whole, recipe = run(rows=rows, curriculum=2, where="whole")
    seen = [pair.rank_gap for step in range(4) for batches in loop_of(whole, recipe).micro_batches(step)
            for batch in batches for pair in batch.members]  # fmt: skip
    assert sorted(seen[:4]) == [4, 5, 6, 7] and min(seen[4:]) < 4
    for batch_size, accumulation in ((2, 1), (1, 2)):  # the same stream, however it is split
        split = loop_of(whole, recipe, batch_size=batch_size, accumulation=accumulation)
        found = [p.rank_gap for step in range(4) for bs in split.micro_batches(step) for b in bs for p in b.members]
        assert found == seen
    run_train(whole, recipe, "dpo")
    parts, recipe = run(rows=rows, curriculum=2, where="parts")
    for _ in range(2):
        run_train(parts, recipe, "dpo", limit=2)
    assert [line["loss"] for line in lines(parts)] == [line["loss"] for line in lines(whole)]
    longer = replace(recipe.train["dpo"], steps=6)
    with pytest.raises(FingerprintError, match="steps"):  # stages would lie elsewhere
        run_train(parts, replace(recipe, train={"dpo": longer}), "dpo")


def test_only_pairs_have_a_curriculum(run, pair_rows):
    store, recipe = run(rows=rows_of(pair_rows), curriculum=2, objective=Choice("sft"))
    with pytest.raises(UsageError, match="curriculum"):
        run_train(store, recipe, "dpo")
