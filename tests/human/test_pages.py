"""Which pairs a voting page asks about, and what it gives away."""

from __future__ import annotations

import json
import re
import weakref
from collections import Counter
from pathlib import Path

import pytest
from report_synthetic import NASTY, candidates, full_run, requests, store_rows

from prefkit.errors import UsageError
from prefkit.human.page import VoteSettings, write_vote_page
from prefkit.human.pairs import _drawn, find_set, of_eval, within_requests
from prefkit.report.contact import add_decisions
from prefkit.store import Store
from prefkit.store.table import candidate_row
from prefkit.types import Candidate, Request


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    store = Store.create(tmp_path_factory.mktemp("runs") / "pages")
    members = requests(8, "train", NASTY)
    store.write_requests(members)
    store_rows(store, "own", candidates(members, 4, "own", failed=2))
    return store


def data_of(page: Path) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.S)
    assert found is not None
    return json.loads(found[1])


def test_pairs_are_of_one_request_sound_and_spread_over_requests(run):
    owner = dict(run.candidates("own").frame(["id", "request_id"]).itertuples(index=False))
    failed = set(run.candidates("own").frame(["id", "error"]).dropna().id)
    pairs = within_requests(run, 16, 0)
    assert len(pairs) == 16 and len({frozenset((p.a, p.b)) for p in pairs}) == 16
    assert all(owner[p.a] == owner[p.b] == p.request_id and p.a != p.b for p in pairs)
    assert not failed & {name for p in pairs for name in (p.a, p.b)}
    # two of each; the request with two failures has one pair in all
    assert sorted(Counter(p.request_id for p in pairs).values()) == [1, 2, 2, 2, 2, 2, 2, 3]
    assert within_requests(run, 16, 0) == pairs != within_requests(run, 16, 1)
    assert within_requests(run, 5, 0) == pairs[:5]
    assert len(within_requests(run, 10**6, 0)) == 7 * 6 + 1


def test_a_request_of_very_many_candidates(tmp_path):
    """An imported folder under one prompt: 20,000 candidates make 200 million pairs, of which a few are drawn."""
    store = Store.create(tmp_path / "many")
    members = [Request("all", "one prompt"), Request("few", "another")]
    store.write_requests(members)
    rows = [Candidate(f"c{i:05d}", "all" if i > 2 else "few", i, i) for i in range(20_000)]
    store.candidates("own").append([candidate_row(c) for c in rows])
    pairs = within_requests(store, 50, 0)
    drawn = {frozenset((p.a, p.b)) for p in pairs if p.request_id == "all"}
    assert len(pairs) == 50 and len(drawn) == 47 and all(len(pair) == 2 and min(pair) > "c00002" for pair in drawn)
    assert pairs == within_requests(store, 50, 0) != within_requests(store, 50, 1)
    assert 12 < sum(p.a < p.b for p in pairs) < 38
    every = _drawn("all", [f"{i}" for i in range(30)], 10**6, 0)
    assert len({frozenset((p.a, p.b)) for p in every}) == len(every) == 30 * 29 // 2


def test_no_more_than_one_picture_is_held_decoded(run, monkeypatch):
    seen, most, inner = [], [], Candidate.pil

    def pil(self):
        image = inner(self)
        seen.append(weakref.ref(image))
        most.append(sum(one() is not None for one in seen))
        return image

    monkeypatch.setattr(Candidate, "pil", pil)
    write_vote_page(run, VoteSettings(n=12))
    assert len(most) > 8 and max(most) <= 2


def test_rejected_and_removed_candidates_are_not_shown(run):
    shown = within_requests(run, 1000, 0)[0].a
    path = run.folder / "decisions.csv"
    path.write_text(f"id,verdict,reason,by\n{shown},reject,,\n")
    try:
        assert shown not in {name for p in within_requests(run, 1000, 0) for name in (p.a, p.b)}
    finally:
        path.unlink()


def test_base_and_tuned_meet_at_equal_seeds_on_either_side(full):
    pairs = of_eval(full, "held", "held_out", ("base", "dpo"), 1000, 0)
    place = {}
    for model in ("base", "dpo"):
        frame = (
            Store(full.eval("held") / "held_out" / model).candidates("own").frame(["id", "request_id", "index", "seed"])
        )
        place |= {row.id: (model, row.request_id, row.index, row.seed) for row in frame.itertuples(index=False)}
    for pair in pairs:
        assert place[pair.a][0] == pair.model_a != pair.model_b == place[pair.b][0]
        assert place[pair.a][1:] == place[pair.b][1:]
    assert 4 < sum(pair.model_a == "base" for pair in pairs) < 28  # of 32: neither side is the base's


def test_nothing_in_the_page_tells_the_models_apart(full):
    made = write_vote_page(full, VoteSettings(models=("base", "dpo"), n=20))
    page = Path(made["path"]).read_text()
    data = data_of(Path(made["path"]))
    key = json.loads(Path(made["key"]).read_text())
    assert key["models"] == ["base", "dpo"] and (key["eval"], key["set"]) == ("held", "held_out")
    for item in key["pairs"]:
        assert item["a"] not in page and item["b"] not in page and item["request_id"] not in page
    assert not re.search(
        r"\bdpo\b|held_out|own\b", page.replace("</style>", "").split('id="data"')[1].split('"images"')[0]
    )
    assert set(data) == {"version", "page", "run", "salt", "pairs", "images"}
    assert all(set(pair) <= {"pair", "prompt", "a", "b", "again"} for pair in data["pairs"])
    # the place of an image in the file does not go with its model
    model = {}
    for item, shown in zip(key["pairs"], data["pairs"]):
        model |= {shown["a"]: item["model_a"], shown["b"]: item["model_b"]}
    order = [model[i] for i in sorted(model)]
    assert 3 < sum(order[i] != order[i + 1] for i in range(len(order) - 1)) < len(order) - 3


