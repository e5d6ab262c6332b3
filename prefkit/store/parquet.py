"""Read Parquet files with images a few rows at a time, and write them as shards that the Hub's viewer can show.

The row groups of a shard have a bounded size (the viewer refuses more than 286 MiB). Image bytes are stored without
compression, dictionaries and statistics. Equal rows give byte-identical shards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.store.seal import open_sealed, seal

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

#: limits of a shard: image bytes per row group, bytes per file, and rows per row group
ROW_GROUP_BYTES = 64 << 20
SHARD_BYTES = 400 << 20
ROW_GROUP_ROWS = 10_000
READ_ROWS = 16
#: bytes read at a time; row groups that other programs wrote may have gigabytes
READ_BYTES = 1 << 20


def read_rows(path: Path, columns: Sequence[str] | None = None, at_once: int = READ_ROWS) -> Iterator[dict[str, Any]]:
    """Verify a file's checksums and yield its rows as dicts, reading `at_once` rows at a time.

    columns: the columns to read (None: all); columns that the file lacks are ignored. Raises pyarrow's ArrowException
    or OSError if the file is damaged, possibly after some rows.
    """
    with open_sealed(path, columns, pre_buffer=False, buffer_size=READ_BYTES) as file:
        wanted = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
        for batch in file.iter_batches(at_once, columns=wanted):
            yield from batch.to_pylist()


class Shards:
    """Writes rows to FOLDER/PREFIX00000.parquet, PREFIX00001.parquet, ...; `rows` counts the rows so far.

    The folder is created with the first file. repeated: columns with repeated values, which are encoded with a
    dictionary (None: all columns without image bytes).
    """

    def __init__(
        self, folder: Path, schema: pa.Schema, prefix: str = "part-", repeated: Sequence[str] | None = None
    ) -> None:
        leaves = _leaves(schema)
        self.folder, self.schema, self.prefix = folder, schema, prefix
        self.heavy = {name for name, heavy in leaves.values() if heavy}
        scalar = [path for path, (_, heavy) in leaves.items() if not heavy]
        self.options: dict[str, Any] = {
            "compression": {path: "NONE" if heavy else "snappy" for path, (_, heavy) in leaves.items()},
            "use_dictionary": scalar if repeated is None else [path for path in scalar if path in repeated],
            "write_statistics": scalar,
        }
        self.waiting: list[Mapping[str, Any]] = []
        self.size = self.written = self.number = self.rows = 0
        self.writer: pq.ParquetWriter | None = None
        self.path = folder

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self.close()
        else:
            self._end()

    def put(self, row: Mapping[str, Any]) -> None:
        size = sum(weight(row.get(name)) for name in self.heavy)
        if self.waiting and self.size + size > ROW_GROUP_BYTES:
            self._flush()
        self.waiting.append(row)
        self.size += size
        self.rows += 1
        if len(self.waiting) >= ROW_GROUP_ROWS:
            self._flush()

    def write(self, table: pa.Table) -> None:
        """Write a table with the shards' schema as one row group."""
        self.rows += len(table)
        self._write(table)

    def _flush(self) -> None:
        import pyarrow as pa

        if self.waiting:
            table = pa.Table.from_pylist([dict(row) for row in self.waiting], schema=self.schema)
            self.waiting, self.size = [], 0
            self._write(table)

    def _write(self, table: pa.Table) -> None:
        import pyarrow.parquet as pq

        if self.writer is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.path = self.folder / f"{self.prefix}{self.number:05d}.parquet"
            checks = {"write_page_index": True, "write_page_checksum": True}
            self.writer = pq.ParquetWriter(self.path, self.schema, **self.options, **checks)
        self.writer.write_table(table.cast(self.schema), row_group_size=len(table))
        self.written += table.nbytes
        if self.written >= SHARD_BYTES:
            self._end()

    def _end(self) -> None:
        if self.writer is not None:
            self.writer.close()
            seal(self.path)
            self.writer, self.written, self.number = None, 0, self.number + 1

    def close(self) -> None:
        self._flush()
        self._end()


def weight(value: Any) -> int:
    """Return the total length of the bytes values in a cell, including those in structs and lists."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(weight, value.values()))
    return sum(map(weight, value)) if isinstance(value, (list, tuple)) else 0


def _leaves(schema: pa.Schema) -> dict[str, tuple[str, bool]]:
    """Return {dotted name of a Parquet column: (name of the top-level column, True if it holds bytes)}."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema):
        pass
    columns = pq.ParquetFile(sink.getvalue()).schema
    return {
        c.path: (c.path.split(".")[0], c.physical_type == "BYTE_ARRAY" and c.logical_type.type == "NONE")
        for c in map(columns.column, range(len(columns)))
    }


def feature_dtype(kind: Any) -> str:
    """Return the dtype by which the metadata of a dataset card names an Arrow type; bytes are images."""
    import pyarrow as pa

    return "image" if pa.types.is_binary(kind) else {"double": "float64"}.get(str(kind), str(kind))
