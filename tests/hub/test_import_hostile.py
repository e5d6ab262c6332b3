"""Malicious and damaged archives, images and tables."""

from __future__ import annotations

import io
import json
import struct
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest

from prefkit.errors import TooManyFailures, UsageError
from prefkit.hub.importing import archives
from prefkit.hub.importing import readers as rows
from prefkit.hub.importing.archives import unpack
from prefkit.hub.importing.image_check import check
from prefkit.hub.importing.records import Picture
from prefkit.hub.importing.run import run_import
from prefkit.store import Store

sys.path.insert(0, str(Path(__file__).parent))
import import_layouts as layouts

CLIMBS = ["../out.txt", "a/../../out.txt", "/tmp/prefkit_out.txt", "..\\out.txt", "C:\\out.txt"]


@pytest.mark.parametrize("name", CLIMBS)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_that_leave_the_folder(tmp_path, name, kind):
    path = tmp_path / f"a.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("fine.txt", "x")
            archive.writestr(name, "x")
    else:
        layouts.tar(path, {"fine.txt": b"x", name: b"x"})
    with pytest.raises(UsageError, match="written outside the folder"):
        unpack([path], tmp_path / "in" / "deep")
    assert not list(tmp_path.rglob("out.txt")) and not Path("/tmp/prefkit_out.txt").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar(tmp_path, kind):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = kind, "/etc"
        archive.addfile(info)
        inner = tarfile.TarInfo("link/passwd")
        inner.size = 1
        archive.addfile(inner, io.BytesIO(b"x"))
    with pytest.raises(UsageError, match=r"a\.tar was refused: link is a link or a device"):
        unpack([tmp_path / "a.tar"], tmp_path / "in")
    assert not list((tmp_path / "in").iterdir())


def test_a_symlink_in_a_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(UsageError, match="link is a link"):
        unpack([tmp_path / "a.zip"], tmp_path / "in")


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_bombs_by_ratio(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(archives, "FREE_RATIO_BYTES", 1 << 20)
    path = tmp_path / f"a.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("zeros", bytes(32 << 20))
    else:
        layouts.tar(path, {"zeros": bytes(32 << 20)})
    with pytest.raises(UsageError, match="zeros makes it unpack to more than 200 times"):
        unpack([path], tmp_path / "in")
    assert sum(p.stat().st_size for p in (tmp_path / "in").rglob("*")) <= 16 << 20


def test_members_too_large_and_too_many(tmp_path, monkeypatch):
    layouts.tar(tmp_path / "a.tar", {f"{i}": b"x" * 100 for i in range(5)}, "w")
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    with pytest.raises(UsageError, match="more than 3 members"):
        unpack([tmp_path / "a.tar"], tmp_path / "in")
    monkeypatch.setattr(archives, "MAX_MEMBER", 50)
    with pytest.raises(UsageError, match=": 0 is larger"):
        unpack([tmp_path / "a.tar"], tmp_path / "in")


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar", "nonsense"])
def test_damaged_archives(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    members = {f"{i}.jpg": layouts.image(i, "JPEG", 64) for i in range(5)}
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 255
        path.write_bytes(data)
    elif kind == "nonsense":
        path.write_bytes(b"no archive at all" * 100)
    else:
        layouts.tar(path, members, "w:gz" if kind == "tar.gz" else "w")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 - 5])
    with pytest.raises(UsageError, match=rf"a\.{kind} is damaged"):
        unpack([path], tmp_path / "in")


def test_an_archive_in_a_layout_is_refused_by_name_and_leaves_no_run(tmp_path):
    source = layouts.hpdv3(tmp_path / "s")
    for part in source.glob("images.tar.gz.*"):
        part.unlink()
    layouts.tar(source / "images.tar.gz", {"../../evil.jpg": layouts.image(0)})
    with pytest.raises(UsageError, match=r"images\.tar\.gz was refused: its member '\.\./\.\./evil\.jpg'"):
        run_import(Store(tmp_path / "run"), str(source))
    assert not (tmp_path / "run").exists() and not list(tmp_path.rglob("evil.jpg"))


def test_a_json_cannot_name_files_outside(tmp_path):
    source = layouts.hpdv3(tmp_path / "s")
    rows_ = json.loads((source / "train.json").read_text())
    (tmp_path / "secret.png").write_bytes(layouts.image(5))
    rows_[0]["path1"], rows_[1]["path1"] = "../secret.png", str(tmp_path / "secret.png")
    (source / "train.json").write_text(json.dumps(rows_))
    with pytest.raises(TooManyFailures) as error:
        run_import(Store(tmp_path / "run"), str(source))
    assert error.value.counts["failed"] == 2 and error.value.counts["candidates"] == 0


