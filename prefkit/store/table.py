"""The tables of a run: folders of Parquet files ("parts"), with a fingerprint of the settings that made their rows."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.errors import DamagedError, FingerprintError, StoreError
from prefkit.output import warn
from prefkit.store.files import COMMANDS, create_json, read_json, set_aside, unreadable, write_json, write_whole
from prefkit.store.litter import sweep, unique
from prefkit.store.seal import open_sealed, seal
from prefkit.types import Candidate, Comparison, Request, candidate_schema, comparison_schema, digest

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


NUMBERED = re.compile(r"part-(\d+)-")  # name of a part that `Table.append` has written
LATE = 180.0  # seconds within which a network file system must list a file that another machine has written


class Table:
    """A folder of Parquet parts with one schema, and spec.json with the settings that made its rows.

    Any number of processes, on any machines that share the folder, may append at the same time. Parts never change,
    except those of people's votes, which `write` and `remove` replace atomically.
    """

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self.folder, self.schema = folder, schema
        self._newest: int | None = None  # the highest number of a part that this object has listed or written
        self._claimed: dict[str, Any] | None = None  # the settings in spec.json when this object claimed the table
        self.written: list[str] = []  # names of the parts that `append` has written

    def parts(self) -> list[Path]:
        paths = sorted(self.folder.glob("part-*.parquet"))
        numbers = [int(match[1]) for path in paths if (match := NUMBERED.match(path.name))]
        self._newest = max([*numbers, self._newest or 0])
        return paths

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows as one new part. A row replaces rows with the same id in earlier parts."""
        if rows:
            self.written.append(f"part-{self._next()}-{unique()}.parquet")
            self.write(self.written[-1], rows)

    def write(self, part: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows as the part with this file name, atomically; an earlier part of this name is replaced.

        Raises StoreError if another command has moved the table away, or changed its settings, since it was claimed.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_pylist([dict(row) for row in rows], schema=self.schema)
        binary = {f.name for f in self.schema if pa.types.is_binary(f.type)}
        scalar = [f.name for f in self.schema if f.name not in binary]
        options: Any = {
            "compression": {f.name: "NONE" if f.name in binary else "snappy" for f in self.schema},
            "use_dictionary": scalar,
            "write_statistics": scalar,
            "write_page_checksum": True,
        }

        def save(temporary: Path) -> None:
            pq.write_table(table, temporary, **options)
            seal(temporary)

        if self._claimed is not None and self.spec() != self._claimed:
            raise StoreError(
                f"another command has moved or changed {self.folder} while this one was writing to it. Rows that were "
                "written before are kept; run the same command again."
            )
        write_whole(self.folder / part, save)

    def remove(self, ids: set[str]) -> None:
        """Remove the rows with these ids; each part that holds one is written again, or removed if no row is left.

        Parts that `write` has named are left: their writer replaces them.
        """
        for path in self.parts():
            part = read_part(path) if NUMBERED.match(path.name) else None
            rows = part.to_pylist() if part is not None else []
            left = [row for row in rows if row["id"] not in ids]
            if len(left) < len(rows):
                self.write(path.name, left) if left else path.unlink(missing_ok=True)

    def _next(self) -> int:
        """Return the number of a new part: the time in ns, but above all parts that were read, even if clocks differ."""
        if self._newest is None:
            self.parts()
        self._newest = max(time.time_ns(), (self._newest or 0) + 1)
        return self._newest

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the parts, oldest first. They include rows that later rows replace, unlike those of store/latest.py."""
        yield from (part for path in self.parts() if (part := read_part(path, columns)) is not None)

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        import pyarrow as pa

        names = list(columns) if columns is not None else self.schema.names
        schema = pa.schema([self.schema.field(name) for name in names])
        return pa.concat_tables([schema.empty_table(), *(t.cast(schema) for t in self.batches(names))])

    def frame(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Return the table as a DataFrame with only the latest row of each id."""
        frame = self.read(columns).to_pandas()
        return frame.drop_duplicates("id", keep="last", ignore_index=True) if "id" in frame else frame

    def ids(self) -> set[str]:
        return set(self.read(["id"]).column("id").to_pylist())

    def spec(self) -> dict[str, Any] | None:
        path = self.folder / "spec.json"
        try:
            return read_json(path) if path.exists() else None
        except DamagedError:
            if path.exists():
                raise
            return None  # another command has just moved the table away

    def claim(self, fingerprint: Mapping[str, Any], remedy: str, *, empty: bool, write: bool = True) -> None:
        """Store the settings `fingerprint` for this table. Raises FingerprintError if its rows have other settings.

        empty: True if no row has succeeded yet; other settings and the failed rows are then replaced. write: False only
        checks, for a dry run. remedy: the end of the error message.
        """
        path = self.folder / "spec.json"
        try:
            check_fingerprint(path, fingerprint, remedy, write=write)
        except FingerprintError:
            if not empty:
                raise
            for part in self.parts() if write else ():
                part.unlink(missing_ok=True)
            check_fingerprint(path, fingerprint, remedy, fresh=True, write=write)
        if write:
            self._claimed = self.spec()
            sweep(self.folder)

    def discard_empty(self) -> None:
        """Remove the folder of a table without rows, which a failed command has claimed."""
        if not self.parts():
            (self.folder / "spec.json").unlink(missing_ok=True)
            with suppress(OSError):  # it holds other files, or does not exist
                self.folder.rmdir()


def see(
    folder: Path, gather: Callable[[Any], list[Any]], broadcast: Callable[[Any], Any], others: Iterable[str] = ()
) -> None:
    """Wait until every process of a launch lists the parts of a table that any process lists, and the parts `others`.

    gather, broadcast: those of the launch's Group. Raises StoreError in all processes after LATE seconds.
    """
    names = gather([path.name for path in folder.glob("part-*.parquet")])
    wanted = {name for own in names for name in own}.union(others)
    end, pause = time.monotonic() + LATE, 0.05
    while missing := [name for name in gather(_unlisted(folder, wanted)) if name]:
        if broadcast(time.monotonic() > end):
            raise StoreError(
                f"a process does not see {folder / missing[0]}, which another process has written. All machines must "
                "share the run folder."
            )
        time.sleep(pause)
        pause = min(2 * pause, 2.0)


def _unlisted(folder: Path, names: set[str]) -> str | None:
    """Return the first of `names` that `folder` does not list, not even as NAME.damaged; None if it lists all."""
    return min(names - {path.name.removesuffix(".damaged") for path in folder.glob("part-*")}, default=None)


def read_part(path: Path, columns: Sequence[str] | None = None) -> pa.Table | None:
    """Read `columns` (None: all) of a part. If the part is damaged, rename it to NAME.damaged, warn and return None.

    Returns None too if another process has just renamed or removed the part. Raises StoreError if permission is denied
    or the file system fails.
    """
    import pyarrow as pa

    try:
        with open_sealed(path, columns) as file:
            return file.read(columns=list(columns) if columns is not None else None)
    except FileNotFoundError:
        return None
    except (pa.ArrowException, OSError) as error:
        failure = unreadable(path, error, "Remove it; its rows are made again.")
        if not isinstance(failure, DamagedError):
            raise failure from error
        folders = (path.parent.parent.name, path.parent.name)
        verb = next((COMMANDS[name] for name in folders if name in COMMANDS), "run")
        warn(
            f"{path} is damaged ({' '.join(str(error).split())[:120]}) and was renamed to {set_aside(path).name}; its "
            f"rows count as missing. Run `prefkit {verb}` again to restore them."
        )
        return None


def check_fingerprint(
    path: Path, fingerprint: Mapping[str, Any], remedy: str, *, fresh: bool = False, write: bool = True
) -> None:
    """Raise FingerprintError if `path` stores other settings than `fingerprint`; if it does not exist, write it.

    Of several processes that call this at once with different settings, one writes and the others raise. fresh: True
    replaces the stored settings. write: False writes nothing, for a dry run.
    """
    wanted = json.loads(json.dumps(fingerprint, default=str))
    if fresh and write:
        write_json(path, wanted)
    if fresh or (not path.exists() and (not write or create_json(path, wanted))):
        return
    compare_settings(path.parent, read_json(path), wanted, remedy)


def compare_settings(folder: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any], remedy: str) -> None:
    """Raise FingerprintError if the settings `stored`, with which `folder` was made, differ from `wanted`."""
    wanted = spelled_as(stored, json.loads(json.dumps(wanted, default=str)))
    a, b = _without_claims(stored), _without_claims(wanted)
    keys = sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))
    if keys:
        found = [difference for k in keys for difference in _differences(k, a.get(k), b.get(k))]
        lines = "; ".join(f"{key}: stored {_brief(a)}, requested {_brief(b)}" for key, a, b in found)
        raise FingerprintError(f"{folder} was made with other settings ({lines}). {remedy}", folder, keys)


