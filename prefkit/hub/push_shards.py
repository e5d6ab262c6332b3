"""Parquet shards as the Hub's viewer and old trainers want them: small row groups, image bytes as they are, and the
same bytes for the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

#: bytes of binary columns in a row group (the viewer refuses groups above 286 MiB) and in a file
ROW_GROUP_BYTES = 64 << 20
SHARD_BYTES = 400 << 20
ROW_GROUP_ROWS = 50_000


class Shards:
    """Writes FOLDER/part-00000.parquet and on, created with the first row. `rows` counts what was put."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        import pyarrow as pa

        self.folder, self.schema = folder, schema.remove_metadata()
        self.binary = [f.name for f in schema if pa.types.is_binary(f.type) or pa.types.is_large_binary(f.type)]
        self.waiting: list[dict[str, Any]] = []
        self.size = self.written = self.number = self.rows = 0
        self.writer: Any = None

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self._flush()
        self._end()

    def put(self, row: dict[str, Any]) -> None:
        size = sum(len(row[name] or b"") for name in self.binary)
        if self.waiting and self.size + size > ROW_GROUP_BYTES:
            self._flush()
        self.waiting.append(row)
        self.size += size
        self.rows += 1
        if len(self.waiting) >= ROW_GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if not self.waiting:
            return
        if self.writer is None:
            self.writer = self._open()
        table = pa.Table.from_pylist(self.waiting, schema=self.schema)
        self.writer.write_table(table, row_group_size=len(self.waiting))
        self.written += self.size
        self.waiting, self.size = [], 0
        if self.written >= SHARD_BYTES:
            self._end()

    def _open(self) -> Any:
        import pyarrow.parquet as pq

        self.folder.mkdir(parents=True, exist_ok=True)
        scalar: Any = [name for name in self.schema.names if name not in self.binary]
        return pq.ParquetWriter(
            self.folder / f"part-{self.number:05d}.parquet",
            self.schema,
            compression={name: "NONE" if name in self.binary else "snappy" for name in self.schema.names},
            use_dictionary=scalar,
            write_statistics=scalar,
            write_page_index=True,
            write_page_checksum=True,
        )

    def _end(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer, self.written, self.number = None, 0, self.number + 1
