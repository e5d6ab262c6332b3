"""Files written whole or not at all, JSON with a checksum, and names that are safe as folders."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefkit.errors import DamagedError, StoreError, UsageError
from prefkit.output import warn
from prefkit.store.litter import remove, temporary_beside

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
LONGEST_NAME = 100  # file systems allow 255 bytes, and NAME-flipped and the like must fit too
RESERVED = re.compile(r"con|prn|aux|nul|(com|lpt)[0-9]", re.IGNORECASE)
CHECKSUM = "checksum"
#: a changed key does not hide a checksum
SUM = re.compile(r"sha256:[0-9a-f]{64}")
#: folder of a run -> the command that fills it
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
    """Replace `path` by `data` at once or not at all. Raises StoreError (disk full, no permission)."""

    def save(temporary: Path) -> None:
        temporary.write_bytes(utf8(data) if isinstance(data, str) else data)

    write_whole(path, save)


def write_whole(path: Path, save: Callable[[Path], Any]) -> None:
    """Let `save` write a temporary file beside `path`, flush it to disk, and rename it."""
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(temporary)
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise StoreError(
            f"{path} could not be written: {error.strerror or error}. What was stored before is intact."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def utf8(text: str) -> bytes:
    """Text as it is stored. Under an ASCII locale a path holds its bytes as surrogates, which become those bytes again."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a character, in a prompt
        return text.encode("utf-8", "replace")


def read_text(path: Path, remedy: str = "") -> str:
    """UTF-8 text. Raises DamagedError naming the file, StoreError where permission is denied."""
    try:
        return path.read_bytes().decode("utf-8")
    except PermissionError as error:
        raise StoreError(f"{path} could not be read: {error.strerror}. Give yourself permission to read it.") from error
    except (OSError, UnicodeDecodeError) as error:
        text = f"{path} could not be read: {error}. {remedy or remedy_for(path)}"
        raise DamagedError(path, text) from error


def read_json(path: Path, remedy: str = "") -> dict[str, Any]:
    """A JSON object without its checksum. Raises DamagedError where it is none, or its checksum does not match.

    remedy: what to do then, as a sentence; by default the command that writes `path` again.
    """
    remedy = remedy or remedy_for(path)
    try:
        found = json.loads(read_text(path, remedy))
        if not isinstance(found, dict):
            raise ValueError("it holds no object")
    except (ValueError, RecursionError) as error:
        raise DamagedError(path, f"{path} could not be read: {error}. {remedy}") from error
    sums = [key for key, value in found.items() if key == CHECKSUM or _is_sum(value)]
    wanted = [found.pop(key) for key in sums]
    if wanted and wanted != [json_sum(found)]:
        raise DamagedError(
            path,
            f"{path} does not match its checksum: it is damaged, or was edited by hand. {remedy} To keep an edit, delete "
            f"its key `{CHECKSUM}`.",
        )
    return found


def sound_json(path: Path) -> dict[str, Any] | None:
    """A JSON object that can be made again: None where there is none, or where it is damaged and was set aside."""
    if not path.exists():
        return None
    try:
        return read_json(path)
    except DamagedError as error:
        warn(f"{path} is set aside as {set_aside(path).name}, and made again: {error}")
        return None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object with a checksum, for `read_json`. Raises StoreError."""
    plain = json.loads(utf8(dump_json(value)).decode("utf-8", "replace"))
    write_atomic(path, dump_json(plain | {CHECKSUM: json_sum(plain)}))


def dump_json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, default=str) + "\n"


def json_sum(value: Mapping[str, Any]) -> str:
    """Of a value as json.loads gives it."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _is_sum(value: Any) -> bool:
    return isinstance(value, str) and SUM.fullmatch(value) is not None


def remedy_for(path: Path) -> str:
    """What to do about a damaged file of a run."""
    verb = next((COMMANDS[part] for part in reversed(path.parent.parts) if part in COMMANDS), None)
    again = f"run `prefkit {verb}` again" if verb else "run the command that wrote it again"
    return f"Restore it, or remove it and {again}."


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder to NAME.damaged, in place of an earlier one. Another process may be quicker."""
    aside = path.with_name(f"{path.name}.damaged")
    remove(aside)
    with suppress(FileNotFoundError):
        os.replace(path, aside)
    return aside


def unusable_name(name: str) -> str | None:
    """Why a name is not safe as a folder on every file system; None where it is."""
    shown = repr(name if len(name) <= 60 else name[:57] + "...")
    if not NAME.fullmatch(name):
        return f"{shown} cannot be a name: use letters, digits, dot, dash and underscore, first a letter or digit"
    if len(name) > LONGEST_NAME:
        return f"{shown} cannot be a name: it has {len(name)} letters, and {LONGEST_NAME} are the most"
    if RESERVED.fullmatch(name.partition(".")[0]) or name.endswith("."):
        return f"{shown} cannot be a name: Windows allows no folder of that name. Choose another"
    return None


def checked(name: str) -> str:
    """A name that is safe as a folder. Raises UsageError."""
    if bad := unusable_name(name):
        raise UsageError(f"{bad}.")
    return name
