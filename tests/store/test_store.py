from __future__ import annotations

import json
import subprocess
import sys

import pytest

from prefkit.errors import FingerprintError, StoreError, UsageError
from prefkit.store import Store
from prefkit.store.decisions import append_decisions
from prefkit.store.files import write_whole
from prefkit.store.table import check_fingerprint
from prefkit.types import Request


def rows(*ids):
    return [{"id": i, "value": float(n), "aspects": None, "text": None, "error": None} for n, i in enumerate(ids)]


def test_later_parts_win(tmp_path):
    table = Store.create(tmp_path).scores("a")
    table.append(rows("x", "y"))
    table.append([{**rows("x")[0], "value": 9.0}])
    frame = table.frame().set_index("id")
    assert frame.value.to_dict() == {"x": 9.0, "y": 1.0}


def test_a_damaged_part_is_named_set_aside_and_counts_as_missing(tmp_path, capsys):
    table = Store.create(tmp_path).scores("a")
    table.append(rows("x"))
    first = table.parts()[0]
    table.append(rows("y"))
    first.write_bytes(first.read_bytes()[:-20])
    assert table.ids() == {"y"}
    assert first.name in capsys.readouterr().err
    assert not first.exists() and first.with_suffix(".parquet.damaged").exists()
    assert table.ids() == {"y"}


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    def half(path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    (tmp_path / "t.json").write_text("old")
    with pytest.raises(StoreError, match="No space left on device"):
        write_whole(tmp_path / "t.json", half)
    assert [p.name for p in tmp_path.iterdir()] == ["t.json"] and (tmp_path / "t.json").read_text() == "old"


def test_fingerprint_names_the_keys_that_differ(tmp_path):
    path = tmp_path / "spec.json"
    check_fingerprint(path, {"a": 1, "b": [1, 2]}, "Do this.")
    check_fingerprint(path, {"a": 1, "b": (1, 2)}, "Do this.")
    with pytest.raises(FingerprintError, match=r"\(b: stored \[1, 2\], requested 3\). Do this."):
        check_fingerprint(path, {"a": 1, "b": 3}, "Do this.")
    long = {"first": "x" * 200, "rate": 1, "inner": {"beta": 2}}
    check_fingerprint(tmp_path / "long.json", {"train": long}, "Do this.")
    wanted = {"train": long | {"rate": 5, "inner": {"beta": 2, "more": None}}}
    with pytest.raises(FingerprintError) as caught:
        check_fingerprint(tmp_path / "long.json", wanted, "Do this.")
    assert "(train.inner.more: stored null, requested null; train.rate: stored 1, requested 5)" in str(caught.value)


def test_a_newer_schema_is_refused(tmp_path):
    Store.create(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"schema": 99}))
    with pytest.raises(StoreError, match="newer prefkit"):
        Store(tmp_path)


def test_requests_survive_the_way_to_disk(tmp_path):
    store = Store.create(tmp_path)
    nasty = [Request("a", 'he said "<b>hi</b>"\n🎩', "test", {"user": {"id": 3}, "list": [1, "é"]})]
    store.write_requests(nasty)
    assert store.requests() == nasty


@pytest.mark.parametrize("name", ["../x", "", "a/b", ".hidden", "a b"])
def test_names_that_would_leave_the_folder_are_refused(tmp_path, name):
    with pytest.raises(UsageError, match="cannot be a name"):
        Store(tmp_path).scores(name)


HOLD = """
import sys, time
from prefkit.store import Store
with Store(sys.argv[1]).lock("scores/a"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_told_and_a_killed_one_frees_the_lock(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with pytest.raises(StoreError, match="another process is working on scores/a"), Store(tmp_path).lock("scores/a"):
        pass
    process.kill()
    process.communicate()
    with Store(tmp_path).lock("scores/a"):
        assert True


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-8", "id,verdict,reason,by\na,keep,,me\n"),
        ("utf-8-sig", "id;verdict;reason;by\r\na;keep;;me"),  # as a spreadsheet saves it, no end of line
        ("utf-16", "verdict\tid\tby\treason\nkeep\ta\tme\t\n"),
        ("utf-8", "id,verdict\na,keep\n"),
    ],
)
def test_decisions_are_added_in_the_form_that_the_file_has(tmp_path, encoding, text):
    store, path = Store.create(tmp_path), tmp_path / "decisions.csv"
    path.write_bytes(text.encode(encoding))
    before = path.read_bytes()
    append_decisions(path, [{"id": "00001", "verdict": "remove", "reason": 'a; b, "c"\té', "by": "you"}])
    found = store.decisions().to_dict("records")
    assert [(row["id"], row["verdict"]) for row in found] == [("a", "keep"), ("00001", "remove")]
    assert path.read_bytes().startswith(before)
    assert found[1]["reason"] == ('a; b, "c"\té' if "reason" in text else "")


def test_ids_of_decisions_stay_text_and_rows_may_end_early(tmp_path):
    text = "id,verdict,reason,by\n007,keep\n1e5,reject,NA,null\nNA,keep,,\n\n007,remove,,"
    (tmp_path / "decisions.csv").write_text(text)
    found = Store.create(tmp_path).decisions().set_index("id")
    assert found.verdict.to_dict() == {"1e5": "reject", "NA": "keep", "007": "remove"}
    assert found.loc["1e5"].tolist() == ["reject", "NA", "null"]


def test_a_new_file_of_decisions(tmp_path):
    append_decisions(tmp_path / "decisions.csv", [{"id": "a", "verdict": "keep"}])
    assert (tmp_path / "decisions.csv").read_text() == "id,verdict,reason,by\na,keep,,\n"


def test_decisions_are_checked(tmp_path):
    store = Store.create(tmp_path)
    assert store.decisions().empty
    (tmp_path / "decisions.csv").write_text("id,verdict,reason,by\na,reject,blurred,me\na,keep,,me\n")
    assert store.decisions().verdict.tolist() == ["keep"]
    (tmp_path / "decisions.csv").write_text("id,verdict\na,maybe\n")
    with pytest.raises(StoreError, match=r"decisions.csv row 1 \(line 2\): verdict 'maybe'"):
        store.decisions()
    (tmp_path / "decisions.csv").write_text("name\na\n")
    with pytest.raises(StoreError, match="column id or verdict is missing"):
        store.decisions()
