"""The converter of DiFashion's archive: the tables of a small archive, and archives that are hostile or damaged."""

from __future__ import annotations

import csv
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from prefkit.fit.tables import named_files, read_table

CATEGORIES = {4: "women's shirt", 17: "bag", 20: "pants", 35: "shoe"}
KINDS = [4, 20, 17, 35]
OUTFITS = {"train": [[1, 2, 3, 4], [5, 2, 6, 7]], "valid": [[8, 9, 3, 10]], "test": [[11, 9, 12, 4], [1, 9, 12, 13]]}
BLANK = {"valid": [2], "test": [0, 3]}


def save(folder, name, value):
    np.save(folder / f"{name}.npy", np.array(value, dtype=object) if isinstance(value, dict) else value)


@pytest.fixture
def archive(tmp_path):
    """Two users, five outfits, thirteen items; the last has no picture. User 9 has no history of shirts."""
    folder, images = tmp_path / "archive", tmp_path / "images"
    folder.mkdir(), images.mkdir()
    for item in range(13):
        Image.new("RGB", (4, 4), (item, 0, 0)).save(images / f"{item}.png")
    save(folder, "id_cate_dict", CATEGORIES)
    save(folder, "all_item_image_paths", np.array([f"{item}.png" for item in range(14)]))
    for split, outfits in OUTFITS.items():
        users = [np.int64(7), np.int64(9)][: len(outfits)]  # numpy's integers, as some of DiFashion's are
        columns = {"uids": users, "oids": [50 + n for n in range(len(outfits))], "category": [KINDS] * len(outfits)}
        if split == "train":
            save(folder, "train", columns | {"outfits": outfits})
        else:
            blank = [[0 if at == place else i for at, i in enumerate(o)] for o, place in zip(outfits, BLANK[split])]
            save(folder, f"fitb_{split}", columns | {"outfits": blank})
            grounds = {50 + n: {"outfits": o, "category": KINDS} for n, o in enumerate(outfits)}
            save(folder, f"{split}_grd", grounds)
        save(folder, f"{split}_history", {7: {4: [1, 5, 11], 17: [3]}, 9: {17: [6]}})
    save(folder, "fitb_test_retrieval_candidates", {7: {50: [11, 1, 5, 8, 4]}})
    return folder


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_tables_of_an_archive(fashion, archive, tmp_path):
    text = fashion.convert.convert(archive, tmp_path / "out", tmp_path / "images")
    assert "1 requests left out" in text  # of the outfit with item 13
    out, images = tmp_path / "out", tmp_path / "images"
    rows = {row["request_id"]: row for row in lines(out / "requests.jsonl")}
    assert sorted(rows) == ["test-7-50", "train-7-50", "train-9-51", "valid-7-50"]
    row = rows["test-7-50"]
    assert row["split"] == "test" and row["user"] == "7" and row["category"] == "women's shirt" and row["position"] == 0
    assert row["prompt"] == "A photo of a women's shirt, on white background, high quality"
    assert row["items"] == [None, "9", "12", "4"] and row["outfit"] == [str(images / f"{i}.png") for i in (9, 12, 4)]
    assert row["truth"] == "11" and row["candidates"] == ["11", "1", "5", "8", "4"]
    assert row["history"] == [str(images / f"{i}.png") for i in (1, 5)]  # shirts, without the answer
    assert rows["valid-7-50"]["split"] == "validation" and rows["valid-7-50"]["truth"] == "3"
    assert rows["train-9-51"]["truth"] in ("5", "2", "6", "7") and None in rows["train-9-51"]["items"]
    four = [row for row in lines(out / "gor.jsonl") if row["outfit_id"] == "train-9-51"]
    assert [row["truth"] for row in four] == ["5", "2", "6", "7"] and all(row["outfit"] == [] for row in four)
    assert four[1]["prompt"] == "A photo of a pair of pants, on white background, high quality"
    assert four[0]["history"] == [str(images / "6.png")]  # no shirt: all that the user has
    assert four[2]["history"] == []  # the only bag is the answer
    liked = [(row["user"], row["item"], row["category"]) for row in table(out / "history.csv")]
    assert liked == [("7", i, "women's shirt") for i in ("1", "5", "11")] + [("7", "3", "bag"), ("9", "6", "bag")]
    outfits = table(out / "outfits.csv")
    assert {row["outfit"] for row in outfits} == {"train-7-50", "train-9-51"} and len(outfits) == 8
    assert [row["item"] for row in table(out / "interactions.csv")[:3]] == ["1", "5", "11"]


