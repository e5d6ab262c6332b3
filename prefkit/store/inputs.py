"""Read the images in requests from a run's inputs/ table."""

from __future__ import annotations

from functools import cached_property, lru_cache
from pathlib import Path

from prefkit.errors import UsageError
from prefkit.store.table import Table, read_part

CACHED_PARTS = 2


class InputImages:
    """Reads input images by id: `images(id)` returns the encoded image. The table is indexed at the first call.

    Raises UsageError for an image that the table does not have.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self._part = lru_cache(CACHED_PARTS)(read_part)

    @cached_property
    def _rows(self) -> dict[str, tuple[Path, int]]:
        rows: dict[str, tuple[Path, int]] = {}
        for path in self.table.parts():
            part = read_part(path, ["id"])
            ids = part.column("id").to_pylist() if part is not None else []
            rows |= {name: (path, row) for row, name in enumerate(ids)}
        return rows

    def __call__(self, name: str) -> bytes:
        path, row = self._rows.get(name, (None, 0))
        part = self._part(path) if path is not None else None
        if part is None:
            raise UsageError(
                f"the run's inputs/ table has no image {name}. Run `prefkit generate` with the source that contains it."
            )
        return bytes(part.column("bytes")[row].as_py())
