"""The strategy one_aspect: pairs that differ in one aspect of a score."""

from __future__ import annotations

import io
import json
from itertools import permutations

import numpy as np
import pytest
from PIL import Image

from prefkit.api import Run
from prefkit.config import Pair, Recipe, plugin_options
from prefkit.errors import PluginError, UsageError
from prefkit.pair.block import Chosen
from prefkit.pair.contract import check_block
from prefkit.store import Store
from prefkit.store.files import write_json
from prefkit.store.table import candidate_row
from prefkit.types import Candidate, Request

NAN = float("nan")


def picture(seed):
    """A PNG of noise: no two are alike."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def chosen(aspects, value=None, **options):
    """Return {(winner, loser, aspect)} of one request. aspects [N, K]; value: default the number of aspects that hold."""
    aspects = np.array(aspects, float)
    value = np.nansum(aspects, axis=1) if value is None else np.array(value, float)
    strategy = plugin_options.make("strategy", "one_aspect", {"max_pairs": 99} | options)
    pairs = strategy.block(value[None], value[None, :, None], aspects[None])
    assert (pairs.gap == value[pairs.win] - value[pairs.lose]).all()
    return set(zip(pairs.win.tolist(), pairs.lose.tolist(), pairs.aspect.tolist()))


@pytest.mark.parametrize(
    "aspects, pairs",
    [
        ([[1, 1], [1, 0]], {(0, 1, 1)}),
        ([[1, 0], [1, 1]], {(1, 0, 1)}),
        ([[1, 1], [0, 0]], set()),  # two differ
        ([[1, 0], [0, 1]], set()),
        ([[1, 1], [1, 1]], set()),
        ([[1, 1], [0, NAN]], {(0, 1, 0)}),  # no object, so no colour
        ([[1, 0], [0, NAN]], {(0, 1, 0)}),
        ([[NAN, 1], [1, NAN]], set()),
        ([[1, 1], [1, 0], [0, NAN]], {(0, 1, 1), (0, 2, 0), (1, 2, 0)}),
    ],
)
def test_pairs_differ_in_one_aspect(aspects, pairs):
    assert chosen(aspects) == pairs


def test_a_tie_makes_close_values_equal():
    aspects = [[0.9, 0.8], [0.2, 0.7], [0.8, 0.1]]
    assert chosen(aspects) == set()
    assert chosen(aspects, aspect_tie=0.25) == {(0, 1, 0), (0, 2, 1)}


def test_the_combined_score_must_not_prefer_the_loser():
    assert chosen([[1, 1], [1, 0]], [0.2, 0.5]) == set()
    assert chosen([[1, 1], [1, 0]], [0.5, 0.5]) == {(0, 1, 1)}  # a tie, which the pair stage keeps apart
    assert chosen([[1, 1], [1, 0]], [NAN, 0.5]) == set()


def test_random_verdicts_against_a_search():
    rng = np.random.default_rng(0)
    for _ in range(40):
        aspects = rng.choice([0.0, 1.0, NAN], (7, 4), p=[0.4, 0.5, 0.1])
        value = np.nansum(aspects, axis=1)
        expected = set()
        for win, lose in permutations(range(7), 2):
            up, down = aspects[win] > aspects[lose], aspects[win] < aspects[lose]
            if up.sum() == 1 and not down.any() and value[win] >= value[lose]:
                expected.add((win, lose, int(up.argmax())))
        assert chosen(aspects) == expected
        few = chosen(aspects, max_pairs=1)
        assert few <= expected and len(few) == len({aspect for *_, aspect in expected})


def test_the_first_pairs_of_an_aspect_have_different_candidates():
    pairs = chosen([[1]] * 4 + [[0]] * 4, max_pairs=4)
    assert {win for win, *_ in pairs} == {0, 1, 2, 3} and {lose for _, lose, _ in pairs} == {4, 5, 6, 7}


def test_what_cannot_be_meant_is_refused():
    with pytest.raises(UsageError, match="aspect_tie is -1"):
        plugin_options.make("strategy", "one_aspect", {"aspect_tie": -1.0})
    strategy = plugin_options.make("strategy", "one_aspect", {})
    with pytest.raises(PluginError, match="needs the aspects"):
        strategy.pairs(np.array([0.0, 1.0]), np.array([[0.0], [1.0]]))


@pytest.mark.parametrize("aspect", [None, np.array([5]), np.array([0.0]), np.array([0, 0])])
def test_a_strategy_must_name_the_aspect_of_each_pair(aspect):
    one = np.zeros(1, int)
    with pytest.raises(PluginError, match="array aspect|aspect or a scorer that does not exist"):
        check_block(Chosen(one, one, one + 1, np.ones(1), aspect=aspect), (1, 2), 1, "mine", aspects=2)


@pytest.fixture
def run(tmp_path):
    """Two requests of four candidates; clauses: a cup and its colour, in the second request a dog too."""
    store = Store.create(tmp_path / "run")
    store.write_requests([Request(f"r{i}", f"prompt {i}") for i in range(2)])
    members = [Candidate(f"c{i}", f"r{i // 4}", i % 4, i, image=picture(i), sha256=str(i)) for i in range(8)]
    store.candidates("own").append([candidate_row(c) for c in members])
    cup, dog = {"0 cup count": 1.0, "0 cup color": 1.0}, {"1 dog count": 1.0}
    verdicts = [cup, cup | {"0 cup color": 0.0}, {"0 cup count": 0.0}, cup]
    verdicts += [cup | dog, cup | {"1 dog count": 0.0}, {"0 cup count": 0.0} | dog, cup | {"0 cup color": 0.0} | dog]
    rows = [
        {"id": c.id, "value": sum(verdict.values()) / (2 + i // 4), "aspects": json.dumps(verdict)}
        for i, (c, verdict) in enumerate(zip(members, verdicts))
    ]
    store.scores("clauses").append(rows)
    write_json(store.scores("clauses").folder / "spec.json", {"name": "geneval"})
    store.scores("taste").append([{"id": c.id, "value": float(i % 3)} for i, c in enumerate(members)])
    write_json(store.scores("taste").folder / "spec.json", {"name": "taste"})

    def pair(weights=("clauses",), **options):
        settings = Pair(use="one_aspect", options=options, weights=dict.fromkeys(weights, 1.0))
        made = Run(recipe=Recipe(run=str(store.folder), pair={"main": settings}))
        return made.pair()["main"], made.pairs("main")

    pair.store = store
    return pair


def test_pairs_of_a_run_name_their_aspect(run, cli):
    counts, pairs = run(max_pairs=9)
    winners = np.where(pairs.label_0 == 1, pairs.candidate_0, pairs.candidate_1)
    losers = np.where(pairs.label_0 == 1, pairs.candidate_1, pairs.candidate_0)
    expected = {("c0", "c1", "0 cup color"), ("c3", "c1", "0 cup color"), ("c4", "c7", "0 cup color")}
    expected |= {(win, "c2", "0 cup count") for win in ("c0", "c1", "c3")}
    expected |= {("c4", "c5", "1 dog count"), ("c4", "c6", "0 cup count"), ("c7", "c6", "0 cup count")}
    assert set(zip(winners, losers, pairs.aspect)) == expected and set(pairs.strategy) == {"one_aspect"}
    assert counts["pairs_by_aspect"] == {"0 cup count": 5, "0 cup color": 3, "1 dog count": 1}
    assert run(max_pairs=9)[0].get("unchanged")
    folder = run.store.pairs("main")
    card = (folder / "README.md").read_text()
    assert "| 0 cup color | 3 |" in card and "- name: aspect" in card and "pairs by aspect" not in card
    assert cli("report", str(run.store.folder))[0] == 0
    page = (run.store.folder / "report.html").read_text()
    assert "differ in 1 dog count" in page and "The aspect that the loser lacks" in page


def test_new_verdicts_with_equal_values_make_the_pairs_anew(run):
    run()
    verdict = json.dumps({"0 cup count": 1.0, "0 cup color": 1.0, "1 dog count": 0.0})
    run.store.scores("clauses").append([{"id": "c7", "value": 2 / 3, "aspects": verdict}])
    counts, pairs = run()
    assert not counts.get("unchanged")
    assert "0 cup color" not in set(pairs.aspect[pairs.request_id == "r1"])


def test_a_score_without_aspects_is_named(run):
    with pytest.raises(UsageError, match="taste has no aspects"):
        run(weights=["taste"])
    with pytest.raises(UsageError, match="`score` is not set; set it to .* clauses, taste"):
        run(weights=["clauses", "taste"])
    with pytest.raises(UsageError, match="score is 'cloths'"):
        run(score="cloths")
    with pytest.raises(UsageError, match="differ in one aspect alone. Change `aspect_tie`"):
        run(aspect_tie=2.0)
    _, pairs = run(weights=["clauses", "taste"], score="clauses", max_pairs=9)
    assert len(pairs) and set(pairs.aspect) <= {"0 cup count", "0 cup color", "1 dog count"}
