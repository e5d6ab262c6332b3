"""Folders that several machines write to without locks: whose work an id is, and when all see the same files.

A network file system keeps every file whole and every rename and hard link atomic, but may list another machine's new
files up to a minute late.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from prefkit.errors import StoreError

LATE = 180.0  # seconds within which a file system must list a file that another machine has written


def owner(key: str, count: int) -> int:
    """Return which of `count` processes owns `key`."""
    return int.from_bytes(sha256(key.encode("utf-8", "surrogatepass")).digest()[:8], "big") % count


def see(folder: Path, gather: Callable[[Any], list[Any]], broadcast: Callable[[Any], Any]) -> None:
    """Wait until every process of a launch lists the parts of a table that any process lists.

    gather, broadcast: those of the launch's Group. Raises StoreError in all processes after LATE seconds.
    """
    names = gather([path.name for path in folder.glob("part-*.parquet")])
    wanted = {name for own in names for name in own}
    end, pause = time.monotonic() + LATE, 0.05
    while missing := [name for name in gather(_unlisted(folder, wanted)) if name]:
        if broadcast(time.monotonic() > end):
            raise StoreError(
                f"a process does not see {folder / missing[0]}, which another process has written. All machines of a "
                "launch must share the run folder."
            )
        time.sleep(pause)
        pause = min(2 * pause, 2.0)


def _unlisted(folder: Path, names: set[str]) -> str | None:
    """Return the first of `names` that `folder` does not list, not even as NAME.damaged; None if it lists all."""
    return min(names - {path.name.removesuffix(".damaged") for path in folder.glob("part-*")}, default=None)
