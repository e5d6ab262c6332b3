"""Checksums inside a Parquet file, in a block between data and footer that Parquet readers skip.

Parquet's page checksums cover neither page headers nor the footer, where a changed bit can drop rows or change values.
The block holds the SHA-256 of the footer and of every column chunk with its headers, so that only columns that are read
need checking. A file without a block was written by another program and is not checked.

    data | JSON | its length, 8 bytes | MAGIC | footer | length of the footer, 4 bytes | "PAR1"
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow.parquet as pq

MAGIC = b"prefkit.sums.1\n\0"
END = 8  # bytes: length of the footer (4) and "PAR1" (4)
READ_BYTES = 1 << 20


def seal(path: Path) -> None:
    """Add the block of checksums to a Parquet file that has none. Raises OSError or pyarrow's ArrowException."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as parquet:
        spans = {f"{start}:{size}": (start, size) for _, _, start, size in _chunks(parquet.metadata)}
    with open(path, "r+b") as file:
        start, footer = _footer(file)
        sums = {"footer": _sum(footer), "chunks": {key: _span_sum(file, *span) for key, span in spans.items()}}
        block = json.dumps(sums, sort_keys=True).encode()
        file.seek(start)
        file.write(block + len(block).to_bytes(8, "little") + MAGIC + footer)


def open_sealed(path: Path, columns: Collection[str] | None = None, **options: Any) -> pq.ParquetFile:
    """Open a Parquet file after verifying the checksums of its footer and of `columns` (None: all).

    Page checksums are verified when pages are read. Raises OSError or pyarrow's ArrowException if the file is damaged.
    A file that another process replaces meanwhile is opened again.
    """
    import pyarrow as pa

    while True:
        before = _identity(path)
        try:
            return _open(path, columns, **options)
        except (pa.ArrowException, OSError):
            if _identity(path) == before:
                raise


def verify(path: Path) -> None:
    """Read a whole Parquet file and raise OSError or pyarrow's ArrowException unless it matches its checksums."""
    open_sealed(path).close()


def _identity(path: Path) -> tuple[int, int, int]:
    found = os.stat(path)
    return found.st_ino, found.st_size, found.st_mtime_ns


def _open(path: Path, columns: Collection[str] | None, **options: Any) -> pq.ParquetFile:
    import pyarrow.parquet as pq

    with open(path, "rb") as raw:
        sums, footer = _block(raw)
    if sums is not None and sums["footer"] != _sum(footer):
        raise OSError("the checksum of its footer does not match")
    file = pq.ParquetFile(path, page_checksum_verification=True, **options)
    try:
        check(path, file.metadata, columns)
    except BaseException:
        file.close()
        raise
    return file


def check(
    path: Path, metadata: pq.FileMetaData, columns: Collection[str] | None = None, group: int | None = None
) -> None:
    """Raise OSError if a column does not match its checksum. columns, group: which to check (None: all)."""
    with open(path, "rb") as file:
        sums, _ = _block(file)
        if sums is None:
            return
        for number, column, start, size in _chunks(metadata):
            wanted = (columns is None or column in columns) and group in (None, number)
            if wanted and sums["chunks"].get(f"{start}:{size}") != _span_sum(file, start, size):
                raise OSError(f"the checksum of column {column} does not match")


def _chunks(metadata: pq.FileMetaData) -> Iterator[tuple[int, str, int, int]]:
    """Yield (row group, column, first byte, number of bytes) of every column chunk with its page headers."""
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group)
        for i in range(rows.num_columns):
            chunk = rows.column(i)
            start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
            yield group, chunk.path_in_schema.split(".")[0], start, chunk.total_compressed_size


def _footer(file: IO[bytes]) -> tuple[int, bytes]:
    """Return (offset of the footer, bytes from there to the file's end). Raises OSError if there is no footer."""
    size = os.fstat(file.fileno()).st_size
    file.seek(max(0, size - END))
    end = file.read(END)
    length = int.from_bytes(end[:4], "little") + END
    if len(end) < END or length > size or end[4:] not in (b"PAR1", b"PARE"):
        raise OSError("it is not a complete Parquet file")
    file.seek(size - length)
    return size - length, file.read(length)


def _block(file: IO[bytes]) -> tuple[dict[str, Any] | None, bytes]:
    """Return (the block of checksums, None if there is none; the footer's bytes). Raises OSError if it is damaged."""
    start, footer = _footer(file)
    before = len(MAGIC) + 8
    file.seek(max(0, start - before))
    head = file.read(before)
    if start < before or head[8:] != MAGIC:
        return None, footer
    length = int.from_bytes(head[:8], "little")
    try:
        file.seek(start - before - length)
        block = json.loads(file.read(length).decode())
        return {"footer": str(block["footer"]), "chunks": dict(block["chunks"])}, footer
    except (OSError, OverflowError, ValueError, KeyError, TypeError) as error:
        raise OSError("its block of checksums is damaged") from error


def _sum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _span_sum(file: IO[bytes], start: int, size: int) -> str:
    digest = hashlib.sha256()
    file.seek(start)
    while piece := file.read(min(size, READ_BYTES)):
        digest.update(piece)
        size -= len(piece)
    return digest.hexdigest()[:32]
