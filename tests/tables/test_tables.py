"""The reader of users' tables: what every kind of file gives, and what is refused with its row named."""

from __future__ import annotations

import csv
import datetime
import decimal
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefkit.errors import UsageError
from prefkit.paths import find_file
from prefkit.tables import id_text, read, user_path
from prefkit.tables.values import plain

TEXTS = [
    "00001",
    "007",
    "1e5",
    "NA",
    "null",
    "None",
    "nan",
    "True",
    "1.0",
    "-",
    "a, b; c\td",
    'he said "x"',
    "two\nlines",
]
COMPOSED, APART = "caf\u00e9", "cafe\u0301"


def values(path: Path, data: str | bytes | None = None, **how) -> list[dict]:
    if data is not None:
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return [row.values for row in read(path, **how)]


def refused(path: Path, data: str | bytes) -> str:
    with pytest.raises(UsageError) as error:
        values(path, data)
    return str(error.value)


def write(folder: Path, kind: str, rows: list[dict]) -> Path:
    """The rows as a file of this kind, by libraries other than the reader."""
    path = folder / f"t.{kind}"
    if kind.lower() in ("csv", "tsv", "txt"):
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if kind.lower() == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif kind.lower() == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind.lower() == "json":
        path.write_text(json.dumps(rows))
    else:
        pd.DataFrame(rows).to_parquet(path)
    return path


KINDS = ("csv", "tsv", "txt", "jsonl", "json", "parquet", "CSV", "Jsonl", "PARQUET")


@pytest.mark.parametrize("kind", KINDS)
def test_text_stays_as_it_is_in_every_kind_of_file(tmp_path, kind):
    rows = [{"prompt": text, "user": other} for text, other in zip(TEXTS, reversed(TEXTS))]
    assert values(write(tmp_path, kind, rows)) == rows


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_value_is_none_in_every_kind_of_file(tmp_path, kind):
    assert values(write(tmp_path, kind, [{"a": "x", "b": None}, {"a": None, "b": "y"}])) == [
        {"a": "x", "b": None},
        {"a": None, "b": "y"},
    ]


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_lists_and_objects_stay_what_they_are(tmp_path, kind):
    rows = [
        {"tags": [], "outfit": [{"image": "a.png"}], "box": {"left": 1, "names": ["x"]}, "on": True},
        {"tags": ["red"], "outfit": [{"image": "b.png"}, {"image": "c.png"}], "box": {"left": 2}, "on": False},
        {"tags": ["a", "b"], "outfit": [], "box": {"left": 3, "names": []}, "on": True},
    ]
    found = values(write(tmp_path, kind, rows))
    assert found == rows
    assert [type(found[1][name]) for name in rows[0]] == [list, list, dict, bool] and type(
        found[0]["box"]["left"]
    ) is int