def spelled_as(stored: Any, wanted: Any) -> Any:
    """Return `wanted` with its paths as in `stored`: the same file has other names from other working directories.

    A path and a longer one that ends with it are the same file; the content of files is compared by hashes.
    """
    if isinstance(stored, Mapping) and isinstance(wanted, Mapping):
        return {key: spelled_as(stored.get(key), value) for key, value in wanted.items()}
    if isinstance(stored, str) and isinstance(wanted, str) and stored != wanted and _exists(wanted):
        short, long = sorted((re.sub(r"^(\.{1,2}/)+", "", text) for text in (stored, wanted)), key=len)
        return stored if short == long or long.endswith(f"/{short}") else wanted
    return wanted


def _exists(text: str) -> bool:
    path = re.sub(r"(?<=\.py):\w+$", "", text)
    return len(path) < 1024 and os.path.exists(os.path.expanduser(path))


def _differences(key: str, stored: Any, wanted: Any) -> list[tuple[str, Any, Any]]:
    """Return (key, stored value, requested value) of each difference. Keys of nested mappings are joined with dots."""
    if not (isinstance(stored, Mapping) and isinstance(wanted, Mapping)):
        return [(key, stored, wanted)]
    keys = sorted(stored.keys() | wanted.keys())
    differ = [k for k in keys if (k in stored, stored.get(k)) != (k in wanted, wanted.get(k))]
    return [found for k in differ for found in _differences(f"{key}.{k}", stored.get(k), wanted.get(k))]


