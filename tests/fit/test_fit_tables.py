"""The tables that fits learn from, by value: ids, times and ratings from every kind of file, and rows that are refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from prefkit.errors import UsageError
from prefkit.fit.interactions import split
from prefkit.fit.item_features import Source
from prefkit.fit.judge_data import read_ratings
from prefkit.fit.outfits import read_outfits
from prefkit.fit.tables import image_files, named_files, numbers, read_table, times

KINDS = ["csv", "tsv", "jsonl", "json", "parquet", "CSV", "PARQUET"]
COMPOSED, APART = "caf\u00e9", "cafe\u0301"


def write(folder: Path, kind: str, rows: list[dict], name: str = "t") -> Path:
    path = folder / f"{name}.{kind}"
    suffix = kind.lower()
    if suffix == "parquet":
        pd.DataFrame(rows).to_parquet(path)
    elif suffix in ("jsonl", "json"):
        path.write_text("\n".join(map(json.dumps, rows)) if suffix == "jsonl" else json.dumps(rows))
    else:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter={"csv": ",", "CSV": ";", "tsv": "\t"}[kind])
            writer.writeheader()
            writer.writerows(rows)
    return path


#: users whose names look like numbers, missing values and truths, each with six items; the last two by time are held out
USERS = ["00001", "1e5", "NA", "True", APART]
TAKEN = [{"user": user, "item": f"00{(u + n) % 8}", "time": when} for u, user in enumerate(USERS)
         for n, when in enumerate([9, 10, 11, 100, 101, 1000])]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_fit_vbpr_keeps_users_and_items(tmp_path, cli, kind):
    log = write(tmp_path, kind, TAKEN)
    features = [{"item": f"00{n}", "features": [float(n), 1.0, float(n == 3)]} for n in range(8)]
    write(tmp_path, "parquet", features, "features")
    code, _, err = cli("fit", "vbpr", "--interactions", log, "--features", tmp_path / "features.parquet", "--epochs", 1,
                       "--k", 2, "--k2", 2, "--out", tmp_path / "own")  # fmt: skip
    assert code == 0, err
    assert json.loads((tmp_path / "own/users.json").read_text()) == sorted(["00001", "1e5", "NA", "True", COMPOSED])
    assert json.loads((tmp_path / "own/items.json").read_text()) == [f"00{n}" for n in range(8)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_items_by_time_are_held_out(tmp_path, kind):
    """As numbers: 9 is before 1000 whatever the file."""
    rows = [TAKEN[n] for n in np.random.default_rng(0).permutation(len(TAKEN))]
    table = read_table("x", str(write(tmp_path, kind, rows)), ("user", "item"), ("user", "item"), ("time",))
    data = split(table, [f"00{n}" for n in range(8)], 0)
    held = {data.users[u]: data.items[i] for u, i in data.test}
    assert held == {user.replace(APART, COMPOSED): f"00{(u + 5) % 8}" for u, user in enumerate(USERS)}


@pytest.mark.parametrize(
    ("given", "ranks"),
    [
        (["9", "10", " 2 "], [1, 2, 0]),
        ([9, 10.5, "1e3"], [0, 1, 2]),
        ([2**62 + 1, 2**62, 2**62 + 1], [1, 0, 1]),
        (["2026-01-31", "2025-12-31T23:00:00", "2026-01-31"], [1, 0, 1]),
        (["2026-01-31T12:00:00+02:00", "2026-01-31T11:00:00+00:00"], [0, 1]),
    ],
)
def test_times(given, ranks):
    assert times(pd.DataFrame({"time": given}, dtype=object), "time", "x") == ranks


@pytest.mark.parametrize(
    ("given", "row"),
    [
        ([1, None], 2),
        (["1", "soon"], 2),
        (["nan", 1], 1),
        (["2026-01-31", "5"], 2),
        (["2026-01-31", "2026-01-31T12:00:00+00:00"], 2),
        ([1, "31/01/2026"], 2),
    ],
)
def test_times_that_cannot_be_ordered(given, row):
    with pytest.raises(UsageError, match=f"row {row}: time is"):
        times(pd.DataFrame({"time": given}, dtype=object), "time", "x")


@pytest.mark.parametrize("kind", KINDS)
def test_ratings(tmp_path, kind):
    Image.new("RGB", (4, 4)).save(tmp_path / f"{APART}.png")
    rows = [{"image": f"{COMPOSED}.png", "prompt": p, "rating": r} for p, r in (("NA", 1), ("NA", 4), ("007", 2))]
    found, _ = read_ratings(str(write(tmp_path, kind, rows)))
    assert [(r.candidate.prompt, r.rating) for r in found] == [("007", 2.0), ("NA", 2.5)]


@pytest.mark.parametrize("text", ["good", "nan", "inf"])
def test_a_rating_that_is_no_number_names_its_row(tmp_path, text):
    path = write(tmp_path, "csv", [{"image": "a.png", "prompt": "x", "rating": r} for r in ("1", text)])
    with pytest.raises(UsageError, match=f"row 2: rating is '{text}'"):
        read_ratings(str(path))
    assert numbers(pd.DataFrame({"rating": ["1.5", 2]}), "rating", "x") == [1.5, 2.0]


@pytest.mark.parametrize("kind", KINDS)
def test_outfits(tmp_path, kind):
    rows = [{"outfit": f"00{o}", "image": f"{c}{o}.png", "category": f"0{c}", "item": f"{c}00{o}", "split": s}
            for o, s in enumerate(("train", "validation", "test")) for c in (1, 2)]  # fmt: skip
    table = read_table("x", str(write(tmp_path, kind, rows)), ("outfit", "image", "category"),
                       ("outfit", "category", "item"), ("split",))  # fmt: skip
    catalogue, splits, short = read_outfits(table, (0.1, 0.1))
    assert short == 0 and [catalogue.files[m] for m in splits["test"].members[0]] == ["12.png", "22.png"]
    assert set(table["category"]) == {"01", "02"} and set(table["outfit"]) == {"000", "001", "002"}
    with pytest.raises(UsageError, match="outfit 000 has several splits"):
        read_outfits(table.assign(split=["train", "test", *table["split"][2:]]), (0.1, 0.1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user,item\na,1\nb,2,3\n", r"row 2 \(line 3\) has 3 fields"),
        ("user,item\na,1\n,2\n", r"row 2 \(line 3\): user has no value"),
        ("user,item\na,1\nb, \n", r"row 2 \(line 3\): item has no value"),
        ("user,thing\na,1\n", r"row 1 \(line 2\) has no column item \(it has user, thing\)"),
        ("user,item,item\na,1,2\n", "'item' twice"),
        ("user,item\n", "has no rows"),
        ("", "is empty"),
    ],
)
def test_rows_that_a_fit_cannot_use_are_named(tmp_path, text, message):
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(UsageError, match=rf"^x: .*log\.csv.* {message}"):
        read_table("x", str(tmp_path / "log.csv"), ("user", "item"), ("user", "item"))


def test_ids_that_are_none(tmp_path):
    for value in (["a"], {"a": 1}, None):
        path = write(tmp_path, "jsonl", [{"user": "a", "item": "b"}, {"user": "a", "item": value}])
        with pytest.raises(UsageError, match=r"row 2 \(line 2\): item "):
            read_table("x", str(path), ("user", "item"), ("user", "item"))
    path = write(tmp_path, "parquet", [{"user": 1, "item": 2.0}, {"user": 2, "item": 3.0}])
    assert read_table("x", str(path), ("user",), ("user", "item")).to_dict("list") == {
        "user": ["1", "2"],
        "item": ["2", "3"],
    }


def test_images_and_features_in_either_unicode_form(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / f"{APART}.PNG")
    assert image_files(tmp_path, [COMPOSED], "x")[COMPOSED].name == f"{APART}.PNG"
    np.save(tmp_path / "f.npy", np.eye(2, dtype=np.float32))
    (tmp_path / "f.txt").write_text(f"{APART}\r\na\u2028b\n", encoding="utf-8")
    options = type("Options", (), {"images": "", "items": "", "features": str(tmp_path / "f.npy")})()
    assert Source.find(options, pd.DataFrame({"item": [COMPOSED]})).items == [COMPOSED, "a\u2028b"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"item": "a", "features": [1.0, 2.0]}, {"item": "b", "features": [1.0]}],
            "row 2 has 1 features, but the first row has 2",
        ),
        ([{"item": "a", "features": [1.0]}, {"item": "b", "features": None}], "row 2 needs an item and its features"),
        ([{"item": "a", "features": ["x"]}], "row 1: the features are not a list of numbers"),
        ([{"item": "a", "features": [float("nan")]}], "not finite"),
    ],
)
def test_features_that_cannot_be_used(tmp_path, rows, message):
    options = type("Options", (), {"images": "", "items": "", "features": str(write(tmp_path, "parquet", rows))})()
    with pytest.raises(UsageError, match=message):
        Source.find(options, pd.DataFrame({"item": ["a"]}))


def test_images_that_a_table_names_are_there_and_below_its_folder(tmp_path):
    (tmp_path / "t").mkdir()
    for path in (tmp_path / "out.png", tmp_path / "t" / f"{APART}.png"):
        Image.new("RGB", (4, 4)).save(path)
    table = str(tmp_path / "t" / "t.csv")
    assert [path.name for path in named_files("x", table, [f"{COMPOSED}.png", str(tmp_path / "out.png")])] == [
        f"{APART}.png",
        "out.png",
    ]
    for name, message in (("../out.png", "leads out of"), ("none.png", "none.png, which does not exist")):
        with pytest.raises(UsageError, match=f"^x: .*t.csv.*{message}"):
            named_files("x", table, [name])
