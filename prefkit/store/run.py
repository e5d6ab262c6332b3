"""The run folder: tables of whole parts, fingerprints, locks. See the tree in the README.

A part is written under a temporary name, flushed to disk and renamed, so a reader sees whole parts only and
whatever kills a process costs at most the rows not yet written. A damaged part is named, set aside
(`*.damaged`), and its rows count as missing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.errors import DamagedError, StoreError, UsageError
from prefkit.store.files import NAME, checked, read_json, write_json, write_whole
from prefkit.store.latest import latest
from prefkit.store.litter import remove
from prefkit.store.locks import lock
from prefkit.store.rows import request_row
from prefkit.store.seal import open_sealed, seal
from prefkit.store.table import Table
from prefkit.types import (
    Candidate,
    Request,
    candidate_schema,
    comparison_schema,
    input_schema,
    request_schema,
    score_schema,
)

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

SCHEMA_VERSION = 1
ROWS = 32  # turned into Python objects at once
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
    "image_stats",
    "pairs",
    "train",
    "eval",
)


class Store:
    """A run-shaped folder. Opening one creates nothing; `Store.create` does."""

    def __init__(self, folder: str | Path) -> None:
        # pyarrow takes what stands before a colon for the kind of a file system (s3:...)
        self.folder = Path(os.path.abspath(folder) if ":" in "".join(Path(folder).parts[:1]) else folder)
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
            remove(self.folder / name)
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

        table = pa.Table.from_pylist(list(map(request_row, requests)), schema=request_schema())

        def save(path: Path) -> None:
            pq.write_table(table, path, write_page_checksum=True)
            seal(path)

        write_whole(self.folder / "requests.parquet", save)

    def requests(self) -> list[Request]:
        if not (self.folder / "requests.parquet").exists():
            return []
        rows = self.request_table().to_pylist()
        return [Request(r["request_id"], r["prompt"], r["split"], json.loads(r["extra"] or "{}")) for r in rows]

    def request_table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """requests.parquet. Raises DamagedError where it is not what was written."""
        import pyarrow as pa

        path = self.folder / "requests.parquet"
        try:
            with open_sealed(path, columns) as file:
                return file.read(columns=list(columns) if columns is not None else None)
        except (pa.ArrowException, OSError) as error:
            raise damaged_requests(path, error) from error

    # -- candidates -----------------------------------------------------------------------------------------------
    def iter_candidates(
        self, generators: Sequence[str] = (), ids: set[str] | None = None, columns: Sequence[str] | None = None
    ) -> Iterator[Candidate]:
        """Candidates with their request's prompt and extra (own keys win), part by part; failed ones too.

        Each id comes once, as it was stored last. ids: only these; a part without any of them is not read.
        """
        requests = {r.request_id: r for r in self.requests()}
        names = list(columns) if columns is not None else candidate_schema().names
        tables = [self.candidates(generator) for generator in generators or self.names("candidates")]
        for part in latest(tables, names, ids):
            for batch in part.to_batches(max_chunksize=ROWS):  # images are copied into Python's own bytes
                for row in batch.to_pylist():
                    yield candidate_of(row, requests)

    def decisions(self) -> pd.DataFrame:
        """The curator's word: id, verdict (keep | reject | remove), reason, by. The last line on an id holds."""
        from prefkit.store.decisions import read_decisions

        return read_decisions(self.folder / "decisions.csv")

    def lock(self, what: str, seconds: float = 0) -> AbstractContextManager[None]:
        """One writer per stage and table. Raises StoreError where another process keeps it; a kill frees it."""
        return lock(self.folder, what, seconds)


def candidate_of(row: dict[str, Any], requests: Mapping[str, Request]) -> Candidate:
    """A stored row with the prompt and extra of its request."""
    request = requests.get(row["request_id"])
    prompt, extra = (request.prompt, request.extra) if request else ("", {})
    return Candidate(prompt=prompt, **row | {"extra": {**extra, **json.loads(row.get("extra") or "{}")}})


def damaged_requests(path: Path, error: Exception) -> DamagedError:
    text = " ".join(str(error).split())[:160].rstrip(".")
    return DamagedError(
        path,
        f"{path} is damaged: {text}. Remove it, then run `prefkit generate`, or for an imported run `prefkit import`, again.",
    )


@cache
def _version(package: str) -> str | None:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None
