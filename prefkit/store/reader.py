"""Single candidates by id, without reading a whole table: a few parts stay in memory."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefkit.errors import StoreError
from prefkit.paths import read_regular
from prefkit.store.latest import located
from prefkit.store.run import Store
from prefkit.store.table import read_part

PARTS_IN_MEMORY = 4


def run_of(pairs: Path) -> Store | None:
    """The run that a folder of pairs lies in as pairs/NAME: what its pairs name stands there, where images were left out."""
    run = pairs.resolve().parent.parent
    return Store(run) if pairs.resolve().parent.name == "pairs" and (run / "run.json").exists() else None


class CandidateReader:
    """`reader["id"]` is the stored row as a dict (see types.candidate_schema). Sequential ids are cheap."""

    def __init__(self, store: Store, generators: Sequence[str] = ()) -> None:
        self.where: dict[str, tuple[Path, int]] = {}
        tables = [store.candidates(generator) for generator in generators or store.names("candidates")]
        for path, rows, part in located(tables, ["id"]):
            self.where |= {cid: (path, row) for row, cid in zip(rows.tolist(), part.column("id").to_pylist())}
        self._part = functools.lru_cache(PARTS_IN_MEMORY)(read_part)

    def __contains__(self, cid: str) -> bool:
        return cid in self.where

    def __getitem__(self, cid: str) -> dict[str, Any]:
        if cid not in self.where:
            raise StoreError(f"candidate {cid} is not in the run; was its part removed? Run `prefkit generate` again.")
        path, row = self.where[cid]
        part = self._part(path)
        if part is None:
            raise StoreError(f"{path} with candidate {cid} is damaged and was set aside. Run `prefkit generate` again.")
        return part.slice(row, 1).to_pylist()[0]

    def image(self, cid: str) -> bytes:
        """The encoded image. Raises StoreError where there is none, or a file that stayed where it was says something else."""
        row = self[cid]
        if row["image"] is not None:
            return row["image"]
        if row["path"] is None:
            raise StoreError(f"candidate {cid} holds no image{': ' + row['error'] if row['error'] else ''}.")
        try:
            data = read_regular(row["path"])
        except OSError as error:
            raise StoreError(f"the image of candidate {cid} ({row['path']}) cannot be read: {error}.") from error
        if row["sha256"] and hashlib.sha256(data).hexdigest() != row["sha256"]:
            raise StoreError(
                f"the image of candidate {cid} ({row['path']}) is another one now than when it was stored, and what is said of "
                "it may not hold. Put the file back, or import it anew into another run."
            )
        return data
