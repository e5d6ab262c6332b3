"""Unpacks untrusted zip and tar archives, refusing links, zip bombs and paths with .., and finds images in them."""

from __future__ import annotations

import io
import os
import re
import shutil
import tarfile
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from prefkit.errors import UsageError
from prefkit.hub.importing.records import Workplace
from prefkit.paths import shown
from prefkit.types import digest

ARCHIVE = re.compile(r"\.(zip|tar|tar\.gz|tgz|tar\.xz|tar\.bz2)$", re.I)
PART = re.compile(r"(.+\.(?:tar|tar\.gz|tgz|zip))[._-]?(?:part)?[._-]?([a-z]{1,3}|\d{1,4})$", re.I)
PLAIN = ("", "images", "train", "test", "imgs")
MAX_MEMBER = 1 << 30
MAX_RATIO = 200  # images hardly compress; bombs reach 1000 and more
FREE_RATIO_BYTES = 64 << 20  # small text files may compress better
MAX_MEMBERS = 20_000_000
CHUNK = 1 << 20
BY_HAND = "If you trust it, unpack it yourself and import the folder."
Member = tuple[str, str, Callable[[], Any]]  # name, kind (file, folder, special or encrypted), opener


@dataclass
class Budget:
    """Counts the members and bytes that an archive unpacks to, and refuses zip bombs."""

    name: str
    packed: int
    written: int = 0
    members: int = 0

    def member(self) -> None:
        self.members += 1
        if self.members > MAX_MEMBERS:
            raise UsageError(f"{self.name}: more than {MAX_MEMBERS} members. {BY_HAND}")

    def spend(self, size: int, member: str) -> None:
        self.written += size
        if self.written > max(FREE_RATIO_BYTES, self.packed * MAX_RATIO):
            raise UsageError(
                f"{self.name}: {member} makes it unpack to more than {MAX_RATIO} times its size, like a zip bomb. "
                f"{BY_HAND}"
            )


def unpack(archives: Sequence[Path], folder: Path) -> None:
    """Unpack one archive, or the parts of a split tar in order. Raises UsageError naming archive and member."""
    name = str(archives[0])
    budget = Budget(name, sum(path.stat().st_size for path in archives))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        zipped = len(archives) == 1 and zipfile.is_zipfile(archives[0])
        for member, kind, opened in _zip(archives[0]) if zipped else _tar(archives):
            budget.member()
            if kind == "encrypted":
                raise UsageError(f"{name}: {member} is encrypted. {BY_HAND}")
            if kind == "special":
                raise UsageError(f"{name} was refused: {member} is a link or a device, which datasets do not need.")
            if kind == "file":
                target = _target(folder, member, name)
                with opened() as source:
                    _copy(source, target, budget, member)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, ValueError, NotImplementedError) as error:
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise UsageError(
            f"{name} is damaged or not an archive ({text}), at member {budget.members}. Download it again."
        ) from error
    except Exception as error:
        if type(error).__module__ in ("zlib", "_lzma", "lzma"):
            where = f"after {budget.members} members"
            raise UsageError(f"{name} is damaged ({error}), {where}. Download it again.") from error
        raise


def _zip(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            regular = (info.external_attr >> 16) & 0o170000 in (0, 0o100000)
            kind = "encrypted" if info.flag_bits & 1 else "file" if regular else "special"
            yield info.filename, "folder" if info.is_dir() else kind, partial(archive.open, info)


def _tar(archives: Sequence[Path]) -> Iterator[Member]:
    with io.BufferedReader(Joined(archives), CHUNK) as stream, tarfile.open(fileobj=stream, mode="r|*") as archive:
        for info in archive:
            kind = "folder" if info.isdir() else "file" if info.isreg() else "special"
            yield info.name, kind, partial(archive.extractfile, info)


def _target(folder: Path, name: str, archive: str) -> Path:
    """Return the path to unpack a member to. Raises UsageError if its name is absolute, contains .., or is invalid."""
    pure = PurePosixPath(name.replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts or "\0" in name or not pure.parts or ":" in pure.parts[0]:
        raise UsageError(f"{archive} was refused: its member {name!r} would be written outside the folder.")
    return folder.joinpath(*pure.parts)


def _copy(source: IO[bytes], target: Path, budget: Budget, member: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    size = 0
    with open(target, "wb") as out:
        while chunk := source.read(CHUNK):
            size += len(chunk)
            if size > MAX_MEMBER:
                raise UsageError(f"{budget.name} was refused: {member} is larger than {MAX_MEMBER >> 30} GB.")
            budget.spend(len(chunk), member)
            out.write(chunk)


class Joined(io.RawIOBase):
    """A stream of several files, one after the other, like `cat part*`."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.remaining = list(paths)
        self.file: IO[bytes] | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self.file is not None or self.remaining:
            self.file = self.file or self.remaining.pop(0).open("rb")
            if data := self.file.read(len(buffer)):
                buffer[: len(data)] = data
                return len(data)
            self.file.close()
            self.file = None
        return 0

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
        super().close()


class Unpacker:
    """The `Workplace` of an import: unpacks each archive once, under `folder`, and counts skipped files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.skipped: Counter[str] = Counter()

    def leave_out(self, kind: str, count: int) -> None:
        self.skipped[kind] += count

    def unpacked(self, archives: Sequence[Path]) -> Path:
        target = self.folder / digest([(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in archives])
        if not target.exists():
            temporary = target.with_name(target.name + ".partial")
            shutil.rmtree(temporary, ignore_errors=True)
            unpack(archives, temporary)
            os.replace(temporary, target)
        return target

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True)
class ImagesOptions:
    #: folder of images that you unpacked yourself; null: the images and archives in the folder of the tables
    images: str | None = None


class Images:
    """Finds images by name in a source's folder, then in its archives, which are unpacked at the first miss.

    folder: the folder to search instead of the source's own folder, if the user unpacked the archives elsewhere.
    """

    def __init__(self, source: Path, folder: str | None, work: Workplace) -> None:
        self.folder = Path(folder).expanduser() if folder else source if source.is_dir() else source.parent
        self.work = work

    def path(self, name: Any, archive: str | None = None) -> Path:
        """Return the path of an image. Raises ValueError if it is missing, or if `name` leads out of the folder.

        archive: name of the archive that holds the image, if known; folders in `name` may be missing in the archive.
        """
        if not isinstance(name, str) or not name:
            raise ValueError("the name of an image is missing")
        pure = PurePosixPath(name.replace("\\", "/"))
        if pure.is_absolute() or ".." in pure.parts:
            raise ValueError(f"the image path {shown(name)!r} leads out of {self.folder}. Use a path inside it")
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
    """Return the archives under a folder, each as a list of its parts in order (one part unless it is split)."""
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
