"""Unpacking of untrusted zip and tar archives: nothing outside the folder, no links, no bombs."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from prefkit.errors import UsageError
from prefkit.types import digest

MAX_MEMBER = 1 << 30
MAX_RATIO = 200  # images hardly shrink; 1000 and more is what bombs do
FREE_RATIO_BYTES = 64 << 20  # a text file may shrink by more, as long as it stays small
MAX_MEMBERS = 20_000_000
CHUNK = 1 << 20


@dataclass
class Budget:
    """Counts what an archive unpacks to, and refuses bombs."""

    name: str
    packed: int
    written: int = 0
    members: int = 0

    def member(self, name: str) -> None:
        self.members += 1
        if self.members > MAX_MEMBERS:
            raise UsageError(f"{self.name}: more than {MAX_MEMBERS} members. Unpack it yourself and import the folder.")

    def spend(self, size: int, member: str) -> None:
        self.written += size
        if self.written > max(FREE_RATIO_BYTES, self.packed * MAX_RATIO):
            raise UsageError(
                f"{self.name}: {member} makes it unpack to more than {MAX_RATIO} times its size; it looks like a bomb. "
                "If you trust it, unpack it yourself and import the folder."
            )


def unpack(archives: Sequence[Path], folder: Path) -> None:
    """Unpack one archive, or the parts of a split tar in order, into `folder`. Raises UsageError with archive and member."""
    name = str(archives[0])
    budget = Budget(name, sum(path.stat().st_size for path in archives))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if len(archives) == 1 and zipfile.is_zipfile(archives[0]):
            _zip(archives[0], folder, budget)
        else:
            with io.BufferedReader(Joined(archives), CHUNK) as stream:
                _tar(stream, folder, budget)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, ValueError, NotImplementedError) as error:
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise UsageError(
            f"{name} is damaged or not a zip or tar archive ({text}), after {budget.members} members. Download it again."
        ) from error
    except Exception as error:
        if type(error).__module__ in ("zlib", "_lzma", "lzma"):
            raise UsageError(
                f"{name} is damaged ({error}), after {budget.members} members. Download it again."
            ) from error
        raise


def _zip(path: Path, folder: Path, budget: Budget) -> None:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            budget.member(info.filename)
            if info.is_dir():
                continue
            if info.flag_bits & 1:
                raise UsageError(
                    f"{budget.name}: {info.filename} is encrypted. Unpack it yourself and import the folder."
                )
            if (info.external_attr >> 16) & 0o170000 not in (0, 0o100000):
                raise _link(budget, info.filename)
            with archive.open(info) as source:
                _copy(source, _target(folder, info.filename, budget.name), budget, info.filename)


def _tar(stream: Any, folder: Path, budget: Budget) -> None:
    with tarfile.open(fileobj=stream, mode="r|*") as archive:
        for info in archive:
            budget.member(info.name)
            if info.isdir():
                continue
            if not info.isreg():
                raise _link(budget, info.name)
            source = archive.extractfile(info)
            assert source is not None  # a regular file
            _copy(source, _target(folder, info.name, budget.name), budget, info.name)


def _link(budget: Budget, member: str) -> UsageError:
    return UsageError(f"{budget.name}: {member} is a link or a device, which datasets do not need. Refused.")


def _target(folder: Path, name: str, archive: str) -> Path:
    """The path of a member. Raises UsageError for a name that is absolute, contains .., or is not a file name."""
    pure = PurePosixPath(name.replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts or "\0" in name or not pure.parts or ":" in pure.parts[0]:
        raise UsageError(f"{archive}: the member {name!r} would be written outside its folder. Refused.")
    return folder.joinpath(*pure.parts)


def _copy(source: IO[bytes], target: Path, budget: Budget, member: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    size = 0
    with open(target, "wb") as out:
        while chunk := source.read(CHUNK):
            size += len(chunk)
            if size > MAX_MEMBER:
                raise UsageError(f"{budget.name}: {member} is larger than {MAX_MEMBER >> 30} GB. Refused.")
            budget.spend(len(chunk), member)
            out.write(chunk)


class Joined(io.RawIOBase):
    """Several files read as one, like `cat part*`."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.remaining = list(paths)
        self.file: IO[bytes] | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self.file is None:
                if not self.remaining:
                    return 0
                self.file = self.remaining.pop(0).open("rb")
            data = self.file.read(len(buffer))
            if data:
                buffer[: len(data)] = data
                return len(data)
            self.file.close()
            self.file = None

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
        super().close()


class Unpacker:
    """The Workplace of an import: unpacks each archive once under `folder`, and counts skipped files in `left`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.left: Counter[str] = Counter()

    def leave_out(self, kind: str, count: int) -> None:
        self.left[kind] += count

    def unpacked(self, archives: Sequence[Path]) -> Path:
        target = self.folder / digest([(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in archives])
        if not target.exists():
            partial = target.with_name(target.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            unpack(archives, partial)
            os.replace(partial, target)
        return target

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
