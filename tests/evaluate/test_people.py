"""People's votes as a judge: the win rate of votes on pairs of images at equal seeds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from prefkit.config import Eval, Recipe, Score
from prefkit.errors import UsageError
from prefkit.evaluate.people import compare_votes, games
from prefkit.evaluate.sets import aliases_of
from prefkit.human.standings import standings


def images(model: str, requests: int, seeds: int = 2) -> pd.DataFrame:
    rows = [(f"r{r}", i, f"{'zb'[r % 2]}-{model}-{r}-{i}") for r in range(requests) for i in range(seeds)]
    return pd.DataFrame(rows, columns=["request_id", "index", "id"])


def voted(*said: tuple[str, str, float], judge: str = "person-1") -> pd.DataFrame:
    """(base image, tuned image, 1 if tuned is better, 0 for a tie, -1 if base is)."""
    rows = [(*sorted(pair), verdict if pair[1] < pair[0] else -verdict, judge) for *pair, verdict in said]
    return pd.DataFrame(rows, columns=["first", "second", "verdict", "judge"])


def test_win_rate_ties_and_requests():
    base, tuned = images("base", 8), images("dpo", 8)
    verdicts = {0: (1, 1), 1: (1, -1), 2: (0, 0), 3: (1, 0), 4: (1, 1), 5: (1, 1), 6: (-1,)}
    said = [(base.id[2 * r + i], tuned.id[2 * r + i], v) for r, row in verdicts.items() for i, v in enumerate(row)]
    row = compare_votes(voted(*said), base, tuned)
    means = [np.mean([(1 + v) / 2 for v in values]) for values in verdicts.values()]
    assert row["win_rate"] == pytest.approx(np.mean(means)) and row["ci_low"] < row["win_rate"] < row["ci_high"]
    assert row["tie_share"] == pytest.approx((1 + 0.5) / 7)
    assert (row["n_requests"], row["n_pairs"], row["requests_left_out"], row["votes"]) == (7, 13, 1, 13)
    assert row["base"] is None and row["best_of_n"] is None
    turned = compare_votes(voted(*said), tuned, base)
    assert turned["win_rate"] == pytest.approx(1 - row["win_rate"])


def test_votes_on_other_pairs_do_not_count():
    base, tuned = images("base", 3), images("dpo", 3)
    other_seed, elsewhere = (base.id[0], tuned.id[1], 1), ("x", "y", 1)
    assert compare_votes(voted(other_seed, elsewhere, (base.id[0], base.id[1], 1)), base, tuned) is None
    assert compare_votes(voted((base.id[0], base.id[0], 1)), base, base) is None  # a model that is the base itself
    row = compare_votes(voted(other_seed, (base.id[0], tuned.id[0], 1)), base, tuned)
    assert row["votes"] == 1 and row["win_rate"] == 1.0


def test_several_people_on_one_pair_are_averaged_within_its_request():
    base, tuned = images("base", 2), images("dpo", 2)
    ann = voted((base.id[0], tuned.id[0], 1), (base.id[2], tuned.id[2], -1))
    bob = voted((base.id[0], tuned.id[0], -1), (base.id[1], tuned.id[1], 1), judge="person-2")
    row = compare_votes(pd.concat([ann, bob], ignore_index=True), base, tuned)
    assert row["win_rate"] == pytest.approx((2 / 3 + 0) / 2) and row["annotators"] == 2 and row["n_pairs"] == 3


def test_votes_between_all_models_give_standings():
    """`dpo` beats `nft`, which mostly beats the base; a vote between different seeds is no game."""
    models = {name: images(name, 6, seeds=1) for name in ("base", "dpo", "nft")}
    base, dpo, nft = (list(frame.id) for frame in models.values())
    said = [(nft[r], dpo[r], 1) for r in range(6)] + [(base[r], nft[r], 1 if r else 0) for r in range(6)]
    votes = voted(*said, (base[0], dpo[1], -1))
    table = games(votes, models)
    counted = table.groupby(["a", "b"]).won.agg(["count", "sum"])
    assert counted.loc[("dpo", "nft")].tolist() == [6, 6] and counted.loc[("base", "nft")].tolist() == [6, 0.5]
    found = standings(table)
    assert [row["model"] for row in found["models"]] == ["dpo", "nft", "base"]
    assert found["games"] == 12 and found["ties"] == pytest.approx(1 / 12)
    assert games(votes.iloc[:0], models).empty


def test_which_judges_an_entry_names():
    recipe = Recipe(score={"align": Score(use="jpeg"), "size": Score(use="jpeg")})
    assert aliases_of(recipe, Eval()) == ["align", "size"] and aliases_of(Recipe(), Eval()) == []
    assert aliases_of(recipe, Eval(scorers=["people"])) == []
    assert aliases_of(recipe, Eval(scorers=["size", "people"])) == ["size"]
    with pytest.raises(UsageError, match="'peopel' is not in the recipe"):
        aliases_of(recipe, Eval(scorers=["peopel"]))
    with pytest.raises(UsageError, match="Rename the scorer"):
        aliases_of(Recipe(score={"people": Score(use="jpeg")}), Eval())
