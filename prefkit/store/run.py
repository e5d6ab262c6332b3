"""The run folder: its tables, requests, paths and locks. The README shows its layout.

A table consists of parts (Parquet files). A part is written under a temporary name, flushed to disk and renamed, so
readers see only complete parts. A damaged part is renamed to NAME.damaged with a warning; its rows count as missing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.errors import DamagedError, StoreError, UsageError
from prefkit.output import message
from prefkit.store.decisions import read_decisions
from prefkit.store.files import NAME, checked, read_json, unreadable, write_json, write_whole
from prefkit.store.inputs import InputImages
from prefkit.store.latest import latest
from prefkit.store.litter import remove, sweep
from prefkit.store.seal import open_sealed, seal
from prefkit.store.table import Table, request_row
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
ROWS = 32  # rows that are converted to Python objects at once
#: packages whose versions run.json records
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
FOLDERS = (
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
    "rounds",
)
CONTENTS = ("run.json", "recipe.yaml", "prompts.jsonl", "requests.parquet", *FOLDERS)


class Store:
    """A run folder. `Store(folder)` writes nothing; `Store.create(folder)` also writes run.json."""

    def __init__(self, folder: str | Path) -> None:
        # pyarrow takes a prefix such as s3: for a file system, so a path with a colon is made absolute
        self.folder = Path(os.path.abspath(folder) if ":" in "".join(Path(folder).parts[:1]) else folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise UsageError(f"{self.folder} is a file, not a run folder. Give a run folder, or give a recipe with -r.")
        path = self.folder / "run.json"
        if not path.exists():
            return
        version = read_json(path).get("schema", 0)
        if not isinstance(version, int):
            raise StoreError(
                f"{path}: schema {version!r} is not a number. Restore the file, or remove it to have it written again."
            )
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"{self.folder} was written by a newer prefkit (schema {version}; this version reads at most "
                f"{SCHEMA_VERSION}). Update prefkit."
            )

    @classmethod
    def create(cls, folder: str | Path) -> Store:
        store = cls(folder)
        path = store.folder / "run.json"
        if not path.exists():
            versions = {}
            for name in PACKAGES:
                with suppress(metadata.PackageNotFoundError):
                    versions[name] = metadata.version(name)
            write_json(path, {"schema": SCHEMA_VERSION, "packages": {k: v for k, v in versions.items() if v}})
        return store

    def undo(self, keep: Iterable[str]) -> None:
        """Remove what a failed command wrote to a new run folder, unless the folder has table rows. keep: names to leave."""
        if any(self.folder.rglob("part-*")):
            return
        for name in set(CONTENTS).difference(keep):
            remove(self.folder / name)
        with suppress(OSError):  # the folder contains other files
            self.folder.rmdir()

    def exists(self) -> bool:
        return (self.folder / "run.json").exists()

    # -- tables ---------------------------------------------------------------------------------------------------
    def candidates(self, generator: str) -> Table:
        return Table(self.folder / "candidates" / checked(generator), candidate_schema())

    def scores(self, alias: str) -> Table:
        return Table(self.folder / "scores" / checked(alias), score_schema())

    def comparisons(self, alias: str) -> Table:
        """Return the table of pairwise verdicts. Ids are hashes of the rows, so a repeated verdict adds nothing."""
        return Table(self.folder / "comparisons" / checked(alias), comparison_schema())

    def inputs(self) -> Table:
        """Return the table of images in requests; an image's id is the SHA-256 of its bytes."""
        return Table(self.folder / "inputs", input_schema())

    def input_images(self) -> InputImages:
        """Return a reader of the images in requests. An eval's folder has none and reads those of its run."""
        evaluated = len(self.folder.parents) > 3 and self.folder.parents[2].name == "eval"
        return InputImages(Store(self.folder.parents[3]).inputs() if evaluated else self.inputs())

    def pairs(self, name: str) -> Path:
        return self.folder / "pairs" / checked(name)

    def train(self, name: str) -> Path:
        return self.folder / "train" / checked(name)

    def eval(self, name: str) -> Path:
        return self.folder / "eval" / checked(name)

    def names(self, kind: str) -> list[str]:
        """Return the folder names under `kind` (candidates, scores, comparisons, pairs, train or eval)."""
        folders = [p for p in (self.folder / kind).glob("*") if p.is_dir()]
        return sorted(p.name for p in folders if NAME.fullmatch(p.name))  # skips temporary folders

    def rounds(self) -> dict[int, Store]:
        """Return {number: run folder} of the offline rounds, in order; {} if there are none."""
        folders = (path for path in (self.folder / "rounds").glob("*") if path.name.isdigit())
        return {int(path.name): Store(path) for path in sorted(folders, key=lambda path: int(path.name))}

    def check_single(self) -> None:
        """Raise UsageError if this run has offline rounds, which have their tables in run folders of their own."""
        folders = [str(part.folder) for part in self.rounds().values()]
        if folders:
            raise UsageError(
                f"{self.folder} is a run of several rounds, each in a run folder of its own. Give the folder of one "
                f"round: {folders[0]}{f' to {folders[-1]}' if len(folders) > 1 else ''}."
            )

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
        """Read `columns` (None: all) of requests.parquet. Raises DamagedError."""
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
        """Yield candidates, including failed ones, with the prompt and extra of their request added.

        A candidate's extra keys override its request's. Each id is yielded once, from its latest row. ids: yield only
        these candidates.
        """
        requests = {r.request_id: r for r in self.requests()}
        images = self.input_images()
        names = list(columns) if columns is not None else candidate_schema().names
        tables = [self.candidates(generator) for generator in generators or self.names("candidates")]
        for part in latest(tables, names, ids):
            for batch in part.to_batches(max_chunksize=ROWS):  # Python objects copy the images
                for row in batch.to_pylist():
                    yield candidate_of(row, requests, images)

    def decisions(self) -> pd.DataFrame:
        """Return the last decision about each candidate; columns: id, verdict (keep | reject | remove), reason, by."""
        return read_decisions(self.folder / "decisions.csv")

    @contextmanager
    def lock(self, name: str, seconds: float = 0, tidy: bool = True) -> Iterator[None]:
        """Hold the lock of a stage or table, such as scores/NAME, and remove the temporary files of killed processes.

        tidy: False leaves them, for a lock that is held often and briefly. Raises StoreError if another process still holds the lock after `seconds`. A killed process frees its locks.
        """
        from filelock import FileLock, Timeout

        path = self.folder / ".locks" / f"{name.replace('/', '-')}.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path, timeout=seconds):
                if tidy:
                    sweep(self.folder)
                yield
        except Timeout:
            raise StoreError(
                f"another process is working on {name} in {self.folder}. Wait until it ends or stop it, then run this "
                "command again. Nothing is lost."
            ) from None
        except OSError as error:
            raise StoreError(f"{self.folder} cannot be written: {error.strerror or error}.") from error


def candidate_of(row: dict[str, Any], requests: Mapping[str, Request], images: InputImages | None = None) -> Candidate:
    """Build a candidate from a stored row, with the prompt and extra of its request if `requests` contains it."""
    request = requests.get(row["request_id"])
    prompt, extra = (request.prompt, request.extra) if request else ("", {})
    extra = {**extra, **json.loads(row.get("extra") or "{}")}
    return Candidate(prompt=prompt, **row | {"extra": extra}, inputs=images)


def damaged_requests(path: Path, error: Exception) -> StoreError:
    if not isinstance(failure := unreadable(path, error, ""), DamagedError):
        return failure
    text = message(str(error), 160).rstrip(".")
    return DamagedError(
        path,
        f"{path} is damaged: {text}. Remove it and run `prefkit generate` (or `prefkit import`, if imported) again.",
    )