def test_what_parquet_alone_can_hold(tmp_path):
    table = pa.table(
        {
            "day": [datetime.date(2026, 1, 31), None],
            "time": pa.array([datetime.datetime(2026, 1, 31, 12, 30), None], pa.timestamp("ns")),
            "price": [decimal.Decimal("1.50"), None],
            "whole": [decimal.Decimal("7"), None],
            "gap": [float("nan"), 2.0],
            "kind": pa.array(["a", "b"]).dictionary_encode(),
            "data": [b"\x00\xff", None],
            "vector": [[1.5, float("nan")], None],
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    first, second = values(tmp_path / "t.parquet")
    assert first["day"] == "2026-01-31" and first["time"] == "2026-01-31T12:30:00" and first["price"] == 1.5
    assert (
        first["gap"] is None
        and first["kind"] == "a"
        and first["data"] == b"\x00\xff"
        and first["vector"] == [1.5, None]
    )
    assert [name for name, value in second.items() if value is not None] == ["gap", "kind"]


def test_numpy_and_pandas_objects_become_pythons():
    given = {
        "a": np.array([[1, 2]]),
        "b": np.float64(1.5),
        "c": np.int64(7),
        "d": pd.NaT,
        "e": pd.NA,
        "f": (1, np.bool_(True)),
    }
    found = plain(given)
    assert found == {"a": [[1, 2]], "b": 1.5, "c": 7, "f": [1, True]}
    assert type(found["c"]) is int and type(found["f"][1]) is bool


def test_the_row_numbers_of_pandas_are_no_column(tmp_path):
    frame = pd.DataFrame({"prompt": ["a", "b", "c"]})[1:]
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_csv(tmp_path / "t.csv")
    assert values(tmp_path / "t.parquet") == values(tmp_path / "t.csv") == [{"prompt": "b"}, {"prompt": "c"}]


# -- fields and separators ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("p\na red hat, felt\n", r"row 1 \(line 2\) has 2 fields, but the first line names 1 \(p\)\. Put quotes"),
        ("p,u\na,1\nb, c,2\n", r"row 2 \(line 3\) has 3 fields"),
        ("p,u\na,1\n\n\"x\ny\",2\nb\n", r"row 3 \(line 6\) has 1 field, but the first line names 2"),
        ("p;u\na;1\nb; c;2\n", r"row 2 \(line 3\) has 3 fields.*that contains semicolons, as in \"b; c;2\""),
        ("p,u\na,1,\nb,2\n", r"row 2 \(line 3\) has 2 fields, but the first row has 3"),
        ("p,u\na,1\nb,2,\n", r"row 2 \(line 3\) has 3 fields"),
        ("p,u\na red hat, felt,\nb, silk,\n", r"row 1 \(line 2\) has 3 fields"),  # a cut prompt, no habit of spreadsheets
        ("p,,u\na,x,1\n", r"row 1 \(line 2\): column 2 has a value \('x'\) but no name"),
        ("p,u,p\na,1,b\n", "names the column 'p' twice"),
        ("p, p\na,1\n", "names the column 'p' twice"),
        (f"{COMPOSED},{APART}\na,1\n", "twice"),
        ("p,u\na,1\n\"b,2\nc,3\n", r"row 2 \(line 3\): an opening quote has no closing quote"),
        ('p,u\n"a" red,1\n', r"row 1 \(line 2\): .*Put quotes around the whole text"),
        ("p,u\na\0b,1\n", "line 2 contains a NUL character"),
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("p\n" + "x" * (16 << 20) + "x\n", "a field is longer than 16,777,216 characters"),
    ],
)  # fmt: skip
def test_rows_that_are_not_as_long_as_the_first_line_are_refused(tmp_path, text, message):
    with pytest.raises(UsageError, match=message):
        values(tmp_path / "t.csv", text)


@pytest.mark.parametrize(
    "text", ["p,u\na,1,\nb,2,\n", "p,u,\na,1,\nb,2,\n", "p,u,,\na,1,,\nb,2,,\n", "p,u,,\na,1\nb,2\n"]
)
def test_an_empty_last_field_of_every_row_is_no_column(tmp_path, text):
    assert values(tmp_path / "t.csv", text) == [{"p": "a", "u": "1"}, {"p": "b", "u": "2"}]
    assert values(tmp_path / "t.csv", text.replace(",", ";")) == [{"p": "a", "u": "1"}, {"p": "b", "u": "2"}]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_separators_and_line_ends_are_detected(tmp_path, separator, suffix, end):
    lines = ["\ufeffprompt|style", '"a, b; c\td"|noir', "plain|", "plain, with; others|x"]
    text = end.join(line.replace("|", separator) for line in lines[: 4 if separator == "\t" else 3]) + end
    found = values(tmp_path / f"t.{suffix}", text)
    assert found[:2] == [{"prompt": "a, b; c\td", "style": "noir"}, {"prompt": "plain", "style": None}]


def test_a_separator_that_a_spreadsheet_names(tmp_path):
    assert values(tmp_path / "t.csv", "sep=;\r\np;u\r\na, b;1\r\n") == [{"p": "a, b", "u": "1"}]
    assert "row 1 (line 3) has 3 fields" in refused(tmp_path / "t.csv", "sep=;\np;u\na;b;1\n")


def test_a_single_column_keeps_what_would_be_a_separator_elsewhere(tmp_path):
    assert values(tmp_path / "t.csv", "p\na; b\nc\td\n") == [{"p": "a; b"}, {"p": "c\td"}]


