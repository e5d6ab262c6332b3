"""Paths that stand in data: pipes, devices and folders are refused by all that read images, and relative ones stay below."""

from __future__ import annotations

import base64
import io
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from prefkit.errors import PrefkitError
from prefkit.output import message
from prefkit.paths import embedded, named, open_regular, read_regular, shown
from prefkit.types import Candidate


def png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (9, 99, 199)).save(out, "PNG")
    return out.getvalue()


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def bound(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(path.parent)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path.name)
    return path


def linked(path: Path, to: str) -> Path:
    path.symlink_to(to)
    return path


def test_only_regular_files_are_opened(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(png())
    odd = [pipe(tmp_path / "p"), linked(tmp_path / "q", str(tmp_path / "p")), linked(tmp_path / "z", "/dev/zero"),
           linked(tmp_path / "loop", "loop"), Path("/dev/zero"), tmp_path, bound(tmp_path / "s", monkeypatch)]  # fmt: skip
    for path in odd:
        with pytest.raises(OSError):
            open_regular(path)
    assert read_regular(linked(tmp_path / "link.png", "a.png")) == read_regular(tmp_path / "a.png") == png()


@pytest.mark.parametrize("size", [0, 99, 100, 101, 5000])
def test_no_more_than_the_bound_is_read(tmp_path, size):
    path = tmp_path / "a"
    path.write_bytes(b"x" * size)
    if size <= 100:
        assert read_regular(path, 100) == b"x" * size
    else:
        with pytest.raises(OSError, match="larger than 100 bytes"):
            read_regular(path, 100)


def test_relative_paths_stay_below_their_folder_and_absolute_ones_are_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / "a" / "tables"
    assert named(folder, "x/y.png") == folder / "x/y.png"
    assert named(folder, "/x/y.png") == Path("/x/y.png") and named(folder, "~/y.png") == tmp_path / "home" / "y.png"
    assert named(folder, "../images/y.png", root=folder.parent).resolve() == (folder.parent / "images/y.png").resolve()
    for name, root in (("../y.png", None), ("x/../../y.png", None), ("..", None), ("../../y.png", folder.parent),
                       ("../tables2/y.png", None)):  # fmt: skip
        with pytest.raises(ValueError, match="absolute path"):
            named(folder, name, root)


def test_text_that_is_an_image_and_text_that_is_none():
    text = base64.b64encode(png()).decode()
    for form in (
        text,
        text.rstrip("="),
        f"data:image/png;base64,{text}",
        f" data:image/x-icon;base64,{text[:40]}\n{text[40:]}",
    ):
        assert embedded(form) == png()
    for other in ("a.png", "images/" + "a" * 200 + ".png", "word " * 40, "a" * 300, ""):
        assert embedded(other) is None
    for bad in ("a" * 600, "data:image/png;base64,@@@", text * 20):
        with pytest.raises(ValueError) as error:
            embedded(bad, 1000)
        assert len(str(error.value)) < 200


def test_values_in_messages():
    assert shown("a" * 99) == "a" * 77 + "..." and shown("a\nb\tc") == "a b c" and shown("é ü 服") == "é ü 服"
    assert shown("\x1b[31m\x07\u202e\x9b\udce9") == "\\x1b[31m\\x07\\u202e\\x9b\\udce9"
    assert message("x" * 50, 50) == "x" * 50 and 298 <= len(message("ab" * 5000, 300)) <= 300
    cut = message("start" + "x" * 500 + "end", 60)
    assert cut.startswith("start") and cut.endswith("end") and 58 <= len(cut) <= 60


def reads() -> dict[str, Callable[[Path], Any]]:
    """Everything that reads the image of a path that a table or a request names."""
    from prefkit.fit.judge_data import read_ratings
    from prefkit.fit.tables import files_digest
    from prefkit.generate.inputs import InputReader
    from prefkit.images import png_has_metadata, rgb, size
    from prefkit.pair.look import look_of
    from prefkit.report.pictures import thumbnail
    from prefkit.score.core import _read
    from prefkit.score.judge.server import stored
    from prefkit.score.remote.protocol import file_bytes
    from prefkit.train.data.pairs import _encoded

    def rated(path: Path) -> Any:
        table = path.parent / "ratings.csv"
        table.write_text(f"image,prompt,rating\n{path.name},a hat,1\n")
        return read_ratings(str(table))

    def of(path: Path) -> Candidate:
        return Candidate("c", "r", 0, 0, path=str(path))

    def taken(path: Path) -> Any:
        return InputReader({"image": "extra.i"}, path.parent, None).replace_images({"i": path.name})

    return {
        "rgb": rgb, "size": size, "png": png_has_metadata, "look": lambda p: look_of(("c", None, str(p)))["hash"],
        "score": lambda p: _read(of(p)), "judge": lambda p: stored(of(p)), "remote": lambda p: file_bytes(of(p)),
        "pil": lambda p: of(p).pil(), "ratings": rated, "inputs": taken, "fit": lambda p: files_digest([p]),
        "report": lambda p: thumbnail(str(p), 32) or {}["none"], "train": lambda p: _encoded({"path": str(p)}) or {}["none"],
    }  # fmt: skip


@pytest.mark.parametrize("who", sorted(reads()))
def test_a_pipe_or_a_device_in_the_place_of_an_image_hangs_nobody(tmp_path, who):
    read = reads()[who]
    (tmp_path / "good.png").write_bytes(png())
    read(tmp_path / "good.png")
    for path in (pipe(tmp_path / "pipe.png"), linked(tmp_path / "zero.png", "/dev/zero")):
        with pytest.raises((OSError, ValueError, KeyError, PrefkitError)):
            read(path)


def test_requests_bring_images_as_text_and_below_their_folder(tmp_path):
    import hashlib

    from prefkit.errors import UsageError
    from prefkit.generate.inputs import InputReader

    (tmp_path / "s").mkdir()
    for name in ("a.JFIF", "s/b.png"):
        (tmp_path / name).write_bytes(png())
    take = InputReader({"image": "extra.i"}, tmp_path / "s", None).replace_images
    text = base64.b64encode(png()).decode()
    for value in (str(tmp_path / "a.JFIF"), "b.png", text, f"data:image/png;base64,{text}"):
        assert take({"i": value}) == {"i": hashlib.sha256(png()).hexdigest()}
    assert take({"i": "a word"}) == {"i": "a word"}
    for value in ("../a.JFIF", "none.png", "photo.heic", "data:image/png;base64,@@"):
        with pytest.raises(UsageError, match=r"extra\.i"):
            take({"i": value})
