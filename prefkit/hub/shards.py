"""Parquet shards with images, streamed: row groups of bounded size, image bytes neither compressed nor in dictionaries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.store import write_atomic

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

ROW_GROUP_BYTES = 64 << 20
ROW_GROUP_ROWS = 10_000
SHARD_BYTES = 400 << 20


class Shards:
    """FOLDER/PREFIX00000.parquet and so on. `put` takes a row and how many bytes its images have."""

    def __init__(self, folder: Path, prefix: str, schema: pa.Schema) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.prefix, self.schema = folder, prefix, schema
        self.rows: list[Mapping[str, Any]] = []
        self.size = self.written = self.number = self.count = 0
        self.writer: pq.ParquetWriter | None = None

    def put(self, row: Mapping[str, Any], size: int) -> None:
        self.rows.append(row)
        self.size += size
        self.count += 1
        if self.size >= ROW_GROUP_BYTES or len(self.rows) >= ROW_GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self.rows:
            return
        if self.writer is None:
            leaves = [_leaf(path, self.schema) for path in _leaves(self.schema)]
            heavy = {path for path, binary in leaves if binary}
            self.writer = pq.ParquetWriter(
                self.folder / f"{self.prefix}{self.number:05d}.parquet",
                self.schema,
                compression={path: "NONE" if path in heavy else "snappy" for path, _ in leaves},
                use_dictionary=[path for path, _ in leaves if path not in heavy],
                write_page_index=True,
                write_page_checksum=True,
            )
        table = pa.Table.from_pylist([dict(row) for row in self.rows], schema=self.schema)
        self.writer.write_table(table, row_group_size=len(self.rows))
        self.written += self.size
        self.rows, self.size = [], 0
        if self.written >= SHARD_BYTES:
            self._end()

    def _end(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer, self.written, self.number = None, 0, self.number + 1

    def close(self) -> None:
        self._flush()
        self._end()


def _leaves(schema: pa.Schema) -> list[str]:
    """Dotted names of the Parquet columns of a schema."""
    import pyarrow.parquet as pq
    from pyarrow import BufferOutputStream

    sink = BufferOutputStream()
    with pq.ParquetWriter(sink, schema):
        pass
    found = pq.ParquetFile(sink.getvalue()).schema
    return [found.column(i).path for i in range(len(found))]


def _leaf(path: str, schema: pa.Schema) -> tuple[str, bool]:
    """(column, whether it holds image bytes)"""
    import pyarrow as pa

    top = schema.field(path.split(".")[0]).type
    return path, pa.types.is_binary(top) or path.endswith(".bytes")


def card(folder: Path, title: str, text: str, files: Sequence[tuple[str, str]]) -> None:
    """README.md with what `load_dataset` needs. files: (split, glob)."""
    import yaml

    data = [{"split": split, "path": path} for split, path in files]
    head = yaml.safe_dump({"configs": [{"config_name": "default", "data_files": data}]}, sort_keys=False)
    write_atomic(folder / "README.md", f"---\n{head}---\n\n# {title}\n\n{text}\n")