# -- lines and encodings -----------------------------------------------------------------------------------------
ODD = "a\u2028b\u2029c\x85d\x0ce\x0bf\x1cg"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_at_line_feeds_and_carriage_returns_only(tmp_path, end):
    assert values(tmp_path / "t.txt", f"{ODD}{end}{end}x{end}", text="p") == [{"p": ODD}, {"p": ""}, {"p": "x"}]
    assert values(tmp_path / "t.csv", f"p,u{end}{ODD},1{end}") == [{"p": ODD, "u": "1"}]
    line = json.dumps({"p": ODD}, ensure_ascii=False)
    assert values(tmp_path / "t.jsonl", f"{line}{end}{end}{line}") == [{"p": ODD}] * 2


@pytest.mark.parametrize("suffix", ["csv", "txt", "jsonl", "json"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings_with_a_byte_order_mark(tmp_path, suffix, encoding):
    text = {"csv": "p,u\né,1\n", "txt": "é\n", "jsonl": '{"p": "é"}\n', "json": '[{"p": "é"}]'}[suffix]
    assert [row["p"] for row in values(tmp_path / f"t.{suffix}", text.encode(encoding), text="p")] == ["é"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"p,u\r\na,1\r\ncaf\xe9,2\r\n", r"line 3 is not UTF-8 text \(byte 0xe9 at offset 13 of the file\)"),
        (b"p,u\ra,1\rcaf\xe9,2\r", r"line 3 is not UTF-8 text \(byte 0xe9 at offset 11 of the file\)"),
        ("p,u\na,1\n".encode("utf-16-le"), "line 1 contains a NUL character"),
        ("p,u\na,1\n".encode("utf-16") + b"x", "cannot be decoded to its end"),
    ],
)
def test_other_encodings_are_refused_with_line_and_byte(tmp_path, data, message):
    with pytest.raises(UsageError, match=message):
        values(tmp_path / "t.csv", data)


# -- JSON --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"p": ' + "[" * 3000 + "]" * 3000 + "}", "nested"),
        ('{"p": ' + "[" * 200_000 + "]" * 200_000 + "}", "nested too deeply"),
        ('{"p": ' + '{"a": ' * 120 + "1" + "}" * 121, "nested more than 100 levels deep"),
        ('{"p": ' + "9" * 30 + "}", "a whole number of 30 digits is too large"),
        ('{"p": ' + "9" * 5000 + "}", "a whole number is too large"),
        ('{"p": 1e999}', "the number 1e999 is too large"),
        ('{"p": -Infinity}', "-Infinity is not a number"),
        ('{"p": "a", "p": "b"}', "'p' occurs twice"),
        ('{"p": {"a": 1, "a": 2}}', "'a' occurs twice"),
        (json.dumps({COMPOSED: 1, APART: 2}), "two column names differ only in how"),
        ('{"p": "a"', "not valid JSON"),
        ('{"p": "a"} {"p": "b"}', "not valid JSON"),
        ("[1]", "is not an object"),
        ("3", "is not an object"),
    ],
)
def test_json_that_cannot_be_taken_names_its_row(tmp_path, line, message):
    good = '{"p": "x"}'
    with pytest.raises(UsageError, match=rf"t\.jsonl row 2 \(line 3\): .*{message}"):
        values(tmp_path / "t.jsonl", f"{good}\n\n{line}\n")
    if line != '{"p": "a"} {"p": "b"}':
        with pytest.raises(UsageError, match=r"t\.json row 2"):
            values(tmp_path / "t.json", f"[{good}, {line}]")


def test_json_of_other_shapes(tmp_path):
    for text in ('{"p": "a"}\n{"p": "b"}\n', '{"p":\n "a"}\n\n{"p": "b"}', ' [{"p": "a"},\n{"p": "b"}] '):
        assert values(tmp_path / "t.json", text) == [{"p": "a"}, {"p": "b"}]
    assert values(tmp_path / "t.json", "") == values(tmp_path / "t.json", "[]") == []
    assert values(tmp_path / "t.jsonl", '{"p": NaN, "q": {"r": null, "s": [null]}}') == [
        {"p": None, "q": {"s": [None]}}
    ]
    assert values(tmp_path / "t.jsonl", '{"p": 18446744073709551615}') == [{"p": 2**64 - 1}]
    for text in ("3", '"x"', "prompt\na\n"):
        assert "neither a list nor objects" in refused(tmp_path / "t.json", text)


