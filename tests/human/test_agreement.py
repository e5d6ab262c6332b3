"""Agreement: formulas against published numbers and brute force, and what the report says of known votes."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest
from report_synthetic import candidates, requests, store_rows

from prefkit.human import agreement_statistics as stats
from prefkit.human.agreement import against_votes, assess, sentence
from prefkit.report import write_report
from prefkit.store import Store
from prefkit.store.files import write_json
from prefkit.store.table import comparison_row
from prefkit.types import Comparison, Request

# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", example C: four observers, twelve units, 0 = missing
PUBLISHED = """
1 2 3 3 2 1 4 1 2 0 0 0
1 2 3 3 2 2 4 1 2 5 0 3
0 3 3 3 2 3 4 2 2 5 1 0
1 2 3 3 2 4 4 1 2 5 1 0
"""


def counts_of(table: np.ndarray) -> np.ndarray:
    return np.stack([[int((unit == value).sum()) for value in range(1, 6)] for unit in table.T]).astype(float)


def test_alpha_is_the_published_one():
    table = np.array([line.split() for line in PUBLISHED.strip().splitlines()], int)
    assert stats.krippendorff_alpha(counts_of(table)).value == pytest.approx(0.743, abs=5e-4)


def test_alpha_and_raw_agreement_are_those_of_brute_force():
    rng = np.random.default_rng(0)
    units, verdicts = rng.integers(0, 30, 120), rng.integers(-1, 2, 120)
    counts = stats.verdict_counts(units, verdicts)
    by_unit = [verdicts[units == unit] for unit in range(30)]
    by_unit = [said for said in by_unit if len(said) >= 2]
    raw = np.mean([np.mean([a == b for a, b in combinations(said, 2)]) for said in by_unit])
    assert stats.raw_agreement(counts).value == pytest.approx(raw)
    pooled = np.concatenate(by_unit)
    observed = sum(np.sum(said[:, None] != said) / (len(said) - 1) for said in by_unit) / len(pooled)
    expected = np.sum(pooled[:, None] != pooled) / (len(pooled) * (len(pooled) - 1))
    assert stats.krippendorff_alpha(counts).value == pytest.approx(1 - observed / expected)


def test_alpha_of_full_agreement_and_of_one_verdict_only():
    assert stats.krippendorff_alpha(np.array([[3.0, 0, 0], [0, 0, 2]])).value == 1.0
    found = stats.krippendorff_alpha(np.array([[3.0, 0, 0], [2, 0, 0], [0, 1, 0]]))
    assert found.value is None and found.low is None  # nothing varies, so nothing can be said
    assert stats.raw_agreement(np.zeros((0, 3))).value is None


def test_an_interval_covers_as_often_as_it_says():
    """Requests differ, votes of one request hang together: 95 % must hold over requests, not over votes."""
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(200):
        truth = rng.beta(3, 2, 60)
        groups = np.repeat(np.arange(60), 5)
        found = stats.fraction(rng.random(300) < truth[groups], groups, seed=trial)
        hits += found.low <= 0.6 <= found.high
    assert 0.89 <= hits / 200 <= 0.99


def test_an_annotator_against_the_others_by_brute_force():
    rng = np.random.default_rng(2)
    units, verdicts = rng.integers(0, 20, 90), rng.integers(-1, 2, 90)
    counts = stats.verdict_counts(units, verdicts)
    single, most = stats.leave_one_out(units, verdicts, counts)
    for i in range(90):
        others = np.delete(verdicts, i)[np.delete(units, i) == units[i]]
        clear = others[others != 0]
        if not len(clear):
            assert np.isnan(single[i])
        else:
            assert single[i] == pytest.approx(0.5 if verdicts[i] == 0 else np.mean(clear == verdicts[i]))
        lead = np.sign(clear.sum())
        wanted = np.nan if lead == 0 else 0.5 if verdicts[i] == 0 else float(verdicts[i] == lead)
        assert most[i] == pytest.approx(wanted, nan_ok=True)


def test_a_scorer_against_votes_by_brute_force():
    rng = np.random.default_rng(3)
    counts = rng.integers(0, 4, (40, 3)).astype(float)
    gap, scored, groups = rng.integers(-1, 2, 40), rng.random(40) < 0.8, rng.integers(0, 9, 40)
    found = against_votes("x", gap, scored, counts, groups)
    hits, led = [], []
    for g, ok, (less, _, more) in zip(gap, scored, counts):
        if ok:
            hits += [0.5 if g == 0 else float(g < 0)] * int(less) + [0.5 if g == 0 else float(g > 0)] * int(more)
            led += [0.5 if g == 0 else float(g == np.sign(more - less))] if more != less else []
    assert found["votes"]["value"] == pytest.approx(np.mean(hits)) and found["votes"]["n"] == len(hits)
    assert found["majority"]["value"] == pytest.approx(np.mean(led)) and found["majority"]["n"] == len(led)
    assert found["unscored"] == sum(not ok and less + more > 0 for ok, (less, _, more) in zip(scored, counts))


def test_the_sentence():
    assert (
        sentence("PickScore", stats.Estimate(0.612, 0.59, 0.63, 500, 80)) == "PickScore agrees with your users 61 ± 2 %"
    )
    assert "too few requests (3)" in sentence("x", stats.Estimate(0.6, 0.5, 0.7, 9, 3))


@pytest.fixture
def voted(tmp_path):
    """30 requests x 2; three people follow `true` on 90 %, 90 %, 70 % of pairs; `anti` is lower-is-better and the same."""
    store = Store.create(tmp_path / "voted")
    members = requests(30)
    store.write_requests(members)
    made = candidates(members, 2, "own")
    store_rows(store, "own", made)
    rng = np.random.default_rng(4)
    value = {c.id: float(rng.normal()) for c in made}
    tables = {
        "true": (value, True),
        "anti": ({k: -v for k, v in value.items()}, False),
        "flat": (dict.fromkeys(value, 1.0), True),
    }
    for alias, (values, higher) in tables.items():
        rows = [{"id": k, "value": v, "aspects": None, "text": None, "error": None} for k, v in values.items()]
        store.scores(alias).append(rows)
        write_json(store.scores(alias).folder / "spec.json", {"higher_is_better": higher})
    rows = []
    for who, share in (("person-a", 0.9), ("person-b", 0.9), ("person-c", 0.7)):
        for i in range(30):
            a, b = made[2 * i].id, made[2 * i + 1].id
            right = "a" if value[a] > value[b] else "b"
            outcome = right if rng.random() < share else "ba"["ab".index(right)]
            rows.append(Comparison(a, b, outcome, who, order="ab", time=1e9 + i))
            if i < 4:  # asked again the other way round: the same word, another place
                rows.append(Comparison(a, b, "tie" if i == 0 else outcome, who, order="ba", time=2e9 + i))
    store.comparisons("votes").claim({"name": "votes", "imported": "votes"}, "", empty=True)
    store.comparisons("votes").append([comparison_row(row) for row in rows])
    return store


def test_what_is_said_of_known_votes(voted):
    found = assess(voted)
    assert found is not None
    assert (found["votes"], found["annotators"], found["pairs"]) == (90, 3, 30)
    scorers = found["scorers"]
    assert scorers["true"]["votes"] == scorers["anti"]["votes"] and 0.75 < scorers["true"]["votes"]["value"] < 0.95
    assert scorers["flat"]["votes"]["value"] == 0.5 and scorers["flat"]["even"] == 30
    assert scorers["true"]["majority"]["value"] > scorers["true"]["votes"]["value"]
    assert found["consistency"]["value"] == pytest.approx(0.75) and found["consistency"]["n"] == 12
    assert scorers["true"]["votes"]["value"] > found["human"]["votes"]["value"]  # here the scorer is the truth itself
    low, high = scorers["true"]["votes"]["low"], scorers["true"]["votes"]["high"]
    assert (
        scorers["true"]["sentence"]
        == f"true agrees with your users {100 * scorers['true']['votes']['value']:.0f} ± {round(50 * (high - low))} %"
    )


def test_a_model_judge_stands_among_the_scorers_and_not_among_people(voted):
    """A judge that says what person-a said, with the pair the other way round."""
    frame = voted.comparisons("votes").frame()
    frame = frame[frame.order == "ab"]
    told = {(r.id_a, r.id_b): r.outcome for r in frame[frame.judge == "person-a"].itertuples()}
    other = {"a": "b", "b": "a"}
    rows = [Comparison(b, a, other[outcome], "model", order="both") for (a, b), outcome in told.items()]
    voted.comparisons("mllm").append([comparison_row(row) for row in rows])
    found = assess(voted)
    assert found is not None and found["annotators"] == 3
    same = [told[r.id_a, r.id_b] == r.outcome for r in frame.itertuples()]
    assert found["scorers"]["mllm"]["votes"]["value"] == pytest.approx(np.mean(same))


def test_the_page_and_the_json_hold_it(voted):
    text = write_report(voted).read_text()
    found = json.loads((voted.folder / "agreement.json").read_text())
    assert found["scorers"]["true"]["sentence"].replace("'", "&#x27;") in text
    assert "Krippendorff" in text and "one annotator, against the rest" in text


def test_without_votes_the_page_says_how_to_begin(full):
    assert "--vote</code>" in write_report(full).read_text() and not (full.folder / "agreement.json").exists()


def test_votes_on_an_evaluation_give_a_win_rate_beside_its_judges(full):
    from prefkit.human.pairs import of_eval

    pairs = of_eval(full, "held", "held_out", ("base", "dpo"), 1000, 0)
    assert len(pairs) == 32 and {p.model_a for p in pairs} == {"base", "dpo"}
    rows = []
    for i, pair in enumerate(pairs):
        tuned = "a" if pair.model_a == "dpo" else "b"
        outcome = "tie" if i % 8 == 0 else tuned if i % 4 else "ba"["ab".index(tuned)]
        rows.append(comparison_row(Comparison(pair.a, pair.b, outcome, "person-x", time=float(i))))
    table = full.comparisons("eval-votes")
    table.claim({"imported": "votes"}, "", empty=True)
    table.append(rows)
    try:
        found = assess(full)
        assert found is not None
        row = found["evaluations"][0]
        assert (row["against"], row["model"], row["win_rate"]["n"]) == ("base", "dpo", 32)
        by_request: dict[str, list[float]] = {}
        for i, pair in enumerate(pairs):
            by_request.setdefault(pair.request_id, []).append(0.5 if i % 8 == 0 else float(i % 4 > 0))
        assert row["win_rate"]["value"] == pytest.approx(np.mean([np.mean(v) for v in by_request.values()]))
        assert row["win_rate"]["low"] < row["win_rate"]["value"] < row["win_rate"]["high"] and row["ties"] == 0.125
        text = write_report(full).read_text()
        assert "dpo over base" in text and "align 68%" in text
    finally:
        import shutil

        shutil.rmtree(table.folder)
        write_report(full)


def test_a_judge_in_both_orders_and_scorers_by_law(voted, cli):
    """The judge always prefers the image that is shown first; the truth of law `rust` is what `true` says."""
    members = [
        Request(r.request_id, r.prompt, r.split, {"law": "rust"} if i < 20 else {})
        for i, r in enumerate(voted.requests())
    ]
    voted.write_requests(members)
    votes = voted.comparisons("votes").frame(["id_a", "id_b"]).drop_duplicates()
    shown = [
        Comparison(a, b, outcome, "judge", order=order)
        for a, b in votes.itertuples(index=False)
        for order, outcome in (("ab", "a"), ("ba", "b"), ("both", "tie"))
    ]
    voted.comparisons("judge").append([comparison_row(row) for row in shown])
    found = assess(voted, by="law")
    assert set(found["by"]) == {"rust", "unknown"} and found["by"]["rust"]["flat"]["value"] == 0.5
    groups = [found["by"][law]["true"] for law in ("rust", "unknown")]
    assert [group["n"] for group in groups] == [60, 30]
    whole = sum(group["value"] * group["n"] for group in groups) / 90
    assert whole == pytest.approx(found["scorers"]["true"]["votes"]["value"])
    orders = found["scorers"]["judge"]["orders"]
    assert orders["ab"]["value"] + orders["ba"]["value"] == pytest.approx(1) and orders["ab"]["value"] != 0.5
    assert found["scorers"]["judge"]["votes"]["value"] == 0.5
    code, out, err = cli("report", voted.folder, "--by", "law")
    assert code == 0 and "votes, rust" in out, err
    page = (voted.folder / "report.html").read_text()
    assert "Order of the images" in page and "ab: image a first" in page
    code, _, err = cli("report", voted.folder, "--by", "lore")
    assert code == 2 and "no request of" in err and "the columns are law" in err
    assert "by" not in assess(voted)
