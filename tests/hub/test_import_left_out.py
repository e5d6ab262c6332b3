"""Skipped files are counted and named; a file that cannot be used fails only its own row."""

from __future__ import annotations

import base64
import json
import os
import sys
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from prefkit.hub.importing.run import run_import
from prefkit.store import Store

sys.path.insert(0, str(Path(__file__).parent))
import import_layouts as layouts

MAP = {"map": "prompt=p,image_a=a,image_b=b,winner=w"}


def put(path: Path, seed: int = 0, kind: str = "PNG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(layouts.image(seed, kind))


def prompts(store: Store) -> list[str]:
    return sorted(c.prompt for c in store.iter_candidates())


def failures(store: Store, name: str = "folders") -> list[str]:
    return list(json.loads((store.folder / ".imports" / f"{name}.json").read_text())["failed"].values())


def test_every_suffix_that_pillow_reads_is_taken(tmp_path):
    names = {"a.jfif": "JPEG", "b.JPE": "JPEG", "c.apng": "PNG", "d.jp2": "JPEG2000", "e.avif": "AVIF", "f.dib": "BMP"}
    for seed, (name, kind) in enumerate(names.items()):
        put(tmp_path / "s" / name, seed, kind)
    counts = run_import(Store(tmp_path / "run"), str(tmp_path / "s"), layout="folders", flags={"prompt": "a hat"})
    assert counts["candidates"] == len(names) and counts["left_out"] == {}


def test_what_is_no_image_is_counted_by_suffix_and_the_captions_that_remain_too(tmp_path, capsys):
    source = tmp_path / "s" / "red_hat"
    put(source / "a.png")
    for name in ("b.heic", "c.HEIC", "d.mov", "b.txt", "noise", ".hidden.png"):
        (source / name).write_text("x")
    (source / "README.md").write_text("about")
    counts = run_import(Store(tmp_path / "run"), str(tmp_path / "s"), layout="folders")
    wanted = {".heic": 2, ".mov": 1, "caption without an image": 1, "without a suffix": 1, "hidden file": 1}
    assert counts["left_out"] == wanted and counts["items"] == counts["candidates"] == 1
    said = capsys.readouterr().err
    assert "6 files were skipped: 2 .heic (an image format that is not read; convert it to PNG or JPEG)" in said


def test_pairs_behind_links_are_taken_and_loops_are_not_followed(tmp_path):
    for side, seed in (("w", 0), ("l", 10)):
        put(tmp_path / "s" / side / "a.png", seed)
        put(tmp_path / "other" / side / "deep" / "b.png", seed + 1)
        (tmp_path / "s" / side / "more").symlink_to(tmp_path / "other" / side)
        (tmp_path / "other" / side / "deep" / "up").symlink_to(tmp_path / "s" / side)
    counts = run_import(Store(tmp_path / "run"), str(tmp_path / "s"), flags={"prompt": "a hat"})
    assert counts["comparisons"] == 2 and counts["left_out"] == {"link to a folder above it": 2}


def test_files_outside_of_the_two_folders_are_counted(tmp_path):
    source = layouts.folders(tmp_path / "s")
    put(source / "maybe" / "x.png", 70)
    (source / "votes.csv").write_text("a,b\n")
    counts = run_import(Store(tmp_path / "run"), str(source))
    assert counts["left_out"] == {"outside of w/ and l/": 2} and counts["comparisons"] == 2


def test_a_pipe_and_a_broken_link_are_failed_rows_and_do_not_hang(tmp_path):
    source = tmp_path / "s" / "hat"
    put(source / "a.png")
    os.mkfifo(source / "b.png")
    os.mkfifo(source / "a.txt.txt")
    (source / "c.png").symlink_to(tmp_path / "none.png")
    (source / "d.png").symlink_to("/dev/zero")
    store = Store(tmp_path / "run")
    counts = run_import(store, str(tmp_path / "s"), layout="folders", max_failed=1)
    assert counts["failed"] == 3 and counts["candidates"] == 1
    said = failures(store)
    assert ["pipe or a device" in text for text in said] == [True, False, True] and "No such file" in said[1]


@pytest.mark.parametrize("bad", ["caption", "prompt.txt", "pipe"])
def test_a_caption_that_cannot_be_read_fails_its_own_rows(tmp_path, bad):
    for place in ("one", "two"):
        for i in range(2):
            put(tmp_path / "s" / place / f"{i}.png", i + 10 * (place == "two"))
    path = tmp_path / "s" / "one" / ("prompt.txt" if bad == "prompt.txt" else "0.txt")
    os.mkfifo(path) if bad == "pipe" else path.write_bytes(b"a caf\xe9 dress")
    store = Store(tmp_path / "run")
    lost = 2 if bad == "prompt.txt" else 1
    counts = run_import(store, str(tmp_path / "s"), layout="folders", max_failed=0.9)
    assert counts["failed"] == lost and counts["candidates"] == 4 - lost
    assert all(path.name in text for text in failures(store))
    path.unlink()
    path.write_text("a café dress")
    run_import(store, str(tmp_path / "s"), layout="folders")
    assert prompts(store) == sorted(["a café dress"] * lost + ["one"] * (2 - lost) + ["two"] * 2)


def test_suffixes_in_capitals_and_names_from_a_mac_meet(tmp_path):
    for side, form, seed in (("W", "NFC", 0), ("L", "NFD", 1)):
        put(tmp_path / "s" / side / unicodedata.normalize(form, "kleid_ä.PNG"), seed)
    caption = tmp_path / "s" / "W" / unicodedata.normalize("NFD", "kleid_ä.TXT")
    caption.write_text("ein Kleid")
    store = Store(tmp_path / "run")
    counts = run_import(store, str(tmp_path / "s"))
    assert counts["comparisons"] == 1 and prompts(store) == ["ein Kleid"] * 2 and counts["left_out"] == {}


def test_kohyas_repeats_are_no_part_of_the_prompt_and_it_is_said_what_is(tmp_path, capsys):
    for i, name in enumerate(("10_sks dress", "3_red_hat", "2024", "7_")):
        put(tmp_path / "s" / name / "a.png", i)
    store = Store(tmp_path / "run")
    run_import(store, str(tmp_path / "s"), layout="folders")
    assert prompts(store) == sorted(["sks dress", "red hat", "2024", "7 "])
    assert "'10_sks dress' -> 'sks dress'" in capsys.readouterr().err


def test_tables_that_are_not_read_are_named(tmp_path, capsys):
    source = layouts.pickapic(tmp_path / "s", 2)
    (source / "more.csv").write_text("a,b\n")
    (source / "data" / "old.xlsx").write_bytes(b"x")
    put(source / "data" / "shown.png")
    counts = run_import(Store(tmp_path / "run"), str(source))
    assert counts["left_out"] == {".csv": 1, ".xlsx": 1} and "2 files were skipped" in capsys.readouterr().err


def encoded(seed: int, kind: str = "PNG") -> str:
    return base64.b64encode(layouts.image(seed, kind)).decode()


def table(tmp_path: Path, rows: list[dict], name: str = "t.jsonl") -> Path:
    (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / name


def test_images_as_base64_and_data_uris_are_read(tmp_path):
    lines = "\n".join(encoded(4)[i : i + 76] for i in range(0, len(encoded(4)), 76))
    forms = [
        encoded(0),
        f"data:image/jpeg;base64,{encoded(1, 'JPEG')}",
        encoded(2, "WEBP"),
        encoded(3).replace("+", "-").replace("/", "_").rstrip("="),
        lines,
        {"bytes": None, "path": encoded(5)},
    ]
    kinds = ["PNG", "JPEG", "WEBP", "PNG", "PNG", "PNG"]
    source = table(tmp_path, [{"p": f"{i}", "a": form} for i, form in enumerate(forms)])
    store = Store(tmp_path / "run")
    run_import(store, str(source), layout="table", flags={"map": "prompt=p,image_a=a"})
    found = {c.prompt: c.image for c in store.iter_candidates()}
    assert found == {str(i): layouts.image(i, kind) for i, kind in enumerate(kinds)}


def test_values_are_cut_and_control_characters_escaped_in_messages_and_in_what_is_stored(tmp_path, cli):
    noise = base64.b64encode(bytes(range(256)) * 400).decode()
    rows = [
        {"p": "a", "a": noise, "b": encoded(1), "w": "a"},
        {"p": "a", "a": "data:image/png;base64,!!" + noise, "b": encoded(1), "w": "a"},
        {"p": "a", "a": encoded(0), "b": encoded(1), "w": "left" * 999},
        {"p": "a", "a": "x\x1b]0;owned\x07\x1b[2J.png", "b": encoded(1), "w": "a"},
        {"p": "a", "a": "n" * 9999, "b": encoded(1), "w": "a"},
        {"p": "a", "a": encoded(0), "b": encoded(1), "w": "a", "f": "9" * 3000 + "x"},
    ]
    source = table(tmp_path, [{"f": ""} | row for row in rows])
    flags = ["--map", MAP["map"] + ",score.f=f", "--as", "table", "--max-failed", "1"]
    rc, out, err = cli("import", source, tmp_path / "run", *flags)
    stored = (tmp_path / "run" / ".imports" / "table.json").read_text()
    assert rc == 0 and max(map(len, (out + err + stored).splitlines())) < 600 and "\x1b" not in out + err + stored
    said = failures(Store(tmp_path / "run"), "table")
    assert len(said) == 6 and "looks like base64" in said[0] and "\\x1b]0;owned" in said[3]
    wide = table(tmp_path, [{f"column {i}": i for i in range(400)}], "w.jsonl")
    rc, out, err = cli("import", wide, tmp_path / "run2", "--as", "table", "--map", "prompt=p,image_a=a")
    assert rc == 2 and "no column" in err and max(map(len, err.splitlines())) < 600


def paths(tmp_path: Path) -> dict[str, str]:
    """Values of an image column -> the expected error, '' for a value that is read."""
    os.mkfifo(tmp_path / "data" / "pipe.png")
    (tmp_path / "data" / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "data" / "big.png").write_bytes(b"")
    os.truncate(tmp_path / "data" / "big.png", 200 << 20)
    (tmp_path / "data" / "deep").mkdir()
    put(tmp_path / "out.png")
    put(tmp_path / "data" / "in.png", 1)
    put(tmp_path / "data" / "deep" / "er.png", 2)
    device = "not a file but a pipe or a device"
    return {"pipe.png": device, "zero.png": device, "/dev/zero": device, "/dev/stdin\0": "null", "deep": "directory",
            "big.png": "larger than 128 MB", "../out.png": "leads out of", "deep/../../out.png": "leads out of",
            str(tmp_path / "out.png"): "", "in.png": "", "deep/../in.png": "", "deep\\er.png": "",
            "C:\\x\\y.png": "Windows drive", "~nobody-of-that-name/x.png": "unknown user name"}  # fmt: skip


def test_a_table_names_regular_files_below_it_or_absolute_ones(tmp_path):
    (tmp_path / "data").mkdir()
    wanted = paths(tmp_path)
    source = table(tmp_path / "data", [{"p": f"{i}", "a": name} for i, name in enumerate(wanted)])
    store = Store(tmp_path / "run")
    counts = run_import(store, str(source), layout="table", flags={"map": "prompt=p,image_a=a"}, max_failed=1)
    said = {int(text.partition(" row ")[2].split(":")[0].split()[0]) - 1: text for text in failures(store, "table")}
    for number, (name, why) in enumerate(wanted.items()):
        assert why.lower() in said.get(number, "").lower() and bool(why) == (number in said), (name, said.get(number))
    assert counts["candidates"] == 4


@pytest.mark.parametrize(
    ("name", "lines", "reason"),
    [
        ("p.jsonl", ['{"p": "a", "l": "a.png", "r": "b.png", "w": "a"}', "{broken", '{"p": "b", "l": "b.png", "r": "a.png", "w": "a"}'], "not valid JSON"),
        ("p.csv", ["p,l,r,w", "a,a.png,b.png,a", "a red, long dress,a.png,b.png,a", "b,b.png,a.png,a"], "has 5 fields"),
    ],
)  # fmt: skip
def test_one_bad_row_of_a_table_is_one_failed_row(tmp_path, cli, name, lines, reason):
    for number, image in enumerate(("a.png", "b.png")):
        Image.new("RGB", (16, 16), (90 * number, 9, 9)).save(tmp_path / image)
    (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    flags = ("--as", "table", "--map", "prompt=p,image_a=l,image_b=r,winner=w", "--json")
    code, out, err = cli("import", tmp_path / name, tmp_path / "run", *flags, "--max-failed", 0.5)
    assert code == 0 and reason in err and err.count("row 2 (line") == 1, err
    assert json.loads(out)["failed"] == 1
    assert {r.prompt for r in Store(tmp_path / "run").requests()} == {"a", "b"}
    assert cli("import", tmp_path / name, tmp_path / "strict", *flags)[0] == 3
