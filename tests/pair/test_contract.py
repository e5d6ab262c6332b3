"""What a strategy may return, and what it may do to the arrays that it is given."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from prefkit.config import Pair
from prefkit.errors import PluginError
from prefkit.pair.block import Chosen
from prefkit.pair.choose import choose_by
from prefkit.pair.contract import COLUMNS, check_table, pairs_of

GROUPS = np.repeat([0, 1], 3)
VALUES = np.array([3.0, 2.0, 1.0, 4.0, 6.0, 5.0])


class Fixed:
    """Returns what it was made with, for every request."""

    def __init__(self, found):
        self.found = found

    def pairs(self, value, scores):
        return self.found


class Blocks(Fixed):
    def block(self, value, scores):
        return self.found


def choose(strategy):
    settings = Pair(use="mine", normalise="none")
    return choose_by(settings, strategy, {"a": VALUES}, {"a": 1.0}, {"a": 1.0}, GROUPS)


@pytest.mark.parametrize(
    "found",
    [
        [(0, 3, 1.0)],
        [(-1, 0, 1.0)],
        [(1, 1, 1.0)],
        [(0.5, 1, 1.0)],
        [("0", 1, 1.0)],
        [(0, 1, -1.0)],
        [(0, 1, float("nan"))],
        [(0, 1, float("inf"))],
        [(0, 1, 10**400)],
        [(0, 1, None)],
        [(0, 1)],
        [(0, 1, 1.0, 2.0)] * 4,
        [0, 1],
        {(0, 1, 1.0)},
        {0: (0, 1, 1.0)},
        None,
        "01",
    ],
)
def test_a_pair_that_is_none_is_refused(found):
    with pytest.raises(PluginError, match="strategy mine returned"):
        choose(Fixed(found))
    with pytest.raises(PluginError, match="strategy mine returned"):
        pairs_of(Fixed(found), VALUES[:3], VALUES[:3, None], "mine")


@pytest.mark.parametrize("found", [[(0, 1, 1.0)], ((np.int32(0), np.int64(1), np.float32(1)),), [[0, 1, 1]]])
def test_pairs_are_taken_from_lists_and_numpy(found):
    pairs = choose(Fixed(found)).pairs
    assert list(zip(pairs.win, pairs.lose, pairs.score_gap)) == [(0, 1, 1.0), (3, 4, 1.0)]


def test_a_generator_of_pairs_is_taken_request_by_request():
    class Lazy:
        def pairs(self, value, scores):
            yield 0, 2, 2.0

    assert choose(Lazy()).pairs.lose.tolist() == [2, 5]


INTS, GAP = np.array([0]), np.array([1.0])


@pytest.mark.parametrize(
    "found, said",
    [
        (Chosen(INTS, INTS, INTS + 3, GAP), "indices go from 0 to 2"),
        (Chosen(INTS, INTS - 1, INTS, GAP), "indices go from 0 to 2"),
        (Chosen(INTS + 2, INTS, INTS + 1, GAP), r"row 2 \(the block has 2 rows, counted from 0\)"),
        (Chosen(INTS, INTS, INTS, GAP), "must differ"),
        (Chosen(INTS, INTS, INTS + 1, GAP * np.inf), "gap must be finite"),
        (Chosen(INTS, INTS, INTS + 1, GAP * np.nan), "gap must be finite"),
        (Chosen(INTS, INTS, INTS + 1, np.ones(2)), "all of the same length"),
        (Chosen(INTS, INTS * 1.0, INTS + 1, GAP), r"row, win, lose \(integers\)"),
        (Chosen(INTS, INTS, INTS + 1, GAP, INTS + 1), "a scorer that does not exist"),
        ([(0, 0, 1, 1.0)], "must return a Chosen"),
        (None, "must return a Chosen"),
    ],
)
def test_a_block_that_is_none_is_refused(found, said):
    with pytest.raises(PluginError, match=said):
        choose(Blocks(found))


def test_a_strategy_may_sort_its_arrays_in_place():
    class Sorts:
        def fit(self, table):
            table.value.sort()
            table.scores[:] = 0.0

        def pairs(self, value, scores):
            value.sort()
            scores[:] = np.nan
            return [(0, 1, 1.0)]

    found = choose(Sorts())
    assert found.value.tolist() == VALUES.tolist() and found.scores[:, 0].tolist() == VALUES.tolist()
    assert found.pairs.rank_gap.tolist() == choose(Fixed([(0, 1, 1.0)])).pairs.rank_gap.tolist()


@pytest.mark.parametrize("error", [SystemExit(0), GeneratorExit()])
@pytest.mark.parametrize("name", ["fit", "pairs", "block"])
def test_a_strategy_that_ends_the_program_is_named(name, error):
    def ends(self, *_):
        raise error

    methods = {"pairs": lambda self, value, scores: [], name: ends}
    with pytest.raises(PluginError, match=f"strategy mine tried to end the program: {type(error).__name__}"):
        choose(type("Ends", (), methods)())


@pytest.mark.parametrize(
    "win, lose, gap, said",
    [
        ([0], [9], [1.0], "indices go from 0 to 5"),
        ([-1], [0], [1.0], "indices go from 0 to 5"),
        ([1], [1], [1.0], "must differ"),
        ([0], [1], [float("nan")], "gap must be finite"),
        ([0.0], [1], [1.0], "integers in win and lose"),
        ([0], [4], [1.0], "candidates from different requests"),
    ],
)
def test_pairs_made_of_votes_are_checked(win, lose, gap, said):
    table = pd.DataFrame({column: [0] for column in COLUMNS} | {"win": win, "lose": lose, "score_gap": gap})
    with pytest.raises(PluginError, match=said):
        check_table(table, GROUPS, "mine")
    check_table(table.assign(win=0, lose=2, score_gap=0.0), GROUPS, "mine")
    for found in (None, [], table.drop(columns="p")):
        with pytest.raises(PluginError, match="must return a DataFrame"):
            check_table(found, GROUPS, "mine")
