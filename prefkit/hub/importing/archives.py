"""zip and tar archives unpacked without trusting them: nothing outside the folder, no links, no bombs."""

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

MAX_MEMBER = 1 << 30
MAX_RATIO = 200  # images hardly shrink; 1000 and more is what bombs do
FREE_RATIO_BYTES = 64 << 20  # a text file may shrink by more, as long as it stays small
MAX_MEMBERS = 20_000_000
CHUNK = 1 << 20


@dataclass
class Budget:
    """What an archive may still unpack to."""

    name: str
    packed: int
    written: int = 0
    members: int = 0

    def member(self, name: str) -> None:
        self.members += 1
        if self.members > MAX_MEMBERS:
            raise UsageError(f"{self.name}: more than {MAX_MEMBERS} members. Unpack it yourself and give the folder.")

    def spend(self, size: int, member: str) -> None:
        self.written += size
        if self.written > max(FREE_RATIO_BYTES, self.packed * MAX_RATIO):
            raise UsageError(
                f"{self.name}: {member} makes it unpack to more than {MAX_RATIO} times its size; it looks like a bomb. "
                "If you trust it, unpack it yourself and give the folder."
            )


def unpack(archives: Sequence[Path], folder: Path) -> None:
    """Unpack into `folder`: one archive, or the parts of a split tar in order. Raises UsageError with archive and member."""
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
            f"{name} is damaged or no archive that can be read ({text}), after {budget.members} members. Fetch it again."
        ) from error
    except Exception as error:
        if type(error).__module__ in ("zlib", "_lzma", "lzma"):
            raise UsageError(f"{name} is damaged ({error}), after {budget.members} members. Fetch it again.") from error
        raise


def _zip(path: Path, folder: Path, budget: Budget) -> None:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            budget.member(info.filename)
            if info.is_dir():
                continue
            if info.flag_bits & 1:
                raise UsageError(
                    f"{budget.name}: {info.filename} is encrypted. Unpack it yourself and give the folder."
                )
            kind = (info.external_attr >> 16) & 0o170000
            if kind not in (0, 0o100000):
                raise UsageError(
                    f"{budget.name}: {info.filename} is a link or a device, which no data set needs. Refused."
                )
            target = safe(folder, info.filename, budget.name)
            with archive.open(info) as source:
                _copy(source, target, budget, info.filename)


def _tar(stream: Any, folder: Path, budget: Budget) -> None:
    with tarfile.open(fileobj=stream, mode="r|*") as archive:
        for info in archive:
            budget.member(info.name)
            if info.isdir():
                continue
            if not info.isreg():
                raise UsageError(f"{budget.name}: {info.name} is a link or a device, which no data set needs. Refused.")
            source = archive.extractfile(info)
            assert source is not None  # a regular file
            _copy(source, safe(folder, info.name, budget.name), budget, info.name)


def safe(folder: Path, name: str, archive: str) -> Path:
    """Where a member goes. Raises UsageError for a name that is absolute, climbs, or is no file name at all."""
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
    """Several files read as one, as `cat part*` would."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.left = list(paths)
        self.file: IO[bytes] | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self.file is None:
                if not self.left:
                    return 0
                self.file = self.left.pop(0).open("rb")
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
    """The Workplace of an import: archives unpacked under `folder`, each set once; `clear` removes them. `left` counts
    what the importer leaves out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.left: Counter[str] = Counter()

    def leave_out(self, kind: str, count: int) -> None:
        self.left[kind] += count

    def unpacked(self, archives: Sequence[Path]) -> Path:
        from prefkit.types import digest

        target = self.folder / digest([(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in archives])
        if not target.exists():
            partial = target.with_name(target.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            unpack(archives, partial)
            os.replace(partial, target)
        return target

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
