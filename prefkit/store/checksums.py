"""Checksums of stored files, which are verified when a file is read.

JSON         the key `checksum`, computed from all other keys (see files.py)
JSON lines   a CRC-32 at the end of each line (see files.py)
folders      prefkit-checksums.json, with the SHA-256 of every file in the folder
others       Parquet: see seal.py; safetensors: see tensors.py

Files without a checksum (from another program or an earlier version) are not checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from prefkit.errors import DamagedError
from prefkit.store.files import read_json, unreadable, write_json

MANIFEST = "prefkit-checksums.json"


def file_sum(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path) -> None:
    """Write `folder`/prefkit-checksums.json with the SHA-256 of every file in the folder. Raises StoreError."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    write_json(folder / MANIFEST, {"files": {path.relative_to(folder).as_posix(): file_sum(path) for path in paths}})


def check_folder(folder: Path, remedy: str, sum_of: Callable[[Path], str] = file_sum) -> None:
    """Raise DamagedError if a file listed in prefkit-checksums.json is missing, or its SHA-256 has changed.

    A folder without prefkit-checksums.json passes. sum_of: a function that returns a file's SHA-256.
    """
    path = folder / MANIFEST
    for name, wanted in read_json(path, remedy)["files"].items() if path.exists() else ():
        file = folder / name
        try:
            actual = sum_of(file)
        except OSError as error:
            raise unreadable(file, error, remedy) from error
        if actual != wanted:
            raise DamagedError(file, f"{file} is damaged: its checksum does not match. {remedy}")
