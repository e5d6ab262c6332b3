"""Requests from tables of every kind, through `prefkit generate`: equal content gives equal requests."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import prefkit
from prefkit.config import Requests
from prefkit.errors import UsageError
from prefkit.generate.requests import read_requests

DRAW = "from PIL import Image\ndef draw(prompts, seeds):\n    return [Image.new('RGB', (8, 8)) for _ in seeds]\n"
FLAT = [
    {"prompt": "a red dress, studio light", "user": "00001", "size": "007"},
    {"prompt": 'he said "NA"', "user": "1e5", "size": "NA"},
    {"prompt": "two\nlines; and\ttabs", "user": "True", "size": None},
    {"prompt": "null", "user": "caf\u00e9", "size": "1.50"},
]
NESTED = [
    {"prompt": "a", "tags": [], "outfit": [{"image": "a.png", "weight": 0.5}], "box": {"left": 1, "on": True}},
    {"prompt": "b", "tags": ["red"], "outfit": [{"image": "b.png"}, {"image": "c.png"}], "box": {"left": 2}},
    {"prompt": "c", "tags": ["x", "y"], "outfit": None, "box": None},
]


def write(folder: Path, kind: str, rows: list[dict]) -> Path:
    path = folder / f"p.{kind}"
    suffix = kind.lower()
    if suffix == "parquet":
        pd.DataFrame(rows).to_parquet(path)
    elif suffix == "jsonl":
        path.write_text("\n".join(json.dumps({k: v for k, v in row.items() if v is not None}) for row in rows))
    elif suffix == "json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        with open(path, "w", newline="", encoding="utf-8-sig" if kind == "CSV" else "utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter={"csv": ",", "CSV": ";", "tsv": "\t"}[kind])
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.fixture
def generate(tmp_path, cli):
    """generate(source, **requests) -> (exit code, stderr, requests of the run by prompt)."""
    (tmp_path / "draw.py").write_text(DRAW)

    def call(source, **requests):
        run = tmp_path / f"run{len(list(tmp_path.glob('run*')))}"
        recipe = {
            "run": str(run),
            "requests": {"source": str(source), "test_share": 0, **requests},
            "generate": {"own": {"use": f"{tmp_path}/draw.py:draw", "n": 1}},
        }
        (tmp_path / "r.yaml").write_text(json.dumps(recipe))
        code, _, err = cli("generate", "-r", tmp_path / "r.yaml")
        found = prefkit.Run(run).requests() if code == 0 else pd.DataFrame(columns=["prompt", "extra", "split"])
        return code, err, {row.prompt: row for row in found.itertuples()}

    return call


@pytest.mark.parametrize("kind", ["csv", "CSV", "tsv", "jsonl", "json", "parquet", "Parquet"])
def test_flat_content(tmp_path, generate, kind):
    code, err, found = generate(write(tmp_path, kind, FLAT))
    assert code == 0, err
    wanted = {row["prompt"]: {k: v for k, v in row.items() if k != "prompt" and v is not None} for row in FLAT}
    assert {prompt: dict(row.extra) for prompt, row in found.items()} == wanted
    ids = {r.prompt: r.request_id for r in read_requests(Requests(str(write(tmp_path, "jsonl", FLAT))))}
    assert {prompt: row.request_id for prompt, row in found.items()} == ids


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_nested_content(tmp_path, generate, kind):
    code, err, found = generate(write(tmp_path, kind, NESTED))
    assert code == 0, err
    wanted = {row["prompt"]: {k: v for k, v in row.items() if k != "prompt" and v is not None} for row in NESTED}
    assert {prompt: dict(row.extra) for prompt, row in found.items()} == wanted
    ids = [r.request_id for r in read_requests(Requests(str(write(tmp_path, "jsonl", NESTED))))]
    assert [row.request_id for row in found.values()] == ids


def test_what_pandas_makes_of_dates_arrays_and_gaps(tmp_path, generate):
    frame = pd.DataFrame({"prompt": ["a", "b"], "when": pd.to_datetime(["2026-01-31", None]), "n": [1.0, float("nan")]})
    frame["vector"] = [np.array([1, 2]), None]
    frame.to_parquet(tmp_path / "p.parquet")
    _, _, found = generate(tmp_path / "p.parquet")
    assert dict(found["a"].extra) == {"when": "2026-01-31T00:00:00", "n": 1.0, "vector": [1, 2]}
    assert dict(found["b"].extra) == {}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.csv", "prompt\na red hat, felt\n", "p.csv row 1 (line 2) has 2 fields"),
        ("p.csv", "prompt,style\na,b\nc, d,e\n", "p.csv row 2 (line 3) has 3 fields"),
        ("P.CSV", "prompt;style\na;b\nc; d;e\n", "P.CSV row 2 (line 3) has 3 fields"),
        ("p.jsonl", '{"prompt": "a", "x": ' + "[" * 3000 + "]" * 3000 + "}", "p.jsonl row 1 (line 1)"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": "b", "x": {"y": "\\ud800"}}', "lone surrogate"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": "b\\u0000"}', "p.jsonl row 2 (line 2): the prompt 'b\\x00' contains"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": 5}', "p.jsonl row 2 (line 2): the prompt 5 is an int"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": ["b"]}', "p.jsonl row 2 (line 2): the prompt ['b'] is a list"),
        ("p.csv", "prompt,request_id\na,1\nb,1\n", "p.csv row 2 (line 3): request_id '1' already belongs to another"),
    ],
)
def test_a_row_that_cannot_be_taken_is_named(tmp_path, generate, name, text, message):
    (tmp_path / name).write_text(text)
    code, err, _ = generate(tmp_path / name)
    assert code == 2 and message in " ".join(err.split())


def test_a_source_that_is_no_file(tmp_path, generate):
    (tmp_path / "d.csv").mkdir()
    os.mkfifo(tmp_path / "f.txt")
    names = {
        "d.csv": "is a folder",
        "f.txt": "is a named pipe",
        "PROMPTS.TXT": "does not exist",
        "p.xlsx": "does not exist",
    }
    for name, message in names.items():
        code, err, _ = generate(tmp_path / name)
        assert code == 2 and f"{name} {message}" in " ".join(err.split())
    for source in ("~nouser/x.csv", "x" * 300 + ".csv", "none.xlsx"):
        code, err, _ = generate(source)
        assert code == 2 and "requests.source: " in err
    code, err, _ = generate("a\0b.csv")  # the reader of the recipe says so
    assert code == 2 and "contains a NUL character" in err


def test_a_missing_file_never_waits_on_the_hub(tmp_path, monkeypatch):
    import datasets

    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **_: asked.append(name) or [{"prompt": "a"}])
    for source in ("PROMPTS.TXT", "p.Csv", "p.xlsx", "./prompts", "a/b/c", "owner/prompts.TSV", str(tmp_path / "x")):
        with pytest.raises(UsageError, match="does not exist"):
            read_requests(Requests(source))
    assert not asked
    for source in ("owner/name", "owner/name-v1.0", "squad", "owner/name:train[:10]"):
        assert len(read_requests(Requests(source))) == 1
    assert asked == ["owner/name", "owner/name-v1.0", "squad", "owner/name"]


def test_the_column_that_names_the_split(tmp_path, generate, capsys):
    path = write(tmp_path, "csv", [{"prompt": "a", "split": "test"}, {"prompt": "b", "split": "train"}, {"prompt": "c", "split": ""}])  # fmt: skip
    _, err, found = generate(path)
    assert "the column 'split', which has a value in 2 rows" in err and "requests.split_column: split" in err
    assert [(row.split, dict(row.extra)) for row in found.values()] == [
        ("train", {"split": "test"}),
        ("train", {"split": "train"}),
        ("train", {}),
    ]
    _, err, found = generate(path, split_column="split")
    assert "column 'split'" not in err and [row.split for row in found.values()] == ["test", "train", "train"]
    read_requests(Requests(str(path)), every_row=True)  # as an evaluation set, whose rows are all used
    assert "in 2 rows, is not used: all rows are read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "columns"),
    [
        ("p.txt", "a\n", "prompt"),
        ("p.csv", "prompt,part\na,test\n", "prompt, part"),
        ("p.jsonl", '{"prompt": "a"}', "prompt"),
    ],
)
def test_a_split_column_that_is_not_there(tmp_path, generate, name, text, columns):
    (tmp_path / name).write_text(text)
    code, err, _ = generate(tmp_path / name, split_column="splt")
    assert code == 2 and f"no column 'splt'; its columns are {columns}. Set requests.split_column" in " ".join(
        err.split()
    )


def test_columns_of_the_embedded_source():
    for settings in ({"split_column": "splt"}, {"prompt_column": "text"}):
        with pytest.raises(UsageError, match="its columns are prompt, split, user"):
            read_requests(Requests("tiny", **settings))
    assert {r.split for r in read_requests(Requests("tiny", split_column="user"))} == {"mira"}


def test_what_is_left_out_is_counted(tmp_path, generate):
    (tmp_path / "p.txt").write_text("a\n\n \nb\na\n")
    _, err, found = generate(tmp_path / "p.txt")
    assert list(found) == ["a", "b"] and "2 blank lines left out" in err and "1 duplicate request left out" in err
    frame = pd.DataFrame({"prompt": ["a", "b"], "jpg": [b"\xff", None], "seen": [[{"bytes": b"x"}], []]})
    frame.to_parquet(tmp_path / "p.parquet")
    _, err, found = generate(tmp_path / "p.parquet")
    assert "the column 'jpg' contains bytes or images in 1 row; these values are left out" in " ".join(err.split())
    assert [dict(row.extra) for row in found.values()] == [{}, {"seen": []}]


def test_numbers_that_the_pipeline_takes(tmp_path):
    """A .csv holds text only; what model.inputs hands to the pipeline as a number must be one."""
    (tmp_path / "p.csv").write_text("prompt,strength,more,user\na,0.5,7,007\nb,1,x,008\n")
    found = read_requests(Requests(str(tmp_path / "p.csv")), {"strength": "extra.strength", "prompt_2": "extra.more"})
    assert [dict(r.extra) for r in found] == [
        {"strength": 0.5, "more": "7", "user": "007"},
        {"strength": 1, "more": "x", "user": "008"},
    ]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_names_in_either_unicode_form(tmp_path, kind):
    composed, apart = "caf\u00e9", "cafe\u0301"
    path = write(tmp_path, kind, [{apart: "a", composed + "s": "test"}])
    path = path.rename(tmp_path / f"{apart}.{kind}")
    wanted = Requests(str(tmp_path / f"{composed}.{kind}"), prompt_column=composed, split_column=apart + "s")
    assert [(r.prompt, r.split) for r in read_requests(wanted)] == [("a", "test")]
