"""Folders written whole or not at all."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefkit.errors import StoreError
from prefkit.store.checksums import write_manifest
from prefkit.store.litter import remove, sweep_beside, temporary_beside


def swap(new: Path, folder: Path) -> None:
    """Put the folder `new` in the place of `folder`, which may be there. Raises OSError; then `folder` is as it was."""
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
    """with whole_folder(path) as temporary: fill `temporary`; at the end it is flushed and becomes `path`, or nothing is.

    What was at `path` is replaced. manifest: add prefkit-checksums.json, with a checksum of every file. Raises StoreError where
    the disk refuses.
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
        except OSError as failure:
            raise self._refused(failure) from failure

    def _refused(self, error: Exception) -> StoreError:
        text = getattr(error, "strerror", None) or error
        return StoreError(f"{self.path} could not be written: {text}. What was stored before is intact.")
