"""prefkit compare: which pairs, both orders, resume, rates; and what a remote judge may cost."""

from __future__ import annotations

import base64
import io
import itertools
import json
import math
import shutil

import pytest
from PIL import Image

from prefkit.config import Compare, Recipe, Score, compatibility
from prefkit.errors import FingerprintError, PluginError, UsageError
from prefkit.score import compare as comparing
from prefkit.score.compare import chosen_pairs, run_compare
from prefkit.store import Store
from prefkit.store.files import write_json
from prefkit.store.table import candidate_row
from prefkit.types import Candidate, Request

REQUESTS, N = 3, 5


def png(level):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (level, level, level)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def store(tmp_path):
    """Three requests of five candidates; candidate c{i} is a picture of level 10 i, and its score `size` is i % 5."""
    store = Store.create(tmp_path / "run")
    store.write_requests([Request(f"r{i}", f"thing {i}") for i in range(REQUESTS)])
    rows = [Candidate(f"c{i}", f"r{i // N}", i, i, image=png(10 * i)) for i in range(REQUESTS * N)]
    store.candidates("own").append([candidate_row(c) for c in rows])
    store.scores("size").append(
        [{"id": f"c{i}", "value": None if i == 4 else float(i % N)} for i in range(REQUESTS * N)]
    )
    write_json(store.scores("size").folder / "spec.json", {"higher_is_better": False})
    return store


def levels(payload):
    """Levels of the two pictures, as shown."""
    images = [p["image_url"]["url"] for p in payload["messages"][0]["content"] if p["type"] == "image_url"]
    return [Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).getpixel((0, 0))[0] for url in images]


def answer(p):
    """Of probability p for A."""
    top = [{"token": "A", "logprob": math.log(p)}, {"token": "B", "logprob": math.log(1 - p)}]
    choice = {"message": {"content": "A"}, "logprobs": {"content": [{**top[0], "top_logprobs": top}]}}
    return 200, {}, json.dumps({"choices": [choice]}).encode()


def brighter(payload, count):
    """Likes the brighter picture, but the first one where they are near."""
    first, second = levels(payload)
    return answer(0.9 if abs(first - second) <= 10 or first > second else 0.2)


def recipe_of(store, server, tmp_path, cache="a", **settings):
    options = {
        "model": "j",
        "server": server.url,
        "in_flight": 4,
        "tries": 1,
        "cache": str(tmp_path / f"{cache}.sqlite"),
    }
    return Recipe(run=str(store.folder), compare={"judge": Compare(options=options, **settings)})


def test_verdicts_against_the_rule_by_hand(store, faulty, tmp_path):
    server = faulty(brighter)
    found = run_compare(store, recipe_of(store, server, tmp_path, most=100), "judge")
    all_pairs = [p for r in range(REQUESTS) for p in itertools.combinations(range(r * N, r * N + N), 2)]
    assert found["compared"] == len(all_pairs) == 30 and found["failed"] == 0 and server.busiest <= 4
    frame = store.comparisons("judge").frame()
    assert frame.order.value_counts().to_dict() == {"both": 30, "ab": 30, "ba": 30} and frame.time.notna().all()
    for row in frame[frame.order == "both"].itertuples():
        a, b = int(row.id_a[1:]), int(row.id_b[1:])
        near = abs(a - b) == 1
        assert row.outcome == ("tie" if near else "a" if a > b else "b")
        assert row.probability == pytest.approx(0.5 if near else 0.85 if a > b else 0.15)
    near = sum(b - a == 1 for a, b in all_pairs)
    assert found["flip_rate"] == pytest.approx(near / 30)
    assert found["first_rate"] == pytest.approx((2 * near + (30 - near)) / 60)
    spec = store.comparisons("judge").spec()
    assert spec["measured"] == {"flip_rate": found["flip_rate"], "first_rate": found["first_rate"]}
    assert spec["judge"] == "j" and spec["answer"] == "logprobs"


def test_it_takes_up_where_it_stopped_and_asks_failures_again(store, faulty, tmp_path, monkeypatch):
    broken = True

    def behave(payload, count):
        return (500, {}, b"") if broken and max(levels(payload)) == 40 else brighter(payload, count)

    server = faulty(behave)
    recipe = recipe_of(store, server, tmp_path, most=100)
    assert run_compare(store, recipe, "judge", limit=3)["compared"] + 0 <= 3
    first = run_compare(store, recipe, "judge")
    assert first["failed"] == 4 and first["present"] + first["compared"] == 26  # c4 has four partners
    broken = False
    again = run_compare(store, recipe, "judge")
    assert (again["present"], again["compared"], again["failed"]) == (26, 4, 0)
    sent = sum(server.asked.values())
    last = run_compare(store, recipe, "judge")
    assert last["compared"] == 0 and last["flip_rate"] == again["flip_rate"] and sum(server.asked.values()) == sent
    alone = Store.create(tmp_path / "whole")
    alone.write_requests(store.requests())
    alone.candidates("own").append([candidate_row(c) for c in store.iter_candidates()])
    whole = run_compare(alone, recipe_of(alone, server, tmp_path, most=100), "judge")
    assert (whole["flip_rate"], whole["first_rate"]) == (last["flip_rate"], last["first_rate"])


