"""What an import has stored in a run: counted from the tables, so that a kill does not change it, or removed again."""

from __future__ import annotations

from contextlib import suppress

from prefkit.hub.importing.index import merged_requests, rewrite_requests, stage_requests
from prefkit.store import Store
from prefkit.store.table import Table


def totals(store: Store, name: str, pictures: int) -> dict[str, int]:
    """Rows that the import `name` has added so far, by kind. pictures: of all its items; the rest were known before."""
    candidates = _rows(store.candidates(name))
    return {
        "requests": _rows(merged_requests(store, name)) + _rows(stage_requests(store, name)),
        "candidates": candidates,
        "comparisons": _rows(store.comparisons(name)),
        "scores": sum(_rows(store.scores(alias)) for alias in ratings(store, name)),
        "known": max(0, pictures - candidates),
    }


def ratings(store: Store, name: str) -> list[str]:
    """The tables of scores that the import `name` wrote."""
    found = [alias for alias in store.names("scores") if alias.startswith(f"{name}.")]
    return [alias for alias in found if "imported" in (store.scores(alias).spec() or {})]


def discard(store: Store, name: str) -> None:
    """Remove what a failed import stored: its tables, and the requests that it brought and nobody else's images answer."""
    tables = [store.candidates(name), store.comparisons(name), *map(store.scores, ratings(store, name))]
    for table in tables:
        _empty(table)
    merged = merged_requests(store, name)
    brought = set(merged.read(["request_id"]).column("request_id").to_pylist())
    for other in store.names("candidates") if brought else ():
        brought -= set(store.candidates(other).read(["request_id"]).column("request_id").to_pylist())
    if brought:
        rewrite_requests(store, without=brought)
    _empty(merged)
    _empty(stage_requests(store, name))


def _rows(table: Table) -> int:
    return sum(len(part) for part in table.batches([table.schema.names[0]]))


def _empty(table: Table) -> None:
    """Only the files of a table; what else lies in its folder stays."""
    for path in (*table.parts(), table.folder / "spec.json", table.folder / "pace.json"):
        path.unlink(missing_ok=True)
    with suppress(OSError):
        table.folder.rmdir()
