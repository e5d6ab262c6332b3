"""Replace folders atomically, and only if prefkit wrote every file in them."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefkit.errors import StoreError, UsageError
from prefkit.store.checksums import write_manifest
from prefkit.store.litter import remove, sweep_beside, temporary_beside

#: files that file managers create in any folder
LITTER = (".DS_Store", "Thumbs.db", "desktop.ini")
#: name that an NFS client gives to a removed file that is still open
REMOVED = re.compile(r"\.nfs[0-9a-f]{8,}")
PAIR_FILE = re.compile(r"spec\.json|audit\.json|README\.md|((ties|lists)/)?[^/]+/part-\d+\.parquet")


def swap(new: Path, folder: Path) -> None:
    """Rename the folder `new` to `folder`, replacing it. On failure, restores the old `folder` and raises OSError."""
    old = temporary_beside(folder)
    with suppress(FileNotFoundError):
        os.replace(folder, old)
    try:
        os.replace(new, folder)
    except OSError:
        with suppress(FileNotFoundError):
            os.replace(old, folder)
        raise
    remove(old)


class whole_folder:
    """Context manager that yields a temporary folder and, if no error occurs, renames it to `path`, replacing `path`.

    manifest: add prefkit-checksums.json, with a checksum for every file. Raises StoreError if writing fails.
    """

    def __init__(self, path: Path, manifest: bool = True) -> None:
        self.path, self.temporary, self.manifest = path, temporary_beside(path), manifest

    def __enter__(self) -> Path:
        try:
            sweep_beside(self.path)
            self.temporary.mkdir(parents=True)
        except OSError as error:
            raise self._refused(error) from error
        return self.temporary

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        import safetensors

        try:
            if isinstance(error, (OSError, safetensors.SafetensorError)):
                raise self._refused(error) from error
            if kind is None:
                self._swap()
        finally:
            shutil.rmtree(self.temporary, ignore_errors=True)

    def _swap(self) -> None:
        if self.manifest:
            write_manifest(self.temporary)
        try:
            for file in self.temporary.rglob("*"):
                if file.is_file():
                    with open(file, "rb") as handle:
                        os.fsync(handle.fileno())
            swap(self.temporary, self.path)
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> StoreError:
        text = getattr(error, "strerror", None) or error
        return StoreError(f"{self.path} could not be written: {text}. Previously stored data is intact.")


def _is_litter(name: str) -> bool:
    return name in LITTER or REMOVED.fullmatch(name) is not None


def files_in(folder: Path) -> list[str]:
    """Return the sorted relative paths of all files under `folder` except LITTER and REMOVED. Links count as files."""
    paths = []
    for root, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(root, name))]
        paths += [Path(root, name).relative_to(folder).as_posix() for name in (*files, *links) if not _is_litter(name)]
    return sorted(paths)


def inventory(folder: Path) -> dict[str, list[int]]:
    """Return {relative path: [size, modification time in ns]} for all files under `folder`."""
    status = {name: os.lstat(folder / name) for name in files_in(folder)}
    return {name: [s.st_size, s.st_mtime_ns] for name, s in status.items()}


def first_foreign_file(folder: Path, written: Mapping[str, list[int]]) -> str | None:
    """Return the first file that is new or changed compared with the inventory `written`; None if there is none."""
    return next((name for name, status in inventory(folder).items() if written.get(name) != status), None)


def refuse_foreign_files(folder: Path, is_ours: Callable[[str], object], remedy: str) -> None:
    """Raise UsageError if `folder` contains a file for which `is_ours(relative path)` is false."""
    for name in files_in(folder) if folder.is_dir() else ():
        if not is_ours(name):
            raise UsageError(f"{folder} would be replaced, but prefkit did not write the file {name} in it. {remedy}")


def check_pairs(folder: Path) -> None:
    """Raise UsageError if `folder`, a run's pairs/NAME, contains a file that prefkit did not write."""
    refuse_foreign_files(folder, PAIR_FILE.fullmatch, "Move that file elsewhere, or choose another name for the pairs.")
