"""Lookup of images that a table names by path: in its folder, or in the archives of that folder."""

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
    """path("train/3.png") searches the folder of a source, then its archives, which are unpacked at the first miss.

    folder: where the user unpacked the archives, instead of the source's own folder.
    """

    def __init__(self, source: Path, folder: str | None, work: Workplace) -> None:
        self.folder = Path(folder).expanduser() if folder else source if source.is_dir() else source.parent
        self.work = work

    def path(self, name: Any, archive: str | None = None) -> Path:
        """The file of an image. Raises ValueError for an image that is missing or a name that leads out of the folder.

        archive: the archive that holds the image, in layouts that name it; its members then have bare names.
        """
        if not isinstance(name, str) or not name:
            raise ValueError("the name of an image is missing")
        pure = PurePosixPath(name.replace("\\", "/"))
        if pure.is_absolute() or ".." in pure.parts:
            raise ValueError(f"the image {shown(name)!r} leads out of {self.folder}. Refused")
        path = self._under(self.folder, pure)
        if path is None and archive is not None and (self.folder / archive).is_file():
            inside = self.work.unpacked([self.folder / archive])
            path = self._under(inside, pure) or self._under(inside, PurePosixPath(pure.name))
            path = path or self._under(inside, PurePosixPath(pure.parent.name, pure.name))
        elif path is None:
            path = next((p for inside in self.unpacked if (p := self._under(inside, pure))), None)
        if path is None:
            raise ValueError(f"the image {shown(name)} is neither under {self.folder} nor in its archives")
        return path

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
    """The archives under a folder; the parts of a split archive form one list, in order."""
    split: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        part = PART.fullmatch(path.name)
        if not path.is_file() or path.name.startswith("."):
            continue
        if ARCHIVE.search(path.name):
            split[str(path)].append(path)
        elif part:
            split[str(path.parent / part[1])].append(path)
    return list(split.values())
