"""Checksums that reveal a changed byte when a stored file is read.

JSON         the key `checksum`, computed from all other keys (see files.py)
JSON lines   a CRC-32 at the end of each line (see files.py)
folders      prefkit-checksums.json, with the SHA-256 of every file in a folder that is written atomically
others       Parquet: see seal.py; safetensors: see tensors.py

A file without a checksum was written by an earlier version or by another program, and is not checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from prefkit.errors import DamagedError
from prefkit.store.files import read_json, write_json

MANIFEST = "prefkit-checksums.json"


def file_sum(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path) -> None:
    """Write prefkit-checksums.json, which lists the SHA-256 of every file in `folder`. Raises StoreError."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    write_json(folder / MANIFEST, {"files": {path.relative_to(folder).as_posix(): file_sum(path) for path in paths}})


def check_folder(folder: Path, remedy: str, sum_of: Callable[[Path], str] = file_sum) -> None:
    """Check that every file listed in prefkit-checksums.json exists and that `sum_of(file)` equals the listed SHA-256.

    Raises DamagedError naming the first file that fails. A folder without prefkit-checksums.json passes.
    """
    path = folder / MANIFEST
    for name, wanted in read_json(path, remedy)["files"].items() if path.exists() else ():
        file = folder / name
        try:
            actual = sum_of(file)
        except OSError as error:
            raise DamagedError(file, f"{file} could not be read: {error.strerror or error}. {remedy}") from error
        if actual != wanted:
            raise DamagedError(file, f"{file} is damaged: its checksum does not match. {remedy}")