def test_prefkit_reads_the_tables(fashion, archive, tmp_path):
    """With the readers of `generate`, `fit vbpr` and `fit outfit_compat`."""
    from prefkit.config import Requests
    from prefkit.fit.fitters.vbpr import VbprFit
    from prefkit.fit.item_features import Source
    from prefkit.generate.requests import read_requests

    out = tmp_path / "out"
    fashion.convert.convert(archive, out, tmp_path / "images")
    for name, count in (("requests", 4), ("gor", 16)):
        read = read_requests(Requests(source=str(out / f"{name}.jsonl"), split_column="split"))
        assert len(read) == count and {r.split for r in read} == {"train", "validation", "test"}
    liked = read_table("x", str(out / "interactions.csv"), ("user", "item"), ids=("user", "item"))
    options = VbprFit(interactions=str(out / "interactions.csv"), items=str(out / "items.csv"), encoder="tiny")
    assert len(Source.find(options, liked).files) == len(set(liked["item"]))
    outfits = read_table("x", str(out / "outfits.csv"), ("outfit", "image", "category"))
    assert all(path.is_file() for path in named_files("x", str(out / "outfits.csv"), outfits["image"]))


class Bomb:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


def header(shape, descr="|O"):
    text = repr({"descr": descr, "fortran_order": False, "shape": shape})
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def refused(fashion, archive, tmp_path, capsys):
    """The message of a conversion that writes nothing."""
    before = sorted(tmp_path.rglob("*"))
    code = fashion.convert.main([str(archive), str(tmp_path / "out"), "--images", str(tmp_path / "images")])
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1 and "Traceback" not in error
    assert sorted(tmp_path.rglob("*")) == before
    return error


def test_a_pickle_that_runs_code(fashion, archive, tmp_path, capsys):
    for call in ((os.mkdir, str(tmp_path / "ran")), (eval, "1/0"), (subprocess.call, ["touch", str(tmp_path / "ran")])):
        save(archive, "train", {"uids": [Bomb(*call)]})
        message = refused(fashion, archive, tmp_path, capsys)
        assert "train.npy is refused" in message and "it asks for" in message and not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "not a .npy file"),
        (b"PK\3\4" + b"\0" * 40, "compressed .npz"),
        (header((10_000_000_000,), "<f8"), "states 80,000,000,000 bytes"),
        (header((10_000_000_000,)) + pickle.dumps(np.array([{}], object)), "another shape"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b"{" * 200, "not a .npy file"),
        (header(()) + b"\x80\x04r\xff\xff\xff\x7fN.", "damaged"),  # index 2^31 of the memo
        (header(()) + b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b"x.", "damaged"),  # a TB of bytes
        (header(()) + pickle.dumps(np.array({"uids": 1}, object))[:-9], "damaged"),
        (header(()) + b"\x80\x04)R.", "damaged"),
        (header(()) + b"]q\0h\0a.", "levels"),  # a list that contains itself
        (header(()) + b"cnumpy\nndarray\n}b.", "sets the state"),
        (header(()) + b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'V99999999999'\ntRS''\ntR.", "the dtype"),
    ],
)
def test_damaged_and_hostile_files(fashion, archive, tmp_path, capsys, data, reason):
    (archive / "train.npy").write_bytes(data)
    assert reason in refused(fashion, archive, tmp_path, capsys)


def test_lists_that_repeat_each_other(fashion, archive, tmp_path, capsys):
    """Ten levels of ten references: 10^10 values in a few hundred bytes."""
    value = [0]
    for _ in range(10):
        value = [value] * 10
    save(archive, "train", {"uids": value})
    fashion.pickles.MAX_VALUES = 100_000
    assert "more than 100,000 values" in refused(fashion, archive, tmp_path, capsys)


def test_links_and_paths_that_leave_the_folder(fashion, archive, tmp_path, capsys):
    for name in ("../secret.png", "/etc/hostname", "a/../../secret.png", "..\\secret.png"):
        paths = [f"{item}.png" for item in range(14)]
        paths[2] = name
        save(archive, "all_item_image_paths", np.array(paths))
        assert "leads out of" in refused(fashion, archive, tmp_path, capsys)
    (tmp_path / "secret.png").write_bytes(b"x")
    (tmp_path / "images" / "2.png").unlink()
    (tmp_path / "images" / "2.png").symlink_to(tmp_path / "secret.png")
    save(archive, "all_item_image_paths", np.array([f"{item}.png" for item in range(14)]))
    assert "leads out of" in refused(fashion, archive, tmp_path, capsys)
    (archive / "train.npy").rename(tmp_path / "train.npy")
    (archive / "train.npy").symlink_to(tmp_path / "train.npy")
    assert "it is a link" in refused(fashion, archive, tmp_path, capsys)


