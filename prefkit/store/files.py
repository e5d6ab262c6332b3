"""Write files atomically, read and write JSON with checksums, and check names of folders."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefkit.errors import DamagedError, StoreError, UsageError
from prefkit.output import message, warn
from prefkit.store.litter import remove, temporary_beside

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
LONGEST_NAME = 100  # file systems allow 255 bytes, and prefkit adds endings such as -flipped
RESERVED = re.compile(r"con|prn|aux|nul|(com|lpt)[0-9]", re.IGNORECASE)
CHECKSUM = "checksum"
#: a value of this form is a checksum, even if damage has changed its key
SUM = re.compile(r"sha256:[0-9a-f]{64}")
#: a JSON line with a checksum, {..., "crc": "8 hexadecimal digits"}, which is the CRC-32 of the line without this key
SEALED_LINE = re.compile(rb'(\{.*), "crc": "([0-9a-f]{8})"\}', re.DOTALL)
#: errors of os.link on file systems without hard links
NO_LINKS = (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
#: errors of a file system that cannot be reached or lacks resources, after which the content of a file is unknown, not damaged
PASSING = frozenset(
    number
    for name in (
        *("EMFILE", "ENFILE", "ENOMEM", "ENOBUFS", "EAGAIN", "EINTR", "EBUSY", "ENOLCK"),
        *("EIO", "ESTALE", "ETIMEDOUT", "ENOTCONN", "EREMOTEIO", "ENODEV", "ENXIO", "ESHUTDOWN"),
        *("EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ECONNRESET", "ECONNREFUSED", "ECONNABORTED"),
    )
    if (number := getattr(errno, name, None)) is not None
)
UNSEEN = 90.0  # seconds until a client of a network file system must see a file that another client has written
#: subfolder of a run folder -> the command that fills it
COMMANDS = {
    "candidates": "generate",
    "scores": "score",
    "comparisons": "compare",
    "image_stats": "pair",
    "pairs": "pair",
    "train": "train",
    "eval": "eval",
    ".imports": "import",
}


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write `data` to `path` completely or not at all. Raises StoreError (disk full, no permission)."""
    write_whole(path, lambda temporary: temporary.write_bytes(utf8(data) if isinstance(data, str) else data))


def write_whole(path: Path, save: Callable[[Path], Any]) -> None:
    """Write `path` atomically: `save` writes a temporary file, which is flushed and renamed. Raises StoreError."""

    def publish(temporary: Path) -> None:
        save(temporary)
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)

    _through_temporary(path, publish)