def test_an_interrupt_keeps_what_was_answered(store, faulty, tmp_path, monkeypatch):
    server, inner, seen = faulty(brighter), comparing.comparison_row, []

    def row(c):
        seen.append(c)
        if len(seen) == 16:  # in the midst of the sixth pair
            raise KeyboardInterrupt
        return inner(c)

    monkeypatch.setattr(comparing, "comparison_row", row)
    recipe = recipe_of(store, server, tmp_path, most=100)
    with pytest.raises(KeyboardInterrupt):
        run_compare(store, recipe, "judge")
    monkeypatch.undo()
    assert len(comparing.decided(store.comparisons("judge"))) == 5
    assert run_compare(store, recipe, "judge")["present"] == 5


def test_which_pairs(store):
    every = chosen_pairs(store, Compare(most=100), "j")
    assert {frozenset(p) for p in every} == {
        frozenset((f"c{a}", f"c{b}"))
        for r in range(REQUESTS)
        for a, b in itertools.combinations(range(r * N, r * N + N), 2)
    }
    few = chosen_pairs(store, Compare(most=2), "j")
    assert len(few) == 2 * REQUESTS and set(few) < set(every) and few == chosen_pairs(store, Compare(most=2), "j")
    extremes = chosen_pairs(store, Compare(pairs="extremes", by="size"), "j")
    wanted = [(0, 3), (1, 2), (5, 9), (6, 8), (10, 14), (11, 13)]  # c4 has no score; small is good
    assert [frozenset(p) for p in extremes] == [frozenset((f"c{a}", f"c{b}")) for a, b in wanted]
    first = sum(int(a[1:]) < int(b[1:]) for a, b in every)
    assert 0 < first < len(every)  # which one is a does not follow from its place
    for wrong, said in [
        (Compare(pairs="extremes", by="sise"), "Did you mean 'size'"),
        (Compare(pairs="best"), "it must be `all` or `extremes`"),
    ]:
        with pytest.raises(UsageError, match=said):
            chosen_pairs(store, wrong, "j")
    with pytest.raises(UsageError, match="compare.j.by is for pairs: extremes"):
        compatibility.check("compare", "j", Recipe(), Compare(by="size"))


def test_an_image_that_cannot_be_read_fails_its_pairs_alone(store, faulty, tmp_path):
    store.candidates("own").append([candidate_row(Candidate("x", "r0", 9, 9, image=b"no image"))])
    found = run_compare(store, recipe_of(store, faulty(brighter), tmp_path, most=100), "judge")
    assert (found["compared"], found["failed"]) == (30, 5)
    frame = store.comparisons("judge").frame()
    bad = frame[(frame.id_a == "x") | (frame.id_b == "x")]
    assert len(bad) == 5 and bad.outcome.isna().all() and bad.error.str.contains("could not be decoded").all()


def test_another_question_is_another_table(store, faulty, tmp_path):
    server = faulty(brighter)
    run_compare(store, recipe_of(store, server, tmp_path), "judge")
    with pytest.raises(Exception, match="aspect: stored .., requested .colour."):
        run_compare(store, recipe_of(store, server, tmp_path, aspect="colour"), "judge")
    with pytest.raises(UsageError, match="jpeg scores single images"):
        run_compare(store, Recipe(run=str(store.folder), compare={"judge": Compare("jpeg")}), "judge")


def test_a_judge_that_is_loaded_here(store, vlm):
    options = {"model": str(vlm), "min_mass": 0.0}
    recipe = Recipe(run=str(store.folder), compare={"judge": Compare(options=options, batch_size=3, most=2)})
    found = run_compare(store, recipe, "judge")
    assert found["compared"] == 6 and store.comparisons("judge").spec()["judge"] == vlm.name


def test_from_the_command_line(store, faulty, tmp_path, cli):
    server = faulty(brighter)
    flags = ["--model", "j", "--server", server.url, "--cache", tmp_path / "c.sqlite", "--most", 2]
    code, out, _ = cli("compare", store.folder, *flags, "--dry-run", "--json", "--price-in", 2, "--price-out", 10)
    (row,) = json.loads(out)
    assert code == 0 and not server.asked and row["to do"] == 6 and row["calls (est.)"] == 12
    assert row["cost (est., most)"] == pytest.approx((row["tokens in (est.)"] * 2 + 12 * 10) / 1e6, abs=1e-4)
    code, out, err = cli("compare", store.folder, *flags)
    assert code == 0 and "flip_rate" in out and "first_rate" in out and "6" in out, err
    code, out, err = cli("compare", store.folder)  # its recipe is kept
    assert code == 0, err
    code, out, _ = cli("compare", "--help")
    assert code == 0 and "--most" in out and "options of mllm" in out and "extremes" in out


