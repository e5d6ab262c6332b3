"""Names and ids that are compared: in Unicode's composed form (NFC), since some systems write é as two characters."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from prefkit.paths import nfc


def id_text(value: Any) -> str:
    """An id as text: 7 and 7.0 are '7' (a column of whole numbers with gaps holds floats), '007' stays '007'."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return nfc(str(value))


def find_file(path: Path) -> Path:
    """`path`, or what has the same name on disk in another Unicode form; `path` itself where neither exists."""
    with suppress(OSError, ValueError):
        if str(path).isascii() or path.exists():
            return path
        found = Path(path.anchor)
        for part in path.parts[1:] if path.anchor else path.parts:
            if not (found / part).exists():
                part = _listing(found, found.stat().st_mtime_ns)[nfc(part)]
            found /= part
        return found
    return path


class _Listing(dict[str, str]):
    def __missing__(self, name: str) -> str:
        raise FileNotFoundError(name)


@lru_cache(16)
def _listing(folder: Path, changed: int) -> _Listing:
    """Composed name -> name on disk. changed: the folder's time, so that an outdated listing is not used."""
    return _Listing({nfc(name): name for name in os.listdir(folder)})
