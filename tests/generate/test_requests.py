from __future__ import annotations

import json

import pandas as pd
import pytest

from prefkit.config import Requests
from prefkit.errors import UsageError
from prefkit.generate.requests import read_requests, split_of

NASTY = ['he said "x"', "<script>alert(1)</script>", "émoji 🎩👗", "x" * 10_000, "tab\tinside"]


def test_every_format_gives_the_same_requests(tmp_path):
    prompts = ["a red hat", "a blue boot"]
    (tmp_path / "p.txt").write_text("a red hat\n\n  a blue boot  \n")
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps({"prompt": p}) for p in prompts))
    pd.DataFrame({"prompt": prompts}).to_csv(tmp_path / "p.csv", index=False)
    pd.DataFrame({"prompt": prompts}).to_parquet(tmp_path / "p.parquet")
    found = [read_requests(Requests(str(tmp_path / f"p.{kind}"))) for kind in ("txt", "jsonl", "csv", "parquet")]
    assert [r.prompt for r in found[0]] == prompts and all(f == found[0] for f in found)


def test_further_columns_become_extra_and_change_the_id(tmp_path):
    lines = [{"prompt": "a", "user": 1}, {"prompt": "a", "user": 2}, {"prompt": "a", "user": 2}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = read_requests(Requests(str(tmp_path / "p.jsonl")))
    assert [dict(r.extra) for r in found] == [{"user": 1}, {"user": 2}]
    assert len({r.request_id for r in found}) == 2 and len({r.split for r in found}) == 1


def test_nasty_prompts_survive(tmp_path):
    lines = [*NASTY, "two\nlines"]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps({"prompt": p}) for p in lines))
    assert [r.prompt for r in read_requests(Requests(str(tmp_path / "p.jsonl")))] == lines


def test_splits():
    assert split_of("A  Red hat", 0.5) == split_of("a red HAT", 0.5)
    share = sum(split_of(f"prompt {i}", 0.1) == "test" for i in range(5000)) / 5000
    assert abs(share - 0.1) < 0.02
    assert split_of("x", 0.0) == "train" and split_of("x", 1.0) == "test"


def test_a_split_column_decides(tmp_path):
    pd.DataFrame({"prompt": ["a", "b"], "part": ["train", "test"]}).to_csv(tmp_path / "p.csv", index=False)
    found = read_requests(Requests(str(tmp_path / "p.csv"), split_column="part"))
    assert [(r.split, dict(r.extra)) for r in found] == [("train", {}), ("test", {})]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.txt", "", "contains no prompt"),
        ("p.txt", "   \n\t\n", "contains no prompt"),
        ("p.jsonl", "{not json", r"p.jsonl row 1 \(line 1\): not valid JSON"),
        ("p.jsonl", "[1]", r"p.jsonl row 1 \(line 1\): .* is not an object"),
        ("p.jsonl", '{"text": "a"}', "no column 'prompt'; its columns are text. Set requests.prompt_column"),
        ("p.csv", "text\na\n", "no column 'prompt'"),
        ("p.parquet", "not parquet", "cannot be read as Parquet"),
        ("p.docx", "x", r"use one of \.csv"),
        (
            "p.jsonl",
            '{"prompt": "a", "request_id": "1"}\n{"prompt": "b", "request_id": "1"}',
            "belongs to another request",
        ),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=message):
        read_requests(Requests(str(tmp_path / name)))


def test_a_missing_file_and_wrong_bytes(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        read_requests(Requests(str(tmp_path / "none.txt")))
    (tmp_path / "p.txt").write_bytes("a\ncaf\xe9\n".encode("cp1252"))
    with pytest.raises(UsageError, match=r"p.txt line 2 is not UTF-8 text \(byte 0xe9 at offset 5 "):
        read_requests(Requests(str(tmp_path / "p.txt")))


def test_blank_and_duplicate_prompts_are_counted(tmp_path, capsys):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": " "}\n{"prompt": "a"}\n')
    assert len(read_requests(Requests(str(tmp_path / "p.jsonl")))) == 1
    err = capsys.readouterr().err
    assert "1 empty prompt left out" in err and "1 duplicate request left out" in err
