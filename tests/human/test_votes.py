"""What voting pages save, read back: the right candidates, and every kind of wrong file refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from prefkit.errors import FingerprintError, UsageError
from prefkit.human.votes import checksum, import_votes, vote_files, votes
from prefkit.store import Store
from prefkit.store.files import write_json

PAGE, WHO = "0123456789", "person-0123456789ab"


@pytest.fixture
def run(tmp_path):
    store = Store.create(tmp_path / "run")
    pairs = [{"pair": f"p{i}", "request_id": f"r{i}", "a": f"a{i}", "b": f"b{i}"} for i in range(4)]
    pairs.append({**pairs[0], "pair": "p9", "again": "p0"})
    write_json(store.folder / "votes" / f"{PAGE}.json", {"page": PAGE, "pairs": pairs})
    return store


def vote(pair: str, order: str, choice: str, time: int = 1_700_000_000_123) -> dict:
    return {"pair": pair, "order": order, "choice": choice, "time": time}


SAID = [
    vote("p0", "ab", "left"),
    vote("p1", "ba", "left"),
    vote("p2", "ba", "right"),
    vote("p3", "ab", "skip"),
    vote("p9", "ba", "tie"),
]


def save(path: Path, said: list[dict], **other: object) -> Path:
    body = {
        "prefkit_votes": 1,
        "run": "x",
        "page": PAGE,
        "annotator": WHO,
        "votes": said,
        "check": checksum(PAGE, WHO, said),
    }
    path.write_text(json.dumps(body | other, indent=1))
    return path


def test_a_file_becomes_comparisons_once(run, tmp_path):
    file = save(tmp_path / "votes.json", SAID)
    found = import_votes(run, file)
    assert found == {"files": 1, "annotators": 1, "votes": 4, "skipped": 1, "comparisons": 4}
    rows = {(r.id_a, r.id_b, r.order): r for r in run.comparisons("votes").frame().itertuples()}
    assert {key: row.outcome for key, row in rows.items()} == {
        ("a0", "b0", "ab"): "a",
        ("a1", "b1", "ba"): "b",  # b stood on the left
        ("a2", "b2", "ba"): "a",
        ("a0", "b0", "ba"): "tie",
    }
    assert rows["a0", "b0", "ab"].time == 1_700_000_000.123 and {row.judge for row in rows.values()} == {WHO}
    assert import_votes(run, file)["comparisons"] == 0 and len(run.comparisons("votes").ids()) == 4
    assert len(run.comparisons("votes").parts()) == 1
    again = list(votes(run.folder / "votes" / f"{PAGE}.{WHO}.json"))
    assert [c.outcome for c in again] == ["a", "b", "a", "tie"]


def test_a_longer_file_adds_what_is_new_and_a_shorter_one_nothing(run, tmp_path):
    assert import_votes(run, save(tmp_path / "1.json", SAID[:2]))["comparisons"] == 2
    assert import_votes(run, save(tmp_path / "2.json", SAID))["comparisons"] == 2
    assert import_votes(run, save(tmp_path / "1.json", SAID[:2]))["comparisons"] == 0
    assert len(json.loads((run.folder / "votes" / f"{PAGE}.{WHO}.json").read_text())["votes"]) == 5


def test_two_files_of_one_annotator_must_say_the_same(run, tmp_path):
    """Saved twice, with a vote taken back in between: nothing is written, whichever is read first."""
    (tmp_path / "in").mkdir()
    save(tmp_path / "in" / "1.json", SAID[:2])
    save(tmp_path / "in" / "2.json", [vote("p0", "ab", "right"), *SAID[1:]])
    with pytest.raises(UsageError, match=r"2\.json vote 1: 'right' on pair p0, but .*1\.json .* has 'left'"):
        import_votes(run, tmp_path / "in")
    assert not run.names("comparisons")
    save(tmp_path / "in" / "1.json", SAID[1:])
    assert import_votes(run, tmp_path / "in")["comparisons"] == 4


def test_a_folder_of_several_annotators(run, tmp_path):
    other = "person-ffffffffffff"
    (tmp_path / "in").mkdir()
    save(tmp_path / "in" / "a.json", SAID)
    save(tmp_path / "in" / "b.json", SAID, annotator=other, check=checksum(PAGE, other, SAID))
    (tmp_path / "in" / "c.json").write_text("{}")
    assert [p.name for p in vote_files(tmp_path / "in")] == ["a.json", "b.json"]
    found = import_votes(run, tmp_path / "in", "people")
    assert found["annotators"] == 2 and found["comparisons"] == 8 and run.names("comparisons") == ["people"]


@pytest.mark.parametrize(
    "said, text",
    [
        ([*SAID, SAID[0]], "vote 6: pair p0 occurs twice"),
        ([vote("p7", "ab", "left")], "vote 1: unknown pair 'p7'"),
        ([SAID[0], vote("p1", "up", "left")], "vote 2: invalid order 'up'"),
        ([vote("p1", "ab", "both")], "choice 'both'"),
        ([vote("p1", "ab", "left", -5)], "time -5"),
        ([{"pair": "p1"}], "vote 1: a vote must have"),
        ([vote("p0", "ab", "left"), vote("p9", "ab", "left")], "vote 2: a repeated pair"),
    ],
)
def test_entries_that_no_page_saves(run, tmp_path, said, text):
    try:
        check = checksum(PAGE, WHO, said)
    except KeyError:
        check = ""
    file = save(tmp_path / "bad.json", SAID, votes=said, check=check)
    with pytest.raises(UsageError, match=f"bad.json.*{re.escape(text)}"):
        import_votes(run, file)
    assert not run.names("comparisons")


def test_edited_cut_foreign_and_other_files(run, tmp_path):
    file = save(tmp_path / "votes.json", SAID)
    (tmp_path / "edited.json").write_text(file.read_text().replace('"left"', '"right"', 1))
    with pytest.raises(UsageError, match="edited.json: its 5 votes .* edited or cut short"):
        import_votes(run, tmp_path / "edited.json")
    fewer = json.loads(file.read_text())
    del fewer["votes"][2]
    (tmp_path / "fewer.json").write_text(json.dumps(fewer))
    with pytest.raises(UsageError, match="fewer.json: its 4 votes"):
        import_votes(run, tmp_path / "fewer.json")
    (tmp_path / "cut.json").write_text(file.read_text()[:300])
    with pytest.raises(UsageError, match="cut.json: not the JSON"):
        import_votes(run, tmp_path / "cut.json")
    for page in ("9876543210", "../../evil", 7):
        save(tmp_path / "foreign.json", SAID, page=page)
        with pytest.raises(UsageError, match="foreign.json: its page .* was not made from"):
            import_votes(run, tmp_path / "foreign.json")
    save(tmp_path / "newer.json", SAID, prefkit_votes=2)
    with pytest.raises(UsageError, match="newer.json: the file has version 2, but"):
        import_votes(run, tmp_path / "newer.json")
    save(tmp_path / "named.json", SAID, annotator="Ann")
    with pytest.raises(UsageError, match="named.json: the file has no valid annotator"):
        import_votes(run, tmp_path / "named.json")
    (tmp_path / "plain.json").write_text("[]")
    with pytest.raises(UsageError, match="holds no file of votes"):
        import_votes(run, tmp_path / "plain.json")
    assert not run.names("comparisons")


def test_one_bad_file_in_a_folder_and_nothing_is_written(run, tmp_path):
    (tmp_path / "in").mkdir()
    save(tmp_path / "in" / "a.json", SAID)
    save(tmp_path / "in" / "b.json", SAID, check="0")
    with pytest.raises(UsageError, match=r"b\.json"):
        import_votes(run, tmp_path / "in")
    assert not run.names("comparisons")


def test_an_annotator_who_says_otherwise_later_is_asked_about(run, tmp_path):
    import_votes(run, save(tmp_path / "1.json", SAID))
    changed = [vote("p0", "ab", "right"), *SAID[1:]]
    with pytest.raises(UsageError, match=r"2\.json vote 1: 'right' on pair p0.*has 'left'\. To replace it"):
        import_votes(run, save(tmp_path / "2.json", changed))


def test_votes_do_not_mix_with_other_comparisons(run, tmp_path):
    run.comparisons("judge").claim({"scorer": "mllm"}, "", empty=True)
    with pytest.raises(FingerprintError, match="another --name"):
        import_votes(run, save(tmp_path / "votes.json", SAID), "judge")
