"""Open files whose paths come from data: only regular files, up to a size limit, and inside a given folder."""

from __future__ import annotations

import base64
import binascii
import errno
import os
import re
import stat
import unicodedata
from contextlib import suppress
from functools import cache, lru_cache
from io import BufferedReader
from pathlib import Path

MAX_FILE = 128 << 20  # bytes, for an image file
SHOWN = 80  # maximum characters of a value in a message
#: Pillow formats that prefkit reads; Pillow's other readers start programs, check no signature, or are rarely used
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000")
#: suffixes of image formats that Pillow reads only with a plug-in, or not at all
FOREIGN = frozenset({".heic", ".heif", ".jxl", ".svg", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf"})
DATA_URI = re.compile(r"\s*data:image/[\w.+-]+;base64,")
BASE64 = re.compile(r"[A-Za-z0-9+/_\r\n-]{64,}={0,2}\s*")
SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP", b"\xffO\xffQ")


def open_regular(path: str | Path) -> BufferedReader:
    """Open a regular file for reading. Raises OSError, also for pipes, devices, sockets, folders and links to them."""
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        mode = os.fstat(number).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "not a file but a pipe or a device", str(path))
        return os.fdopen(number, "rb")
    except BaseException:
        os.close(number)
        raise


def read_regular(path: str | Path, limit: int = MAX_FILE) -> bytes:
    """Read a regular file. Raises OSError, also if the file is larger than `limit` bytes."""
    with open_regular(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        most = f"{limit >> 20} MB" if limit >= 1 << 20 else f"{limit} bytes"
        raise OSError(errno.EFBIG, f"larger than {most}", str(path))
    return data


def named(folder: Path, name: str, root: Path | None = None) -> Path:
    """Return the file that `name` in a table refers to: an absolute path, a path from ~, or one relative to `folder`.

    Raises ValueError for a relative path that leads out of `root` (default: `folder`). Symbolic links are followed.
    """
    try:
        path = Path(name).expanduser()
    except RuntimeError as error:  # ~user, but no such user exists
        raise ValueError(f"the path {shown(name)!r} starts with ~ and an unknown user name") from error
    if path.is_absolute():
        return find_file(path)
    if not Path(os.path.normpath(folder / path)).is_relative_to(os.path.normpath(root or folder)):
        raise ValueError(f"the path {shown(name)!r} leads out of {root or folder}; write it as an absolute path")
    return find_file(folder / path)


def embedded(text: str, limit: int = MAX_FILE) -> bytes | None:
    """Return the bytes of an image that is given as a data URI or plain base64; None for any other text.

    Raises ValueError if the text is damaged, holds more than `limit` bytes, or is long base64 that holds no image.
    """
    if len(text) > limit * 3 // 2:
        raise ValueError(f"the text {shown(text)!r} is too long: an image in base64 may have at most {limit >> 20} MB")
    uri = DATA_URI.match(text)
    if uri is None and not BASE64.fullmatch(text):
        return None
    body = re.sub(r"\s+", "", text[uri.end() :] if uri else text).translate(str.maketrans("-_", "+/")).rstrip("=")
    try:
        data = base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        if uri is None:
            return None
        raise ValueError(f"the data URI is not valid base64: {shown(text)!r}") from error
    if uri or data.startswith(SIGNATURES) or data[8:12] == b"WEBP" or data[4:8] == b"ftyp":
        return data
    if len(text) > 512:  # longer than any file path
        raise ValueError(f"this looks like base64 but holds no image: {shown(text)!r}")
    return None


def shown(value: object, most: int = SHOWN) -> str:
    """Format a value for a message: on one line, control characters escaped, cut to `most` characters."""
    text = re.sub(r"[\n\r\t]", " ", str(value))
    text = text if len(text) <= most else text[: most - 3] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)


def nfc(name: str) -> str:
    """Return the NFC form of a name, for comparisons: macOS may store names in NFD."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def find_file(path: Path) -> Path:
    """Return the existing file at `path`, even if its name has another Unicode form; `path` if no such file exists."""
    with suppress(OSError, ValueError, KeyError):
        if str(path).isascii() or path.exists():
            return path
        existing = Path(path.anchor)
        for part in path.parts[1:] if path.anchor else path.parts:
            if not (existing / part).exists():
                part = _names(existing, existing.stat().st_mtime_ns)[nfc(part)]
            existing /= part
        return existing
    return path


@lru_cache(16)
def _names(folder: Path, changed: int) -> dict[str, str]:
    """Map NFC file names to names on disk. changed: the folder's mtime, so that a changed folder is read again."""
    return {nfc(name): name for name in os.listdir(folder)}


@cache
def formats() -> tuple[str, ...]:
    """Return the FORMATS that the installed Pillow reads."""
    from PIL import Image

    Image.init()
    return tuple(kind for kind in FORMATS if kind in Image.OPEN)


@cache
def image_suffixes() -> frozenset[str]:
    """Return the file suffixes of `formats()`, in lower case."""
    from PIL import Image

    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in formats())


def is_image_name(name: str) -> bool:
    """True if the name has the suffix of an image format, even of one that Pillow cannot read."""
    suffix = Path(name).suffix.lower()
    return suffix in image_suffixes() or suffix in FOREIGN