def _through_temporary(path: Path, act: Callable[[Path], Any]) -> None:
    """Call `act` with the name of a temporary file beside `path`, which is removed afterwards. Raises StoreError."""
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        act(temporary)
    except OSError as error:
        raise StoreError(
            f"{path} could not be written: {error.strerror or error}. Previously stored data is intact."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def utf8(text: str) -> bytes:
    """Encode text as UTF-8. Surrogates that stand for undecodable bytes in a path become these bytes again."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a prompt contains an unpaired surrogate
        return text.encode("utf-8", "replace")


def read_text(path: Path, remedy: str = "") -> str:
    """Read a UTF-8 file. Raises StoreError if permission is denied, DamagedError for any other failure."""
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error, remedy or remedy_for(path)) from error


def unreadable(path: Path, error: Exception, remedy: str) -> StoreError:
    """Return the error for a file that could not be read: a DamagedError unless permission or the file system failed."""
    text = f"{path} could not be read: {message(str(error) or type(error).__name__, 160).rstrip('.')}."
    if isinstance(error, PermissionError):
        return StoreError(f"{path} could not be read: {error.strerror}. Give yourself permission to read it.")
    if getattr(error, "errno", None) in PASSING:
        return StoreError(f"{text} The file system failed; run the same command again. If the error remains: {remedy}")
    return DamagedError(path, f"{text} {remedy}")


def read_json(path: Path, remedy: str = "") -> dict[str, Any]:
    """Return the JSON object in `path`, without its checksum. Raises DamagedError for invalid JSON or a wrong checksum.

    remedy: a sentence that says how to repair the file; default: which command writes it again.
    """
    remedy = remedy or remedy_for(path)
    try:
        value = json.loads(read_text(path, remedy))
        if not isinstance(value, dict):
            raise ValueError("it does not contain a JSON object")
    except (ValueError, RecursionError) as error:
        raise DamagedError(path, f"{path} could not be read: {error}. {remedy}") from error
    keys = [k for k, v in value.items() if k == CHECKSUM or (isinstance(v, str) and SUM.fullmatch(v))]
    sums = [value.pop(key) for key in keys]
    if sums and sums != [json_sum(value)]:
        raise DamagedError(
            path,
            f"{path} does not match its checksum: it is damaged, or was edited by hand. {remedy} To keep a manual "
            f"edit, delete the key `{CHECKSUM}` from the file.",
        )
    return value


def sound_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON file that can be rebuilt. If it is missing or damaged, return None; a damaged file is renamed."""
    if not path.exists():
        return None
    try:
        return read_json(path)
    except DamagedError as error:
        warn(f"{path} is damaged ({error}). It was renamed to {set_aside(path).name} and will be rebuilt.")
        return None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object with a checksum that `read_json` verifies. Raises StoreError."""
    plain = json.loads(utf8(dump_json(value)).decode("utf-8", "replace"))
    write_atomic(path, dump_json(plain | {CHECKSUM: json_sum(plain)}))


def create_json(path: Path, value: Mapping[str, Any]) -> bool:
    """Write a JSON object unless `path` exists; return True if this call wrote it. Raises StoreError."""
    plain = json.loads(utf8(dump_json(value)).decode("utf-8", "replace"))
    data = utf8(dump_json(plain | {CHECKSUM: json_sum(plain)}))
    return create_whole(path, lambda temporary: temporary.write_bytes(data))


def create_whole(path: Path, save: Callable[[Path], Any]) -> bool:
    """Write `path` as `write_whole` does unless it exists; return True if this call wrote it. Raises StoreError.

    Of several processes, also on different machines that share the folder, one writes the file: a hard link is made
    completely or not at all, and fails if the name exists. Without hard links, the last of several processes wins.
    """
    written = False

    def publish(temporary: Path) -> None:
        nonlocal written
        save(temporary)
        written = _linked(temporary, path)

    _through_temporary(path, publish)
    if not written:  # the name exists, but the directory may be cached without it
        seen_within(UNSEEN, path.exists)
    return written


def _linked(temporary: Path, path: Path) -> bool:
    """Give `temporary` the name `path` too, unless that exists. Returns False if it exists."""
    with open(temporary, "rb") as handle:
        os.fsync(handle.fileno())
    try:
        os.link(temporary, path)
    except FileExistsError:  # or a lost reply of a network file system, which then repeated the request
        return temporary.stat().st_nlink == 2
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if path.exists():
            return False
        os.replace(temporary, path)
    return True


def seen_within(seconds: float, seen: Callable[[], bool]) -> bool:
    """Wait up to `seconds` until `seen()` is true, and return its last value."""
    end, pause = time.monotonic() + seconds, 0.01
    while not (found := seen()) and time.monotonic() < end:
        time.sleep(pause)
        pause = min(2 * pause, 1.0)
    return found


def dump_json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, default=str) + "\n"


def json_sum(value: Mapping[str, Any]) -> str:
    """Return the checksum of a JSON object that json.loads returned."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def dump_line(row: Mapping[str, Any]) -> str:
    """Return a non-empty row as a JSON line with a checksum that `read_lines` verifies."""
    text = json.dumps(dict(row))
    return f'{text[:-1]}, "crc": "{zlib.crc32(text.encode()):08x}"}}\n'


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON lines file without their checksums; [] if the file does not exist.

    Skips damaged lines with a warning, and an incomplete last line (of a killed process) silently. Raises StoreError if
    the file cannot be read.
    """
    try:
        *lines, _ = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"{path} could not be read: {error.strerror or error}. Restore or remove the file.") from error
    rows = [_parse_line(line) for line in lines]
    damaged = [number for number, row in enumerate(rows, 1) if row is None]
    if damaged:
        warn(f"{path}: skipped damaged lines: {', '.join(map(str, damaged[:5]))}.")
    return [row for row in rows if row is not None]


def _parse_line(line: bytes) -> dict[str, Any] | None:
    sealed = SEALED_LINE.fullmatch(line)
    if sealed:
        line = sealed[1] + b"}"
        if zlib.crc32(line) != int(sealed[2], 16):
            return None
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def remedy_for(path: Path) -> str:
    """Return a sentence that says how to repair `path`, a damaged file in a run folder."""
    verb = next((COMMANDS[part] for part in reversed(path.parent.parts) if part in COMMANDS), None)
    again = f"run `prefkit {verb}` again" if verb else "run the command that wrote it again"
    return f"Restore it, or remove it and {again}."


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder to NAME.damaged, replacing an earlier NAME.damaged, and return the new path."""
    damaged = path.with_name(f"{path.name}.damaged")
    with suppress(FileNotFoundError):  # another process has renamed it
        try:
            os.replace(path, damaged)
        except OSError:  # an earlier NAME.damaged is a folder, or this is a folder
            if not path.exists():
                return damaged
            remove(damaged)
            os.replace(path, damaged)
    return damaged


def unusable_name(name: str) -> str | None:
    """Return why `name` cannot be a folder name on all file systems; None if it can."""
    shown = repr(name if len(name) <= 60 else name[:57] + "...")
    if not NAME.fullmatch(name):
        return f"{shown} cannot be a name: use letters, digits, dot, dash and underscore; start with a letter or digit"
    if len(name) > LONGEST_NAME:
        return f"{shown} cannot be a name: it has {len(name)} characters, and at most {LONGEST_NAME} are allowed"
    if RESERVED.fullmatch(name.partition(".")[0]) or name.endswith("."):
        return f"{shown} cannot be a name: Windows does not allow a folder with this name. Choose another name"
    return None


def checked(name: str) -> str:
    """Return `name`. Raises UsageError if it cannot be a folder name on all file systems."""
    if reason := unusable_name(name):
        raise UsageError(f"{reason}.")
    return name
