"""What is taken out before pairing, on real images in a run; and what a grown run leaves as it was."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from prefkit.api import Run
from prefkit.config import Pair, Recipe
from prefkit.errors import UsageError
from prefkit.pair.curate import NEAR_BITS, NEAR_LEVELS
from prefkit.pair.leaks import twins
from prefkit.store import Store
from prefkit.store.decisions import append_decisions
from prefkit.store.files import read_json, write_json
from prefkit.store.table import candidate_row, comparison_row
from prefkit.types import Candidate, Comparison, Request


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def scene(seed):
    """Coloured cells: another seed is another picture."""
    return np.random.default_rng(seed).integers(0, 256, (4, 4, 3)).repeat(8, 0).repeat(8, 1)


class Bench:
    """A run of three candidates per request, scored 0, 1, 2 by a and 2, 0, 1 by b."""

    def __init__(self, folder):
        self.store = Store.create(folder)
        self.count = 0

    def grow(self, requests, images=None):
        known = self.store.requests()
        new = [Request(f"r{len(known) + i}", f"prompt {len(known) + i}") for i in range(requests)]
        self.store.write_requests([*known, *new])
        members = []
        for r in new:
            for j in range(3):
                data = (images or {}).get((r.request_id, j)) or png(scene(self.count))
                members.append(Candidate(f"c{self.count:04d}", r.request_id, j, self.count, image=data, sha256=hashlib.sha256(data).hexdigest()))  # fmt: skip
                self.count += 1
        self.store.candidates("own").append([candidate_row(c) for c in members])
        for alias, values in (("a", (0.0, 1.0, 2.0)), ("b", (2.0, 0.0, 1.0))):
            self.store.scores(alias).append([{"id": c.id, "value": values[c.index]} for c in members])
            write_json(self.store.scores(alias).folder / "spec.json", {"name": alias})
        return self

    def pair(self, **settings):
        run = Run(recipe=Recipe(run=str(self.store.folder), pair={"main": Pair(**{"weights": {"a": 1.0}} | settings)}))
        return run.pair()["main"], run.pairs("main")


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path / "run")


def test_each_kind_is_counted_and_gone(bench):
    near, flat = scene(1).copy(), np.full((32, 32, 3), 120)
    near[3, 3] += 1
    neon = np.zeros((32, 32, 3))
    neon[:, :16, 0] = neon[:, 16:, 2] = 255
    special = {
        ("r0", 2): png(np.zeros((32, 32, 3))),
        ("r1", 0): png(flat),
        ("r2", 1): png(neon),
        ("r3", 0): png(scene(1)),
        ("r3", 1): png(near),
        ("r4", 0): png(scene(2)),
        ("r4", 2): png(scene(2)),
        ("r5", 1): b"no image",
    }
    bench.grow(7, special)
    counts, pairs = bench.pair()
    kinds = ("black", "blank", "saturated", "near_duplicates", "exact_duplicates", "unreadable")
    assert {k: counts[k] for k in kinds} == dict.fromkeys(kinds, 1)
    used = {*pairs.candidate_0, *pairs.candidate_1}
    assert not used & {"c0002", "c0003", "c0007", "c0016"}
    assert not used >= {"c0009", "c0010"} and not used >= {"c0012", "c0014"}  # one of two that look alike
    counts, _ = bench.pair(duplicates="keep", degenerate="keep", embed=False)
    assert not set(kinds) & {k for k, n in counts.items() if n}


def test_another_colour_is_no_duplicate(bench):
    red, blue = np.full((32, 32, 3), 255), np.full((32, 32, 3), 255)
    red[8:24, 8:24] = (220, 40, 40)
    blue[8:24, 8:24] = (40, 40, 220)
    counts, _ = bench.grow(1, {("r0", 0): png(red), ("r0", 2): png(blue)}).pair()
    assert counts["near_duplicates"] == 0


def test_the_curator_overrules_and_images_are_read_once(bench, monkeypatch):
    from prefkit.pair import image_stats

    bench.grow(2, {("r0", 2): png(np.zeros((32, 32, 3)))})
    assert "c0002" not in set(np.r_[bench.pair()[1].candidate_0, bench.pair()[1].candidate_1])
    monkeypatch.setattr(image_stats, "measure", None)  # would fail if it were called again
    (bench.store.folder / "decisions.csv").write_text("id,verdict,reason,by\nc0002,keep,,me\nc0005,reject,,me\n")
    counts, pairs = bench.pair()
    used = {*pairs.candidate_0, *pairs.candidate_1}
    assert "c0002" in used and "c0005" not in used and counts["black"] == 0 and counts["decided_reject"] == 1


def test_growing_changes_only_what_it_must(bench):
    bench.grow(4)
    settings = {"normalise": "rank", "weights": {"a": 1.0}}
    _, before = bench.pair(**settings)
    bench.store.scores("new").append([{"id": "c0000", "value": 1.0}])  # a scorer that nobody weighs
    assert bench.pair(**settings)[0].get("unchanged")
    bench.grow(3)
    _, after = bench.pair(**settings)
    assert len(after) == 7
    assert after[after.request_id.isin(before.request_id)].reset_index(drop=True).equals(before)
    data = png(scene(999))
    more = Candidate("c9999", "r1", 3, 9, image=data, sha256=hashlib.sha256(data).hexdigest())
    bench.store.candidates("own").append([candidate_row(more)])  # a larger N in one request
    bench.store.scores("a").append([{"id": "c9999", "value": 9.0}])
    _, larger = bench.pair(**settings)
    other = after.request_id != "r1"
    assert larger[larger.request_id != "r1"].reset_index(drop=True).equals(after[other].reset_index(drop=True))
    (changed,) = larger[larger.request_id == "r1"].to_dict("records")
    assert "c9999" in (changed["candidate_0"], changed["candidate_1"])
    after = larger
    (bench.store.folder / "decisions.csv").write_text("id,verdict,reason,by\nc0002,reject,,me\n")
    _, decided = bench.pair(**settings)
    same = after.request_id != "r0"
    assert decided[decided.request_id != "r0"].reset_index(drop=True).equals(after[same].reset_index(drop=True))


def test_missing_scores_by_policy(bench):
    bench.grow(2)
    bench.store.scores("b").append([{"id": "c0000", "value": None, "error": "no"}])
    both = {"weights": {"a": 1.0, "b": 1.0}, "use": "all_pairs", "tie": 0.0}
    used = {}
    for policy in ("drop_candidate", "drop_scorer", "drop_request"):
        counts, pairs = bench.pair(missing=policy, **both)
        assert counts["missing_scores"] == 1
        used[policy] = {*pairs.candidate_0, *pairs.candidate_1}
    assert "c0000" in used["drop_scorer"] - used["drop_candidate"]
    assert not used["drop_request"] & {"c0000", "c0001", "c0002"}


def test_every_config_of_the_dataset_loads(bench, tmp_path):
    counts, _pairs = bench.grow(6).pair(use="all_pairs", lists=True, tie=1.1)
    folder, cache = str(bench.store.pairs("main")), str(tmp_path / "cache")
    assert counts["ties"] == 12 and counts["pairs"] == 6

    def load(name):
        return datasets.load_dataset(folder, name, split="train", cache_dir=cache)

    assert load("default")[0]["jpg_0"].size == (32, 32) and isinstance(load("bytes")[0]["jpg_0"], bytes)
    assert set(load("ties")["label_0"]) == {0.5}
    assert load("lists")[0]["rank"] == [0, 1, 2] and load("lists")[0]["candidate"] == ["c0002", "c0001", "c0000"]


def test_without_bytes_the_rows_are_the_same(bench):
    _, with_bytes = bench.grow(5).pair()
    _, without = bench.pair(embed=False)
    assert without.equals(with_bytes)
    path = next(bench.store.pairs("main").glob("train/*.parquet"))
    assert pq.read_table(path)["jpg_0"].null_count == len(without)


def test_top_pairs_are_those_agreed_on(bench):
    settings = {"use": "all_pairs", "tie": 0.0, "weights": {"a": 1.0, "b": 0.5}}
    _, every = bench.grow(5).pair(**settings)
    counts, top = bench.pair(top_pairs=5, **settings)
    assert len(top) == 5 and counts["beyond_top_pairs"] == len(every) - 5
    assert top.agreement.min() >= every.agreement.sort_values()[::-1].iloc[4]


def test_votes_become_soft_labels(bench):
    bench.grow(2)
    said = [("c0000", "c0001", "a", "x"), ("c0001", "c0000", "b", "y"), ("c0000", "c0001", "b", "z"), ("c0003", "c0004", "tie", "x")]  # fmt: skip
    said += [("c0001", "c0002", "a", "x"), ("c0002", "c0001", "b", "x")]  # one judge, both orders: one vote
    bench.store.comparisons("people").append([comparison_row(Comparison(a, b, o, j)) for a, b, o, j in said])
    counts, pairs = bench.pair(use="comparisons", weights={})
    won = {(r.candidate_0, r.candidate_1)[int(r.label_1)]: r.p for r in pairs.itertuples()}
    assert counts["ties"] == 1 and won == {"c0000": pytest.approx(2 / 3), "c0001": 1.0}
    _, fitted = bench.pair(use="comparisons", weights={}, options={"bradley_terry": True})
    assert fitted.p.between(0.5, 1, inclusive="neither").all() and len(fitted) == 2


def test_a_score_added_after_training_does_not_change_pairs_by_votes(bench, capsys):
    rows = [Comparison(f"c{3 * i:04d}", f"c{3 * i + 1:04d}", "a", "someone") for i in range(2)]
    bench.grow(2).store.comparisons("people").append([comparison_row(row) for row in rows])
    bench.pair(use="comparisons", weights={})
    write_json(bench.store.train("dpo") / "spec.json", {"train": {"pairs": "main"}})
    path = bench.store.pairs("main") / "spec.json"
    before = path.read_bytes()
    bench.store.scores("new").append(bench.store.scores("a").frame(["id", "value"]).to_dict("records"))
    counts, _ = bench.pair(use="comparisons", weights={})
    assert counts["unchanged"] and path.read_bytes() == before and "new" not in read_json(path)["spec"]["scorers"]
    assert "was added" not in capsys.readouterr().err  # the scores did not choose the pairs


def test_a_person_is_one_judge_in_however_many_tables(bench):
    """Live votes whose file was imported under another name, and a further vote of the same person on the same pair."""
    from prefkit.pair.votes import verdicts

    ann, bob = Comparison("c0000", "c0001", "a", "ann"), Comparison("c0000", "c0001", "b", "bob", order="ba")
    for name, said in (("people", [ann]), ("votes", [ann, bob])):
        table = bench.store.comparisons(name)
        table.claim({"name": name, "imported": "votes"}, "", empty=False)
        table.append([comparison_row(one) for one in said])
    bench.store.comparisons("critic").append([comparison_row(Comparison("c0000", "c0001", "a", "ann"))])

    def read():
        return dict(verdicts(bench.store, [], "").set_index("judge").fraction)

    assert read() == {"critic/ann": 1.0, "people/ann": 1.0, "votes/bob": 0.0}
    bench.store.comparisons("votes").append([comparison_row(Comparison("c0001", "c0000", "a", "ann"))])
    assert read() == {"critic/ann": 1.0, "people/ann": 0.5, "votes/bob": 0.0}


def test_bradley_terry_maximises_its_likelihood():
    from scipy.optimize import minimize

    from prefkit.pair.votes import fit_bradley_terry

    won = np.array([[0, 3, 5, 1], [1, 0, 2, 2], [0, 2, 0, 1], [0, 1, 3, 0.0]])

    def loss(s):
        return (won * np.log1p(np.exp(-(s[:, None] - s[None, :])))).sum() + 0.35 * (s**2).sum()

    np.testing.assert_allclose(fit_bradley_terry(won, 0.7), minimize(loss, np.zeros(4), tol=1e-12).x, atol=1e-5)


def test_the_audit_finds_a_planted_shortcut_and_no_other(bench):
    bench.grow(60)
    order = np.random.default_rng(0)
    ids = bench.store.candidates("own").frame(["id", "index"])
    bench.store.scores("late").append([{"id": i, "value": float(x)} for i, x in zip(ids.id, ids["index"])])
    bench.store.scores("chance").append([{"id": i, "value": float(order.normal())} for i in ids.id])
    found = {}
    for alias in ("late", "chance"):
        bench.pair(weights={alias: 1.0})
        found[alias] = json.loads((bench.store.pairs("main") / "audit.json").read_text())["shortcuts"]
    assert found["late"]["index"]["accuracy"] == 1.0 and found["late"]["index"]["warn"]
    assert not found["chance"]["index"]["warn"] and not found["chance"]["file_size"]["warn"]


def test_clean_pairs_are_seldom_warned_of():
    """With 95 % intervals for each feature by itself it was 28 to 31 % of 150 clean sets."""
    from prefkit.pair.shortcut import shortcuts

    warned = 0
    for seed in range(60):
        rng = np.random.default_rng(1000 + seed)
        features = {f"f{d}": rng.normal(size=180) for d in range(6)}
        first = np.arange(60) * 3 + rng.integers(0, 3, 60)
        second = first // 3 * 3 + (first % 3 + rng.integers(1, 3, 60)) % 3
        warned += any(row["warn"] for row in shortcuts(features, first, second, np.arange(60)).values())
    assert warned <= 9


def test_agreement_is_counted_within_requests():
    from scipy.stats import spearmanr

    from prefkit.pair.audit import agreement

    rng = np.random.default_rng(2)
    scores, groups = rng.normal(size=(60, 2)), np.repeat(np.arange(12), 5)
    found = agreement(scores, groups, np.zeros(2))
    rho = np.mean([spearmanr(*scores[groups == g].T).statistic for g in range(12)])
    alike = [np.prod(np.sign(scores[i] - scores[j])) > 0 for i in range(60) for j in range(i) if groups[i] == groups[j]]
    assert found["rank_correlation"][0][1][0] == pytest.approx(rho)
    assert found["agreement"][0][1][0] == pytest.approx(np.mean(alike))
    assert found["agreement"][0][1][1] < np.mean(alike) < found["agreement"][0][1][2]


def test_twins_across_splits_are_counted(bench):
    bench.grow(3)
    twin = Request("t0", "Prompt  0!", "test")
    bench.store.write_requests([*bench.store.requests(), twin])
    bench.pair()
    report = json.loads((bench.store.pairs("main") / "audit.json").read_text())
    assert report["splits"]["prompts"] == 2 and any("share a prompt with" in text for text in report["warnings"])


def test_images_that_are_nearly_one_across_splits_are_found_as_by_brute_force():
    """Drawn around few centres, so that many are close: within 0 to 6 bits, and 0 to 6 levels."""
    rng = np.random.default_rng(4)
    size, centres = 300, 100
    at = rng.integers(0, centres, size)
    hashes = rng.integers(0, 2**63, centres).astype(np.uint64)[at]
    for _ in range(3):
        hashes ^= np.where(
            rng.random(size) < 0.3, np.uint64(1) << rng.integers(0, 64, size).astype(np.uint64), np.uint64(0)
        )
    thumbs = rng.integers(0, 250, (centres, 48)).astype(np.int16)[at] + rng.integers(0, 5, (size, 48)).astype(np.int16)
    thumbs[np.arange(size), rng.integers(0, 48, size)] += rng.integers(0, 3, size).astype(np.int16)
    side = rng.integers(0, 3, size)
    apart = np.bitwise_count(hashes[:, None] ^ hashes[None]) <= NEAR_BITS
    apart &= np.abs(thumbs[:, None] - thumbs[None]).max(axis=2) <= NEAR_LEVELS
    wanted = (apart & (side[:, None] != side[None])).any(axis=1)
    assert 0.1 < wanted.mean() < 0.9
    assert np.array_equal(twins(hashes, thumbs, side), wanted)
    order = rng.permutation(size)
    assert np.array_equal(twins(hashes[order], thumbs[order], side[order]), wanted[order])


def test_a_held_out_image_that_is_nearly_a_training_image_is_warned_of(bench):
    """Three levels brighter and of another sha256, in a request of another prompt."""
    first = np.random.default_rng(0).integers(20, 220, (4, 4, 3)).repeat(8, 0).repeat(8, 1)
    bench.grow(3, {("r0", 2): png(first), ("r2", 2): png(first + 3)})
    requests = bench.store.requests()
    bench.store.write_requests([replace(r, split="test") if r.request_id == "r2" else r for r in requests])
    bench.pair()
    report = json.loads((bench.store.pairs("main") / "audit.json").read_text())
    assert report["splits"]["images"] == 2 and any("nearly equal to an image in" in text for text in report["warnings"])


def test_pairs_chosen_by_verdicts_do_not_claim_a_score(bench, tmp_path):
    """The scores stand beside the images; card, training record and evaluation must not say that they chose."""
    from prefkit.evaluate.sets import used_for_pairs
    from prefkit.hub.push import push
    from prefkit.train.data.pairs import PairSource

    bench.grow(4)
    rows = [Comparison(f"c{3 * i:04d}", f"c{3 * i + 1:04d}", "a", "someone") for i in range(4)]
    bench.store.comparisons("people").append([comparison_row(row) for row in rows])
    recipe = Recipe(run=str(bench.store.folder), pair={"main": Pair(use="comparisons")})
    assert Run(recipe=recipe).pair()["main"]["pairs"] == 4
    source = PairSource.find(bench.store, "main")
    assert source.scorers() == ["people"] and "score_0_a" in source.columns()
    records = {"dpo": {"scorers": source.scorers(), "captions": []}}
    assert used_for_pairs(recipe, records, "dpo", "a", False) is False
    card = (bench.store.pairs("main") / "README.md").read_text(encoding="utf-8")
    assert "chosen by the verdicts in people, not by scores" in card and "| a | 1 |" not in card
    pushed = push(bench.store, "you/x", dry_run=True, pairs="main")
    text = (Path(pushed["folder"]) / "README.md").read_text(encoding="utf-8")
    assert "| winners chosen by the verdicts in | people |" in text and "not of people" not in text
    assert "| weights | {" not in text and "| weights | a" not in text


def test_another_name_for_the_scorer_that_chose_is_no_independent_judge():
    from prefkit.config import Compare, Score
    from prefkit.evaluate.sets import used_for_pairs

    recipe = Recipe(
        score={
            "a": Score(use="jpeg"),
            "again": Score(use="jpeg"),
            "clip": Score(use="clip", options={"model": "tiny"}),
        },
        compare={"judge": Compare(use="clip")},
    )
    chosen = {"dpo": {"scorers": ["a"], "captions": []}, "online": {"scorers": ["judge"], "captions": []}}
    asked = [used_for_pairs(recipe, chosen, m, s, False) for m in ("dpo", "online") for s in ("again", "clip")]
    assert asked == [True, False, False, True]


def test_exact_duplicates_are_found_without_a_python_object_per_candidate():
    import hashlib
    import tracemalloc

    import pyarrow as pa

    from prefkit.pair.curate import exact_duplicates
    from prefkit.pair.pool import Pool

    count = 8000
    texts: list = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(count)]
    texts[3] = texts[1]  # of the same request
    texts[12] = texts[1]  # of another request
    texts[5] = texts[7] = None  # without an image file of its own
    texts[18] = texts[17][:8] + "0" * 56  # only the start is equal
    order = np.r_[np.arange(8)[::-1], np.arange(8, count)]  # within the first request, the last row comes first
    sha = pa.chunked_array([pa.array(texts[:100], pa.large_string()), pa.array(texts[100:], pa.large_string())])
    pool = Pool(pd.DataFrame({"row": order, "request": np.arange(count) // 8}), sha, sha, pa.table({}), [])
    exact_duplicates(pool)  # imports
    tracemalloc.start()
    try:
        found = exact_duplicates(pool)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.flatnonzero(found).tolist() == [6]  # row 1, after row 3
    assert peak < 100 * count
    assert not exact_duplicates(pool.without(np.ones(count, bool))).any()


def test_filter_drops_candidates_by_a_score_that_they_are_not_paired_by(bench):
    bench.grow(2)
    counts, table = bench.pair(filter="b < 2", weights={}, use="all_pairs")
    assert counts["filtered"] == 2 and counts["pairs"] == 2
    frame = table.frame(["candidate_0", "candidate_1"]) if hasattr(table, "frame") else pd.DataFrame(table)
    assert {*frame.candidate_0, *frame.candidate_1} == {"c0001", "c0002", "c0004", "c0005"}
    spec = json.loads((bench.store.pairs("main") / "spec.json").read_text())["spec"]
    assert spec["weights"] == {"a": 1.0} and spec["settings"]["filter"] == "b < 2"


def test_filter_leaves_out_candidates_without_the_score_but_not_those_that_a_curator_keeps(bench):
    bench.grow(1)
    bench.store.scores("b").append([{"id": "c0001", "value": None, "error": "unreadable"}])
    with pytest.raises(UsageError, match="All candidates were removed: 3 by `filter`"):
        bench.pair(filter="b < 1")
    append_decisions(bench.store.folder / "decisions.csv", [{"id": i, "verdict": "keep"} for i in ("c0000", "c0001")])
    assert bench.pair(filter="b < 1")[0]["filtered"] == 1


def test_a_text_in_a_filter_is_no_score():
    from prefkit.store.query import in_query

    assert in_query(["align", "taste"], 'generator == "align" and taste > 1') == ["taste"]
    assert in_query(["align", "a-b"], "`a-b` < 1 and generator == 'align'") == ["a-b"]


@pytest.mark.parametrize("query", ["b != 99", "not b > 99", "b < 99 or index >= 0"])
def test_a_missing_score_meets_no_filter(bench, query):
    bench.grow(1)
    bench.store.scores("b").append([{"id": "c0001", "value": None, "error": "unreadable"}])
    assert bench.pair(filter=query)[0]["filtered"] == 1


@pytest.mark.parametrize(
    "query, message",
    [
        ("c < 1", "pair: filter: unknown column c"),
        ("a +", "is not a valid condition on scores"),
        ("a + 1", "is not a condition on candidates"),
    ],
)
def test_an_invalid_filter_is_refused(bench, query, message):
    with pytest.raises(UsageError, match=message):
        bench.grow(1).pair(filter=query)


def test_too_few_candidates_after_a_filter_name_the_filter(bench):
    bench.grow(1)
    with pytest.raises(
        UsageError, match="no request has more than 1. .* Candidates that `filter` removes do not count"
    ):
        bench.pair(filter="index == 0")


def test_a_filter_on_every_score_leaves_none_to_pair_by(bench):
    with pytest.raises(UsageError, match="`filter` uses all scores"):
        bench.grow(1).pair(filter="a > 0 and b > 0", weights={})


def test_filter_may_not_use_an_evaluation_only_score(bench):
    bench.grow(1)
    write_json(bench.store.scores("b").folder / "spec.json", {"name": "b", "evaluation_only": True})
    with pytest.raises(UsageError, match="b may only be used for evaluation"):
        bench.pair(filter="b < 2")