def test_columns_as_arrays_and_a_row_that_repeats_another(fashion, archive, tmp_path):
    columns = {"uids": [7, 9, 7], "oids": [50, 51, 50], "outfits": [[1, 2], [5, 6], [1, 2]], "category": [[4, 20]] * 3}
    for name, read in (("lists", list), ("arrays", np.array)):
        save(archive, "train", {key: read(column) for key, column in columns.items()})
        fashion.convert.convert(archive, tmp_path / name, tmp_path / "images")
    rows = [row["request_id"] for row in lines(tmp_path / "lists" / "requests.jsonl")]
    assert rows == ["train-7-50", "train-9-51", "valid-7-50", "test-7-50"]
    assert lines(tmp_path / "arrays" / "requests.jsonl") == lines(tmp_path / "lists" / "requests.jsonl")


@pytest.mark.parametrize(
    "name, value, reason",
    [
        ("train", {"uids": [1]}, "must hold the lists"),
        ("train", {"uids": [1], "oids": [1, 2], "outfits": [[1]], "category": [[4]]}, "differ in length"),
        ("train", {"uids": [1], "oids": [1], "outfits": [["x"]], "category": [[4]]}, "not a list of whole numbers"),
        ("train", {"uids": [1], "oids": [1], "outfits": [[1]], "category": [[99]]}, "no name for category 99"),
        ("train", {"uids": [1], "oids": [1], "outfits": [[99]], "category": [[4]]}, "item 99 is not in"),
        ("train", {"uids": ["a\ud800"], "oids": [1], "outfits": [[1]], "category": [[4]]}, "not the id of a user"),
        ("fitb_test", {"uids": [1], "oids": [9], "outfits": [[0]], "category": [[4]]}, "has no outfit 9"),
        ("fitb_test", {"uids": [1], "oids": [50], "outfits": [[0, 1]], "category": [[4, 4]]}, "with one item 0"),
        (
            "train",
            {"uids": [1, 1], "oids": [5, 5], "outfits": [[1, 2], [1, 3]], "category": [[4, 20]] * 2},
            "row 1: an earlier row has the same user and outfit id",
        ),
        ("id_cate_dict", np.arange(3), "holds a ndarray"),
    ],
)
def test_another_layout(fashion, archive, tmp_path, capsys, name, value, reason):
    save(archive, name, value)
    assert reason in refused(fashion, archive, tmp_path, capsys)


def test_missing_files_and_an_existing_folder(fashion, archive, tmp_path, capsys):
    for name in ("train", "fitb_valid", "fitb_test"):
        (archive / f"{name}.npy").unlink()
    assert "there is none of train.npy" in refused(fashion, archive, tmp_path, capsys)
    (archive / "id_cate_dict.npy").unlink()
    assert "has no id_cate_dict.npy" in refused(fashion, archive, tmp_path, capsys)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    assert "Name a new folder" in refused(fashion, archive, tmp_path, capsys)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_survives_in_every_protocol(fashion, protocol):
    """Numbers, text, nested containers, scalars and arrays of every kind and order."""
    value = {
        "a": [1, -(2**70), 2.5, None, True, "ü", b"\xff", (1, (2,))],
        "array": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "scalar": [np.int64(3), np.float32(0.5), np.bool_(True)],
        "text": np.array(["x", "yy"]),
        "big": np.arange(3, dtype=">i4"),
        "objects": np.array([{"x": np.arange(2)}, None], object),
    }
    found = fashion.pickles.unpickle(pickle.dumps(value, protocol))
    assert found["a"] == value["a"] and found["scalar"] == [3, 0.5, True]
    for name in ("array", "text", "big"):
        assert np.array_equal(found[name], value[name]) and found[name].dtype == value[name].dtype
    assert found["objects"][0]["x"].tolist() == [0, 1] and found["objects"][1] is None


def test_the_mesh_converter_runs_no_code_either(tmp_path):
    script = str(os.path.join(os.path.dirname(__file__), "../../pipelines/mesh/unpickle.py"))
    np.savez(tmp_path / "a.npz", a=np.array([Bomb(os.mkdir, str(tmp_path / "ran"))], object))
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(Bomb(os.mkdir, str(tmp_path / "ran"))))
    for name in ("a.npz", "a.pkl"):
        command = [sys.executable, script, str(tmp_path / name), str(tmp_path / "out.npz")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 1 and "posix.mkdir" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out.npz").exists()
