"""The run folder: tables of whole parts, fingerprints, locks. See the tree in the README.

A part is written under a temporary name, flushed to disk and renamed, so a reader sees whole parts only and
whatever kills a process costs at most the rows not yet written. A damaged part is named, set aside
(`*.damaged`), and its rows count as missing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.errors import FingerprintError, StoreError, UsageError
from prefkit.types import (
    Candidate,
    Comparison,
    Request,
    candidate_schema,
    comparison_schema,
    digest,
    input_schema,
    request_schema,
    score_schema,
)

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

SCHEMA_VERSION = 1
PACKAGES = (
    "prefkit",
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "open_clip_torch",
    "pillow",
)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
CONTENTS = (
    "run.json",
    "recipe.yaml",
    "requests.parquet",
    ".locks",
    ".imports",
    "inputs",
    "candidates",
    "scores",
    "comparisons",
    "looks",
    "pairs",
    "train",
    "eval",
)
STAGE_OF = {"candidates": "generate", "scores": "score"}


def write_atomic(path: Path, data: bytes | str) -> None:
    """Replace `path` by `data` at once or not at all. Raises StoreError (disk full, no permission)."""

    def save(temporary: Path) -> None:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)

    write_whole(path, save)


def write_whole(path: Path, save: Callable[[Path], Any]) -> None:
    """Let `save` write a temporary file beside `path`, flush it to disk, and rename it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(temporary)
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise StoreError(
            f"{path} could not be written: {error.strerror or error}. What was stored before is intact."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        if not isinstance(found, dict):
            raise ValueError("it holds no object")
        return found
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path} could not be read: {error}. Restore it, or remove it to have it made anew."
        ) from error


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, default=str) + "\n")


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
        path = self.folder / f"part-{time.time_ns()}-{os.getpid()}.parquet"
        how: Any = {"use_dictionary": scalar, "write_statistics": scalar, "write_page_checksum": True}
        write_whole(path, lambda p: pq.write_table(table, p, compression=compression, **how))

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The parts, oldest first. A part that cannot be read is set aside with a warning on stderr."""
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

    def claim(self, fingerprint: Mapping[str, Any], remedy: str, *, empty: bool) -> None:
        """Write what rows mean here, or refuse where the table on disk means something else.

        empty: no row has succeeded yet, so that a mended recipe or plug-in starts anew; rows of failures are dropped.
        """
        path = self.folder / "spec.json"
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
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            return file.read(columns=list(columns) if columns is not None else None)
    except PermissionError as error:
        raise StoreError(f"{path} could not be read: {error.strerror}. Give yourself the right to read it.") from error
    except (pa.ArrowException, OSError) as error:
        from prefkit.output import warn

        aside = path.with_suffix(".parquet.damaged")
        with suppress(FileNotFoundError):  # another process was quicker
            os.replace(path, aside)
        warn(
            f"{path} is damaged ({' '.join(str(error).split())[:120]}); it is set aside as {aside.name}. Run the stage "
            f"that made it (`prefkit {STAGE_OF.get(path.parent.parent.name, 'run')}`) again: its rows count as missing."
        )
        return None


def check_fingerprint(path: Path, fingerprint: Mapping[str, Any], remedy: str, *, fresh: bool = False) -> None:
    """Raises FingerprintError with the keys that differ from those in `path`; writes it where there is none.

    fresh: nothing has been made under it yet (the first try failed, and was mended), so that it is replaced.
    """
    wanted = json.loads(json.dumps(fingerprint, default=str))
    if fresh or not path.exists():
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


class Store:
    """A run-shaped folder. Opening one creates nothing; `Store.create` does."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise UsageError(f"{self.folder} is a file, and a run is a folder. Give the folder, or -r for a recipe.")
        path = self.folder / "run.json"
        if path.exists():
            version = read_json(path).get("schema", 0)
            if not isinstance(version, int):
                raise StoreError(
                    f"{path}: schema {version!r} is no number. Restore it, or remove it to have it made anew."
                )
            if version > SCHEMA_VERSION:
                raise StoreError(
                    f"{self.folder} was written by a newer prefkit (schema {version}, this one knows {SCHEMA_VERSION}). "
                    "Update prefkit to read it."
                )

    @classmethod
    def create(cls, folder: str | Path) -> Store:
        store = cls(folder)
        path = store.folder / "run.json"
        if not path.exists():
            found = {name: _version(name) for name in PACKAGES}
            write_json(path, {"schema": SCHEMA_VERSION, "packages": {k: v for k, v in found.items() if v}})
        return store

    def undo(self, keep: Iterable[str]) -> None:
        """Remove what a mistyped first command left in this folder, unless it made something. keep: what was there."""
        if any(self.folder.rglob("part-*")):
            return
        for name in set(CONTENTS).difference(keep):
            path = self.folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        with suppress(OSError):  # the user's own files lie in it
            self.folder.rmdir()

    def exists(self) -> bool:
        return (self.folder / "run.json").exists()

    # -- tables ---------------------------------------------------------------------------------------------------
    def candidates(self, generator: str) -> Table:
        return Table(self.folder / "candidates" / checked(generator), candidate_schema())

    def scores(self, alias: str) -> Table:
        return Table(self.folder / "scores" / checked(alias), score_schema())

    def comparisons(self, alias: str) -> Table:
        """Pairwise verdicts; a row's id is made of all that it says, so that a second import adds nothing."""
        return Table(self.folder / "comparisons" / checked(alias), comparison_schema())

    def inputs(self) -> Table:
        """Images that requests refer to by `inputs` id (the SHA-256 of their bytes)."""
        return Table(self.folder / "inputs", input_schema())

    def pairs(self, name: str) -> Path:
        return self.folder / "pairs" / checked(name)

    def train(self, name: str) -> Path:
        return self.folder / "train" / checked(name)

    def eval(self, name: str) -> Path:
        return self.folder / "eval" / checked(name)

    def names(self, kind: str) -> list[str]:
        """Names under candidates, scores, comparisons, pairs, train or eval."""
        folders = [p for p in (self.folder / kind).glob("*") if p.is_dir()]
        return sorted(p.name for p in folders if NAME.fullmatch(p.name))  # a kill can leave hidden ones

    # -- requests -------------------------------------------------------------------------------------------------
    def write_requests(self, requests: Iterable[Request]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = [
            {"request_id": r.request_id, "prompt": r.prompt, "split": r.split, "extra": dump_extra(r.extra)}
            for r in requests
        ]
        table = pa.Table.from_pylist(rows, schema=request_schema())
        write_whole(self.folder / "requests.parquet", lambda path: pq.write_table(table, path))

    def requests(self) -> list[Request]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.folder / "requests.parquet"
        if not path.exists():
            return []
        try:
            rows = pq.read_table(path).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise StoreError(
                f"{path} is damaged: {' '.join(str(error).split())[:160]}. Remove it and run `prefkit generate` again."
            ) from error
        return [Request(r["request_id"], r["prompt"], r["split"], json.loads(r["extra"] or "{}")) for r in rows]

    # -- candidates -----------------------------------------------------------------------------------------------
    def iter_candidates(
        self, generators: Sequence[str] = (), ids: set[str] | None = None, columns: Sequence[str] | None = None
    ) -> Iterator[Candidate]:
        """Candidates with their request's prompt and extra (own keys win), part by part; failed ones too."""
        requests = {r.request_id: r for r in self.requests()}
        names = list(columns) if columns is not None else candidate_schema().names
        for generator in generators or self.names("candidates"):
            for part in self.candidates(generator).batches(names):
                if ids is not None:
                    import pyarrow as pa
                    import pyarrow.compute as pc

                    part = part.filter(pc.is_in(part.column("id"), value_set=pa.array(list(ids), pa.string())))
                for row in part.to_pylist():
                    request = requests.get(row["request_id"])
                    prompt, extra = (request.prompt, request.extra) if request else ("", {})
                    row["extra"] = {**extra, **json.loads(row.get("extra") or "{}")}
                    yield Candidate(prompt=prompt, **row)

    def decisions(self) -> pd.DataFrame:
        """The curator's word: id, verdict (keep | reject | remove), reason, by. The last line on an id holds."""
        from prefkit.decisions import read_decisions

        return read_decisions(self.folder / "decisions.csv")

    @contextmanager
    def lock(self, what: str, seconds: float = 0) -> Iterator[None]:
        """One writer per stage and table. Raises StoreError where another process keeps it; a kill frees it."""
        from filelock import FileLock, Timeout

        path = self.folder / ".locks" / f"{what.replace('/', '-')}.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path, timeout=seconds):
                yield
        except Timeout:
            raise StoreError(
                f"another process is working on {what} in {self.folder}. Wait for it or end it, then run this again: "
                "nothing is lost."
            ) from None
        except OSError as error:
            raise StoreError(f"{self.folder} cannot be written: {error.strerror or error}.") from error


def checked(name: str) -> str:
    """A name that is safe as a folder. Raises StoreError."""
    if not NAME.fullmatch(name):
        raise StoreError(
            f"{name!r} cannot be a name: use letters, digits, dot, dash and underscore, and start with a letter or digit."
        )
    return name


def dump_extra(extra: Mapping[str, Any]) -> str:
    return json.dumps(dict(extra), ensure_ascii=False, sort_keys=True, default=str)


def comparison_row(c: Comparison) -> dict[str, Any]:
    """The stored form. Its id covers everything but the time, so that what is said twice is kept once."""
    row = {name: getattr(c, name) for name in comparison_schema().names if name != "id"}
    return {"id": digest({k: v for k, v in row.items() if k != "time"}), **row}


def candidate_row(c: Candidate) -> dict[str, Any]:
    """The stored form: without the prompt and the extra keys that belong to the request."""
    return {name: getattr(c, name) for name in candidate_schema().names} | {"extra": dump_extra(c.extra)}


@cache
def _version(package: str) -> str | None:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


def note_pace(folder: Path, items: int, seconds: float) -> None:
    """How fast this table was filled last, for the plan of the next run."""
    if items:
        write_json(folder / "pace.json", {"seconds_per_item": seconds / items})
