"""Candidates request by request, wherever their rows are: memory holds the images of one request."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prefkit.store.latest import Cursor, Located, locate
from prefkit.store.run import Store, candidate_of
from prefkit.store.table import read_part
from prefkit.types import Candidate

OPEN = 32  # parts read side by side: later ones of a larger `n`, and those of other generators


def by_request(
    store: Store, generators: Sequence[str], ids: set[str], columns: Sequence[str]
) -> Iterator[list[Candidate]]:
    """All wanted candidates of a request together, requests in stored order.

    Ids are looked up first; images are read when their request's turn comes. A request whose part turns out to be
    damaged is left out as a whole: to a scorer within requests, a part of it would be another one.
    """
    tables = [store.candidates(name) for name in generators or store.names("candidates")]
    found = locate(tables, ids)
    requests = {r.request_id: r for r in store.requests()}
    cursors = Cursors(columns)
    try:
        for places in _places(found).values():
            rows = [cursors.row(path, row) for path, row in places]
            if all(row is not None for row in rows):
                yield [candidate_of(row, requests) for row in rows if row is not None]
            del rows  # else the images of two requests are held
    finally:
        cursors.close()


def _places(found: Located) -> dict[str, list[tuple[Path, int]]]:
    """Request -> where its candidates are."""
    places: dict[str, list[tuple[Path, int]]] = {}
    for number, path in enumerate(found.paths):
        rows = found.of(number)
        part = read_part(path, ["request_id"]) if len(rows) else None
        if part is not None:
            for row, request in zip(rows.tolist(), part.column("request_id").take(rows).to_pylist()):
                places.setdefault(request, []).append((path, row))
    return places


class Cursors:
    """At most OPEN parts at once, the one unused for longest closed first."""

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns, self.open, self.lost = columns, OrderedDict[Path, Cursor](), set[Path]()

    def row(self, path: Path, number: int) -> dict[str, Any] | None:
        """None where the part is damaged, which has been said then."""
        import pyarrow as pa

        if path in self.lost:
            return None
        try:
            if path not in self.open:
                self.open[path] = Cursor(path, self.columns)
            self.open.move_to_end(path)
            found = self.open[path].row(number)
        except (pa.ArrowException, OSError):
            self.lost.add(path)
            if path in self.open:
                self.open.pop(path).close()
            read_part(path, self.columns)  # it sets a damaged part aside, and says so
            return None
        while len(self.open) > OPEN:
            self.open.popitem(last=False)[1].close()
        return found

    def close(self) -> None:
        for cursor in self.open.values():
            cursor.close()
