"""Images that a table names by path: beside it, or in the archives beside it."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from prefkit.hub.importing.records import Workplace
from prefkit.paths import shown

ARCHIVE = re.compile(r"\.(zip|tar|tar\.gz|tgz|tar\.xz|tar\.bz2)$", re.I)
PART = re.compile(r"(.+\.(?:tar|tar\.gz|tgz|zip))[._-]?(?:part)?[._-]?([a-z]{1,3}|\d{1,4})$", re.I)
PLAIN = ("", "images", "train", "test", "imgs")


class Images:
    """`path("train/3.png")`: looked for under the folder, then in what its archives hold, unpacked when first needed."""

    def __init__(self, folder: Path, work: Workplace) -> None:
        self.folder, self.work = folder, work

    def path(self, name: Any, archive: str | None = None) -> Path:
        """Raises ValueError where there is no such image, or a name that leads out of the folder.

        archive: the one that must hold it, where the layout says so; its members then have bare names.
        """
        if not isinstance(name, str) or not name:
            raise ValueError("the name of an image is missing")
        pure = PurePosixPath(name.replace("\\", "/"))
        if pure.is_absolute() or ".." in pure.parts:
            raise ValueError(f"the image {shown(name)!r} leads out of {self.folder}. Refused")
        found = self._under(self.folder, pure)
        if found is None and archive is not None and (self.folder / archive).is_file():
            inside = self.work.unpacked([self.folder / archive])
            found = self._under(inside, pure) or self._under(inside, PurePosixPath(pure.name))
            found = found or self._under(inside, PurePosixPath(pure.parent.name, pure.name))
        elif found is None:
            found = next((p for inside in self.unpacked if (p := self._under(inside, pure))), None)
        if found is None:
            raise ValueError(f"the image {shown(name)} is neither under {self.folder} nor in its archives")
        return found

    @staticmethod
    def _under(folder: Path, pure: PurePosixPath) -> Path | None:
        for inner in PLAIN:
            path = folder / inner / pure
            if path.is_file() and not path.is_symlink():
                return path
        return None

    @cached_property
    def unpacked(self) -> list[Path]:
        return [self.work.unpacked(parts) for parts in archives(self.folder)]


def archives(folder: Path) -> list[list[Path]]:
    """The archives in a folder and in its folders, the parts of a split one together and in order."""
    split: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        found = PART.fullmatch(path.name)
        if not path.is_file() or path.name.startswith("."):
            continue
        if ARCHIVE.search(path.name):
            split[str(path)].append(path)
        elif found:
            split[str(path.parent / found[1])].append(path)
    return list(split.values())