def test_one_question_is_one_page_and_text_is_no_program(run):
    ask = VoteSettings(n=20, question='Which is "better" </script><b>')
    first, second = write_vote_page(run, ask), write_vote_page(run, ask)
    assert first == second and write_vote_page(run, VoteSettings(n=19))["page"] != first["page"]
    text = Path(first["path"]).read_text()
    assert text.count("<script") == text.count("</script>") == 2 and "<b>" not in text and "onerror=alert" in text
    assert "alert(" not in re.sub(r'id="data">.*?</script>', "", text, flags=re.S)
    assert "default-src 'none'; img-src data:;" in text and "unsafe-inline'; script-src 'sha256-" in text
    assert {p["prompt"] for p in data_of(Path(first["path"]))["pairs"]} >= {NASTY[0], NASTY[6]}


def test_repeats_and_bounds(run):
    data = data_of(Path(write_vote_page(run, VoteSettings(n=20))["path"]))
    assert sum("again" in pair for pair in data["pairs"]) == 2 and len(data["pairs"]) == 22
    small = write_vote_page(run, VoteSettings(n=20, side=16))
    from base64 import b64decode
    from io import BytesIO

    from PIL import Image

    for source in data_of(Path(small["path"]))["images"]:
        assert max(Image.open(BytesIO(b64decode(source.split(",")[1]))).size) == 16


def test_a_damaged_image_leaves_its_pairs_out(tmp_path, capsys):
    from dataclasses import replace

    store = Store.create(tmp_path / "damaged")
    members = requests(1)
    store.write_requests(members)
    made = candidates(members, 3, "own")
    store_rows(store, "own", [replace(made[0], image=b"no image"), *made[1:]])
    found = write_vote_page(store, VoteSettings(n=9, repeats=0))
    assert found["pairs"] == 1 and made[0].id in capsys.readouterr().err


def test_what_cannot_be_asked(full, tmp_path):
    with pytest.raises(UsageError, match="no request"):
        write_vote_page(Store.create(tmp_path / "empty"), VoteSettings())
    with pytest.raises(UsageError, match="--eval held --set held_out|Its models|no evaluation"):
        find_set(full, ("base", "nobody"), None, None)
    with pytest.raises(UsageError, match="must name two models of one evaluation"):
        find_set(full, ("base", "base"), None, None)
    with pytest.raises(UsageError, match="add --models"):
        write_vote_page(full, VoteSettings(eval="held"))


def test_the_command_line(tmp_path, cli):
    full = full_run(tmp_path / "line")
    (full.folder / "recipe.yaml").unlink()
    code, out, err = cli("report", full.folder, "--vote", "--models", "base,dpo", "--n", "6", "--json")
    found = json.loads(out)
    assert (
        code == 0 and found["pairs"] == 6 and found["repeats"] == 1 and Path(found["path"]).exists() and "import" in err
    )
    assert cli("report", full.folder, "--models", "base,dpo")[0] == 2
    assert cli("report", full.folder, "--vote", "--models", "base")[0] == 2
    assert cli("report", full.folder, "--vote", "--n", "0")[0] == 2


def test_decisions_are_added_whole_or_not_at_all(run, tmp_path, cli):
    ids = sorted(run.candidates("own").ids())
    good, bad, other = tmp_path / "good.csv", tmp_path / "bad.csv", tmp_path / "other.csv"
    good.write_text(f'id,verdict,reason,by\n{ids[0]},reject,"a, ""b""",me\n{ids[1]},keep,,me\n')
    bad.write_text(f"id,verdict,reason,by\n{ids[2]},keep,,me\n{ids[3]},burn,,me\n")
    other.write_text(f"id,verdict,reason,by\n{ids[2]},keep,,me\nelsewhere,keep,,me\n")
    target = run.folder / "decisions.csv"
    target.write_bytes(b"id,verdict,reason,by\nfirst,keep,kept as it is,you")  # no end of line
    try:
        code, _, err = cli("report", run.folder, "--decisions", bad)
        assert code == 1 and "bad.csv row 2 (line 3)" in err
        assert "elsewhere" in cli("report", run.folder, "--decisions", other)[2]
        assert target.read_bytes().endswith(b"you")
        code, out, _ = cli("report", run.folder, "--decisions", good, "--json")
        assert code == 0 and json.loads(out) == {"new": 2, "known": 0}
        assert add_decisions(run, good) == {"new": 0, "known": 2}
        assert target.read_text().startswith("id,verdict,reason,by\nfirst,keep,kept as it is,you\n")
        assert run.decisions().set_index("id").reason[ids[0]] == 'a, "b"' and len(run.decisions()) == 3
        target.write_text("id,verdict\n")
        assert cli("report", run.folder, "--decisions", good)[0] == 2
    finally:
        target.unlink()
