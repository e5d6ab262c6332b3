"""Files written whole or not at all, JSON, and names that are safe as folders."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefkit.errors import StoreError, UsageError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
LONGEST_NAME = 100  # file systems allow 255 bytes, and NAME-flipped and the like must fit too
RESERVED = re.compile(r"con|prn|aux|nul|(com|lpt)[0-9]", re.IGNORECASE)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Replace `path` by `data` at once or not at all. Raises StoreError (disk full, no permission)."""

    def save(temporary: Path) -> None:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)

    write_whole(path, save)


def write_whole(path: Path, save: Callable[[Path], Any]) -> None:
    """Let `save` write a temporary file beside `path`, flush it to disk, and rename it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
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


def read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        if not isinstance(found, dict):
            raise ValueError("it holds no object")
        return found
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path} could not be read: {error}. Restore it, or remove it to have it made anew."
        ) from error


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, default=str) + "\n")


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