def test_the_estimate_of_a_scoring_server(store, tmp_path, cli):
    flags = ["--use", "mllm", "--model", "j", "--server", "http://127.0.0.1:1/v1", "--aspects", "[colour, cut]"]
    code, out, err = cli("score", store.folder, *flags, "--dry-run", "--json")
    (row,) = json.loads(out)
    assert code == 0, err
    assert row["calls (est.)"] == 30 and row["tokens out (est., most)"] == 30 and "price_in" in row["cost (est., most)"]
    code, out, _ = cli("score", store.folder, *flags, "--price_in", 1, "--price_out", 1, "--dry-run", "--json")
    (row,) = json.loads(out)
    assert row["cost (est., most)"] == pytest.approx((row["tokens in (est.)"] + 30) / 1e6, abs=1e-4)
    local = Recipe(run=str(store.folder), score={"q": Score("mllm", {"model": "x"})})
    from prefkit.cli.dry_run import plan

    assert "calls (est.)" not in plan(store, local, {"score": None}, [])[0][0]


JUDGE = """
from prefkit.score.judge.compare import Verdicts
from prefkit.types import Comparison, Score, ScorerSpec
class J:
    requires, scope = frozenset({"image"}), "absolute"
    def __init__(self, options): pass
    def spec(self): return ScorerSpec("mine", "1")
    def judge_spec(self): return {"name": "mine"}
    def load(self, device, dtype): pass
    def score(self, batch): return [Score(1.0) for _ in batch]
    def compare(self, pairs, template, aspect):
        rows = [Comparison(a.id, b.id, "a", "mine", 0.5, "both") for a, b in pairs]
        BODY
        return Verdicts(rows, [], None, None)
"""


def judged(store, tmp_path, body):
    (tmp_path / "j.py").write_text(JUDGE.replace("BODY", body))
    return run_compare(store, Recipe(compare={"j": Compare(use=f"{tmp_path}/j.py:J", batch_size=4)}), "j")


@pytest.mark.parametrize(
    "body, said",
    [
        ("return None", "returned None"),
        ("return rows", "returned a list"),
        ("return Verdicts(iter(rows), [], None, None)", "with rows and shown"),
        ("rows = ['a'] * len(pairs)", "must be a Comparison"),
        ("rows = rows[1:]", "gave 3 verdicts for 4 pairs"),
        ("rows = rows[::-1]", "must list the pairs in the sequence given"),
        ("rows[0] = Comparison(rows[0].id_b, rows[0].id_a, 'a', 'm', None, 'both')", "in the sequence given"),
        ("rows[0] = Comparison(rows[0].id_a, rows[0].id_b, 'left', 'm', None, 'both')", "gave outcome 'left'"),
        ("rows[0] = Comparison(rows[0].id_a, rows[0].id_b, 'a', 'm', 1.5, 'both')", "probability 1.5"),
        ("rows[0] = Comparison(rows[0].id_a, rows[0].id_b, 'a', 'm', float('nan'), 'both')", "probability nan"),
        ("return Verdicts(rows, [Comparison('x', 'y', 'a', 'm', None, 'ab')], None, None)", r"\(x, y\)"),
        ("raise SystemExit(0)", "tried to end the program: SystemExit: 0"),
    ],
)
def test_verdicts_of_a_judge_are_checked(store, tmp_path, body, said):
    with pytest.raises(PluginError, match=said):
        judged(store, tmp_path, body)
    assert not store.comparisons("j").parts()


def test_a_judge_may_paint_on_the_pictures_that_it_compares(store, tmp_path):
    """Each picture is decoded once for all of its pairs."""
    body = (
        "seen = [(p[0].pil().getpixel((0, 0))[0], p[1].pil().getpixel((0, 0))[0]) for p in pairs]\n"
        "        [c.pil().paste((255, 255, 255), (0, 0, 8, 8)) for p in pairs for c in p]\n"
        "        rows = [Comparison(a.id, b.id, 'b' if y > x else 'a', 'mine', None, 'both') for (a, b), (x, y) in zip(pairs, seen)]"
    )
    assert judged(store, tmp_path, body)["compared"] == REQUESTS * 4
    for row in store.comparisons("j").frame(["id", "id_a", "id_b", "outcome"]).itertuples():
        better = row.id_b if int(row.id_b[1:]) > int(row.id_a[1:]) else row.id_a
        assert (row.id_a if row.outcome == "a" else row.id_b) == better


def test_what_another_command_asked_until_it_freed_the_lock_is_kept(store, faulty, tmp_path, monkeypatch):
    server = faulty(brighter)
    recipe, other = (recipe_of(store, server, tmp_path, template=t) for t in ("Which is {prompt}?", "Which is larger?"))
    lock, racing = Store.lock, []

    def late(self, what, seconds=0):
        if what == "comparisons/judge" and racing:
            run_compare(self, racing.pop(), "judge")
        return lock(self, what, seconds)

    monkeypatch.setattr(Store, "lock", late)
    racing.append(other)
    with pytest.raises(FingerprintError, match="other settings"):
        run_compare(store, recipe, "judge")
    assert store.comparisons("judge").ids()
    shutil.rmtree(store.comparisons("judge").folder)
    racing.append(recipe)
    counts = run_compare(store, recipe, "judge")
    assert counts["compared"] == 0 and counts["present"] == counts["wanted"] > 0