def _without_claims(value: Any) -> Any:
    """Return settings without the keys `verified` and `licence` of scorer specs, which do not affect scores."""
    if not isinstance(value, Mapping):
        return value
    claims = {"verified", "licence"} if "evaluation_only" in value else set()
    return {k: _without_claims(v) for k, v in value.items() if k not in claims}


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 160 else text[:157] + "..."


def note_pace(folder: Path, items: int, seconds: float) -> None:
    """Store the mean seconds per item in a table's folder, from which --dry-run estimates the time of a run."""
    if items:
        write_json(folder / "pace.json", {"seconds_per_item": seconds / items})


def dump_extra(extra: Mapping[str, Any]) -> str:
    return json.dumps(dict(extra), ensure_ascii=False, sort_keys=True, default=str)


def request_row(request: Request) -> dict[str, Any]:
    row = {name: getattr(request, name) for name in ("request_id", "prompt", "split")}
    return row | {"extra": dump_extra(request.extra)}


def comparison_row(comparison: Comparison) -> dict[str, Any]:
    """Convert a comparison to a row. Its id is a hash of all values but the time, so a second import adds nothing."""
    row = {name: getattr(comparison, name) for name in comparison_schema().names if name != "id"}
    return {"id": digest({k: v for k, v in row.items() if k != "time"}), **row}


def candidate_row(candidate: Candidate) -> dict[str, Any]:
    """Convert a candidate to a row, without the prompt, which is stored with the request."""
    return {name: getattr(candidate, name) for name in candidate_schema().names} | {
        "extra": dump_extra(candidate.extra)
    }
