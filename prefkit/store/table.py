"""A table: a folder of whole Parquet parts, and the fingerprint that says what its rows mean."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.errors import FingerprintError, StoreError
from prefkit.store.files import COMMANDS, read_json, set_aside, write_json, write_whole
from prefkit.store.litter import unique
from prefkit.store.seal import open_sealed, seal

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


class Table:
    """A folder of Parquet parts with one schema and a spec.json that says what a row means."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self.folder, self.schema = folder, schema

    def parts(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.parquet"))

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add one part. Later parts win where an id occurs twice."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not rows:
            return
        table = pa.Table.from_pylist([dict(row) for row in rows], schema=self.schema)
        binary = {f.name for f in self.schema if pa.types.is_binary(f.type)}
        compression: Any = {f.name: "NONE" if f.name in binary else "snappy" for f in self.schema}
        scalar: Any = [f.name for f in self.schema if f.name not in binary]
        path = self.folder / f"part-{time.time_ns()}-{unique()}.parquet"
        how: Any = {"use_dictionary": scalar, "write_statistics": scalar, "write_page_checksum": True}

        def save(temporary: Path) -> None:
            pq.write_table(table, temporary, compression=compression, **how)
            seal(temporary)

        write_whole(path, save)

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The parts, oldest first, with rows that later ones replaced (store/latest.py leaves them out).

        A part that cannot be read is set aside with a warning on stderr.
        """
        for path in self.parts():
            part = read_part(path, columns)
            if part is not None:
                yield part

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        import pyarrow as pa

        names = list(columns) if columns is not None else self.schema.names
        schema = pa.schema([self.schema.field(name) for name in names])
        return pa.concat_tables([schema.empty_table(), *(t.cast(schema) for t in self.batches(names))])

    def frame(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """As a DataFrame, one row per id (the latest)."""
        frame = self.read(columns).to_pandas()
        return frame.drop_duplicates("id", keep="last", ignore_index=True) if "id" in frame else frame

    def ids(self) -> set[str]:
        return set(self.read(["id"]).column("id").to_pylist())

    def spec(self) -> dict[str, Any] | None:
        path = self.folder / "spec.json"
        return read_json(path) if path.exists() else None

    def claim(self, fingerprint: Mapping[str, Any], remedy: str, *, empty: bool, write: bool = True) -> None:
        """Write what rows mean here, or refuse where the table on disk means something else.

        empty: no row has succeeded yet, so that a mended recipe or plug-in starts anew; rows of failures are dropped.
        write: False only refuses, for a dry run.
        """
        path = self.folder / "spec.json"
        if not write:
            check_fingerprint(path, fingerprint, remedy, fresh=empty, write=False)
            return
        try:
            check_fingerprint(path, fingerprint, remedy)
        except FingerprintError:
            if not empty:
                raise
            for part in self.parts():
                part.unlink(missing_ok=True)
            check_fingerprint(path, fingerprint, remedy, fresh=True)


def read_part(path: Path, columns: Sequence[str] | None = None) -> pa.Table | None:
    """A part, or None where it is damaged: then it is set aside, with a warning on stderr."""
    import pyarrow as pa

    try:
        with open_sealed(path, columns) as file:
            return file.read(columns=list(columns) if columns is not None else None)
    except PermissionError as error:
        raise StoreError(f"{path} could not be read: {error.strerror}. Give yourself the right to read it.") from error
    except (pa.ArrowException, OSError) as error:
        from prefkit.output import warn

        aside = set_aside(path)
        folders = (path.parent.parent.name, path.parent.name)
        verb = next((COMMANDS[name] for name in folders if name in COMMANDS), "run")
        warn(
            f"{path} is damaged ({' '.join(str(error).split())[:120]}); it is set aside as {aside.name}. Run the stage "
            f"that made it (`prefkit {verb}`) again: its rows count as missing."
        )
        return None


def check_fingerprint(
    path: Path, fingerprint: Mapping[str, Any], remedy: str, *, fresh: bool = False, write: bool = True
) -> None:
    """Raises FingerprintError with the keys that differ from those in `path`; writes it where there is none.

    fresh: nothing has been made under it yet (the first try failed, and was mended), so that it is replaced.
    write: False leaves the disk as it is, for a dry run.
    """
    wanted = json.loads(json.dumps(fingerprint, default=str))
    if fresh or not path.exists():
        if write:
            write_json(path, wanted)
        return
    found = read_json(path)
    keys = sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))
    if keys:
        lines = "; ".join(f"{k}: there {_brief(found.get(k))}, asked for {_brief(wanted.get(k))}" for k in keys)
        raise FingerprintError(f"{path.parent} was made with other settings ({lines}). {remedy}")


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 160 else text[:157] + "..."


def note_pace(folder: Path, items: int, seconds: float) -> None:
    """How fast this table was filled last, for the plan of the next run."""
    if items:
        write_json(folder / "pace.json", {"seconds_per_item": seconds / items})
