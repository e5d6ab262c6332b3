"""Reads arrays from untrusted .npz files: checks the headers first, unpickles nothing, and yields single rows."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from prefkit.paths import open_regular, shown

MAX_ROW = 64 << 20  # bytes of one row, or of an array that is read whole
MAX_RATIO = 200  # largest ratio of an array's size to its compressed size
FREE_RATIO_BYTES = 64 << 20  # arrays up to this size may compress better (masks, zeros)
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError)


@dataclass(frozen=True)
class Column:
    """The header of an array. fortran: stored column by column, so that it cannot be read row by row."""

    member: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    start: int

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape[1:], dtype=object)) * self.dtype.itemsize

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


class Arrays:
    """An open .npz file, for use in a `with` block. `columns` maps the names of its arrays to their headers.

    All methods raise ValueError, with the reason, for a file that is damaged, truncated or not an .npz file.
    """

    def __init__(self, path: Path) -> None:
        self.stack = ExitStack()
        try:
            file = self.stack.enter_context(open_regular(path))
            self.zip = self.stack.enter_context(zipfile.ZipFile(file))
            members = [info for info in self.zip.infolist() if info.filename.endswith(".npy")]
            self.columns = {info.filename.removesuffix(".npy"): self._column(info) for info in members}
        except DAMAGE as error:
            self.stack.close()
            raise ValueError(f"the file is not an .npz file, or is truncated: {shown(error)}") from error
        except BaseException:
            self.stack.close()
            raise
        if not self.columns:
            raise ValueError("the file holds no arrays; write them with numpy.savez")

    def __enter__(self) -> Arrays:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def pickled(self) -> list[str]:
        """Return the names of the arrays of Python objects, which only pickle could read."""
        return [name for name, column in self.columns.items() if column.dtype.hasobject]

    def whole(self, name: str) -> np.ndarray:
        """Return a whole array. Raises ValueError if it is larger than 64 MB."""
        column = self.columns[name]
        if column.size > MAX_ROW:
            raise ValueError(f"{name} takes {column.size >> 20:,} MB; at most {MAX_ROW >> 20} MB are allowed")
        return self._read(name, column)

    def rows(self, names: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        """Yield {name: row} for each row number. Raises ValueError if the arrays differ in their number of rows."""
        counts = {name: (self.columns[name].shape or (0,))[0] for name in names}
        if len(set(counts.values())) > 1:
            raise ValueError(
                "the arrays differ in their number of rows: " + ", ".join(f"{n} {c}" for n, c in counts.items())
            )
        with ExitStack() as stack:
            readers = {name: self._rows(name, stack) for name in names}
            for number in range(next(iter(counts.values()), 0)):
                try:
                    row = {name: next(reader) for name, reader in readers.items()}
                except DAMAGE as error:
                    raise ValueError(f"the file is damaged or truncated at row {number}: {shown(error)}") from error
                yield row

    def _rows(self, name: str, stack: ExitStack) -> Iterator[np.ndarray]:
        column = self.columns[name]
        if column.fortran and len(column.shape) > 1:
            yield from self.whole(name)
            return
        if column.row_bytes > MAX_ROW:
            raise ValueError(
                f"a row of {name} takes {column.row_bytes >> 20:,} MB; at most {MAX_ROW >> 20} MB are allowed"
            )
        stream = stack.enter_context(self.zip.open(column.member))
        _exactly(stream, column.start)
        for _ in range(column.shape[0]):
            yield np.frombuffer(_exactly(stream, column.row_bytes), column.dtype).reshape(column.shape[1:])

    def _read(self, name: str, column: Column) -> np.ndarray:
        try:
            with self.zip.open(column.member) as stream:
                _exactly(stream, column.start)
                values = np.frombuffer(_exactly(stream, column.size), column.dtype)
        except DAMAGE as error:
            raise ValueError(f"{name} is damaged or truncated: {shown(error)}") from error
        return values.reshape(column.shape, order="F" if column.fortran else "C")

    def _column(self, info: zipfile.ZipInfo) -> Column:
        """Return the header of a zip member. Raises ValueError if it is invalid or states a wrong size."""
        name = shown(info.filename)
        with self.zip.open(info) as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(stream)
            column = Column(info, shape, dtype, fortran, stream.tell())
        if not dtype.hasobject and column.start + column.size != info.file_size:
            raise ValueError(f"{name} is truncated: its header states {column.size:,} bytes")
        if info.file_size > max(FREE_RATIO_BYTES, MAX_RATIO * info.compress_size):
            raise ValueError(f"{name} unpacks to more than {MAX_RATIO} times its compressed size, like a zip bomb")
        return column


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError("too few bytes")
    return data