def png_of(width: int, height: int) -> bytes:
    """A PNG with a large size in its header and almost no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "data, text",
    [
        (png_of(60_000, 60_000), "more than 64 million pixels"),
        (png_of(9_000, 9_000), "9000 x 9000 pixels"),
        (png_of(500, 500), "damaged"),
        (layouts.image(0, "JPEG", 64)[:900], "damaged"),
        (layouts.image(0)[:300], "damaged"),
        (b"<svg onload=alert(1)>", "unknown image format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unknown image format"),
        (b"", "empty"),
    ],
)
def test_images_that_are_bombs_truncated_or_none(data, text):
    with pytest.raises(ValueError, match=text):
        check(Picture("x", data))


def test_bad_rows_are_counted_with_file_and_row_and_the_rest_is_kept(tmp_path):
    source = layouts.pickapic(tmp_path / "s", 4)
    path = next(source.rglob("*.parquet"))
    table = layouts.pq.read_table(path).to_pylist()
    table[1]["jpg_0"] = table[1]["jpg_0"][:50]
    table[2]["label_0"] = 0.3
    table.append(table[0] | {"caption": "  "})
    table.append(table[0] | {"caption": "another", "jpg_1": None})
    layouts.pq.write_table(layouts.pa.Table.from_pylist(table), path)
    with pytest.raises(TooManyFailures) as error:
        run_import(Store(tmp_path / "run"), str(source))
    assert error.value.counts["failed"] == 4 and error.value.counts["comparisons"] == 2
    failed = json.loads((tmp_path / "run" / ".imports" / "pickapic.json").read_text())["failed"]
    said = [text.removeprefix(str(path)) for text in failed.values()]
    assert [text.split(":")[0] for text in said] == [" row 2", " row 3", " row 5", " row 6"]
    assert "damaged" in said[0] and "add up to 1" in said[1] and "prompt is empty" in said[2] and "missing" in said[3]
    assert run_import(Store(tmp_path / "run2"), str(source), max_failed=0.7)["failed"] == 4


@pytest.mark.parametrize("broken", [1, 0], ids=["cut", "no image"])
@pytest.mark.parametrize(
    ("layout", "made"),
    [
        ("pickapic", layouts.pickapic),
        ("open_image_preferences", layouts.chosen_rejected),
        ("rapidata", layouts.rapidata),
        ("hpdv2", layouts.hpdv2),
        ("hpdv3", layouts.hpdv3),
        ("imagerewarddb", layouts.imagerewarddb),
        ("folders", layouts.folders),
    ],
)
def test_a_damaged_image_of_any_layout_is_named_with_its_file_and_row(tmp_path, monkeypatch, layout, made, broken):
    sound = layouts.image

    def image(seed, *how):
        return sound(seed, *how)[:60] if seed == 1 and broken else b"<html>" if seed == 1 else sound(seed, *how)

    monkeypatch.setattr(layouts, "image", image)
    source = made(tmp_path / "s")
    found = run_import(Store(tmp_path / "run"), str(source), layout=layout, max_failed=1.0)
    assert found["failed"] == 1 and found["candidates"] >= 2 and found["items"] >= 2
    (said,) = json.loads((tmp_path / "run" / ".imports" / f"{layout}.json").read_text())["failed"].values()
    place, _, why = said.partition(": ")
    file, _, row = place.partition(" row ")
    assert Path(file).exists() and Path(file).is_relative_to(source), said
    assert (row or Path(file).is_file()) and "damaged" in why, said


def test_web_addresses_are_not_fetched(tmp_path):
    (tmp_path / "t.csv").write_text("p,x\nhat,http://127.0.0.1:1/a.png\n")
    with pytest.raises(TooManyFailures):
        run_import(
            Store(tmp_path / "run"), str(tmp_path / "t.csv"), layout="table", flags={"map": "prompt=p,image_a=x"}
        )
    assert "web address" in (tmp_path / "run" / ".imports" / "table.json").read_text()


@pytest.mark.parametrize("suffix", ["parquet", "json", "jsonl", "csv"])
def test_damaged_tables_name_file_and_row(tmp_path, suffix):
    path = tmp_path / f"t.{suffix}"
    good = [{"p": f"prompt {i}", "x": "a.png"} for i in range(3)]
    if suffix == "parquet":
        layouts.pq.write_table(layouts.pa.Table.from_pylist(good), path)
        path.write_bytes(path.read_bytes()[:-20])
    else:
        text = {
            "json": json.dumps(good)[:-10],
            "jsonl": "\n".join(map(json.dumps, good)) + "\n{",
            "csv": "p,x\na,b,c\n",
        }
        path.write_text(text[suffix])
    expected = {"parquet": "cannot be read as Parquet", "json": "row 3", "jsonl": "row 4", "csv": "row 1"}[suffix]
    if suffix in ("jsonl", "csv"):  # a line that can be left out is one failed row of an import
        assert [f"t.{suffix} {expected}" in row.where for row in rows.rows(str(path)) if row.error] == [True]
        return
    with pytest.raises(UsageError, match=rf"t\.{suffix} {expected}"):
        list(rows.rows(str(path)))


def test_a_damaged_source_leaves_nothing_and_the_rows_of_an_earlier_import(tmp_path):
    source = layouts.pickapic(tmp_path / "s", 40)
    path = next(source.rglob("*.parquet"))
    whole = path.read_bytes()
    with layouts.pq.ParquetFile(path) as file:
        at = file.metadata.row_group(3).column(file.schema_arrow.names.index("jpg_0")).data_page_offset
    data = bytearray(whole)
    data[at : at + 40] = bytes(40)  # a page in the fourth of five row groups
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"row 17 .or one of the 15 after it.: cannot be read"):
        run_import(Store(tmp_path / "run"), str(source))
    assert not (tmp_path / "run").exists()
    path.write_bytes(whole)
    counts = run_import(Store(tmp_path / "run"), str(source))
    assert counts["comparisons"] == 40 and counts["candidates"] == 80
    path.write_bytes(data)
    with pytest.raises(UsageError, match="cannot be read"):
        run_import(Store(tmp_path / "run"), str(source))
    assert len(Store(tmp_path / "run").comparisons("pickapic").frame()) == 40


def test_a_long_json_list_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("prefkit.tables.jsons.CHUNK", 7)
    wanted = [{"a": "x" * n, "n": 10.5 * n, "é": '"],['} for n in range(9)]
    (tmp_path / "t.json").write_text(json.dumps(wanted, indent=1))
    assert list(rows.json_items(tmp_path / "t.json")) == wanted
    (tmp_path / "n.json").write_text("[12345678901, 2]")
    assert list(rows.json_items(tmp_path / "n.json")) == [12345678901, 2]
