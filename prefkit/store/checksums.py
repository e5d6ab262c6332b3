"""Checksums of what prefkit stores, so that a changed byte is noticed when a file is read.

JSON      the key `checksum`, over all other keys
folders   prefkit-checksums.json, with the SHA-256 of every file of a folder that is written as a whole
Parquet   see seal.py; safetensors: see tensors.py

Files without a checksum were written by an earlier version or by another program, and are read as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from prefkit.errors import DamagedError
from prefkit.store.files import read_json, write_json

MANIFEST = "prefkit-checksums.json"


def file_sum(path: Path) -> str:
    """SHA-256 of a file. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path) -> None:
    """Write prefkit-checksums.json of every file in `folder`. Raises StoreError."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    write_json(folder / MANIFEST, {"files": {path.relative_to(folder).as_posix(): file_sum(path) for path in paths}})


def check_folder(folder: Path, remedy: str, sum_of: Callable[[Path], str] = file_sum) -> None:
    """Compare every file that prefkit-checksums.json lists; files beside those are not looked at. sum_of: its SHA-256.

    Raises DamagedError naming the file that is missing or differs. A folder without the list passes.
    """
    path = folder / MANIFEST
    if not path.exists():
        return
    for name, wanted in read_json(path, remedy)["files"].items():
        check_file(folder / name, wanted, remedy, sum_of)


def check_file(path: Path, wanted: str, remedy: str, sum_of: Callable[[Path], str] = file_sum) -> None:
    """Raises DamagedError where the SHA-256 of `path` is not `wanted`."""
    try:
        found = sum_of(path)
    except OSError as error:
        raise DamagedError(path, f"{path} could not be read: {error.strerror or error}. {remedy}") from error
    if found != wanted:
        raise DamagedError(path, f"{path} is damaged: its checksum does not match. {remedy}")