# -- names, files, ids -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_names_of_columns_are_composed(tmp_path, kind):
    assert values(write(tmp_path, kind, [{APART: "x", "b": APART}])) == [{COMPOSED: "x", "b": APART}]


def test_two_columns_of_one_name_in_parquet(tmp_path):
    pq.write_table(pa.table([["a"], ["b"]], names=["p", "p"]), tmp_path / "t.parquet")
    with pytest.raises(UsageError, match="two columns called 'p'"):
        values(tmp_path / "t.parquet")


@pytest.mark.parametrize("suffix", ["csv", "tsv", "txt", "jsonl", "json", "parquet"])
def test_only_regular_files_are_opened(tmp_path, suffix):
    (tmp_path / f"folder.{suffix}").mkdir()
    os.mkfifo(tmp_path / f"pipe.{suffix}")
    (tmp_path / f"zero.{suffix}").symlink_to("/dev/zero")
    kinds = {"folder": "is a folder", "pipe": "is a named pipe", "zero": "is a device", "none": "does not exist"}
    for name, message in kinds.items():
        with pytest.raises(UsageError, match=rf"{name}\.{suffix} {message}"):
            values(tmp_path / f"{name}.{suffix}")


def test_a_link_to_a_file_is_a_file_and_other_suffixes_are_refused(tmp_path):
    (tmp_path / "real.csv").write_text("p\na\n")
    (tmp_path / "link.csv").symlink_to("real.csv")
    assert values(tmp_path / "link.csv") == [{"p": "a"}]
    assert "has an unsupported suffix; use one of .csv" in refused(tmp_path / "t.xlsx", "p\na\n")


def test_paths_that_cannot_be():
    for text, message in (("~nouser/x.csv", "home folder"), ("a\0.csv", "NUL"), ("x" * 300, "too long")):
        with pytest.raises(UsageError, match=f"requests.source: .*{message}"):
            user_path(text, "requests.source")


def test_files_are_found_in_either_form_of_their_accents(tmp_path):
    (tmp_path / APART).mkdir()
    (tmp_path / APART / f"{COMPOSED}.png").write_bytes(b"x")
    for name in (f"{APART}/{COMPOSED}.png", f"{COMPOSED}/{COMPOSED}.png", f"{COMPOSED}/{APART}.png"):
        assert find_file(tmp_path / name).read_bytes() == b"x"
    assert find_file(tmp_path / COMPOSED / "é.png") == tmp_path / COMPOSED / "é.png"


def test_ids_as_text():
    given = [7, 7.0, "007", "7.0", 1.5, True, APART, "1e5"]
    assert list(map(id_text, given)) == ["7", "7", "007", "7.0", "1.5", "True", COMPOSED, "1e5"]


def test_rows_are_read_one_by_one(tmp_path):
    """A damaged end does not hide the rows before it."""
    rows = read(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("p,u\n" + "a,1\n" * 500 + "a,b,1\n")
    assert [next(rows).values["u"] for _ in range(500)] == ["1"] * 500
    with pytest.raises(UsageError, match=r"row 501 \(line 502\)"):
        next(rows)


def test_rows_after_the_end_of_a_list_are_not_lost(tmp_path):
    assert values(tmp_path / "t.json", '[{"p": "a"}]\n \n') == [{"p": "a"}]
    assert "row 2: not valid JSON (more text follows the end of the list" in refused(
        tmp_path / "t.json", '[{"p": "a"}]\n[{"p": "b"}]'
    )


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"PAR1\x15\x04", "is a Parquet file. Rename it to end in .parquet"),
        (b"PK\x03\x04\x14\x00\x06\x00", "is a spreadsheet (.xlsx) or a zip archive"),
        (b"\x1f\x8b\x08\x00\x00", "is compressed with gzip"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json"])
def test_files_of_another_kind_are_named(tmp_path, suffix, data, said):
    assert said in refused(tmp_path / f"t{suffix}", data)
