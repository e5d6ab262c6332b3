"""Folders that prefkit replaces as a whole: only where every file in them is one that it wrote."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from prefkit.errors import UsageError

#: what file managers leave behind
LITTER = (".DS_Store", "Thumbs.db", "desktop.ini")
PAIR_FILE = re.compile(r"spec\.json|audit\.json|README\.md|((ties|lists)/)?[^/]+/part-\d+\.parquet")


def files_in(folder: Path) -> list[str]:
    """The files under a folder as relative paths, in order; links count as files and are not followed."""
    found = []
    for at, folders, files in os.walk(folder):
        linked = [name for name in folders if os.path.islink(os.path.join(at, name))]
        found += [Path(at, name).relative_to(folder).as_posix() for name in (*files, *linked) if name not in LITTER]
    return sorted(found)


def inventory(folder: Path) -> dict[str, list[int]]:
    """Each file's size and time of change in nanoseconds, which renaming the folder does not change."""
    found = {name: os.lstat(folder / name) for name in files_in(folder)}
    return {name: [status.st_size, status.st_mtime_ns] for name, status in found.items()}


def stranger(folder: Path, written: Mapping[str, list[int]]) -> str | None:
    """The first file that is not in an earlier `inventory`, or has changed since."""
    return next((name for name, found in inventory(folder).items() if written.get(name) != found), None)


def refuse_strangers(folder: Path, own: Callable[[str], object], remedy: str) -> None:
    """Raises UsageError naming the first file under `folder` that prefkit did not write: `own` says which names it writes."""
    for name in files_in(folder) if folder.is_dir() else ():
        if not own(name):
            raise UsageError(f"{folder} would be replaced, but prefkit did not write {name} in it. {remedy}")


def check_pairs(folder: Path) -> None:
    """Raises UsageError where pairs/NAME holds a file of another name than prefkit gives."""
    refuse_strangers(folder, PAIR_FILE.fullmatch, "Move it elsewhere, or give the pairs another name.")
