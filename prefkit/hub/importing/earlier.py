"""Rows that an import has stored in a run: counted from the tables, which a kill leaves correct, or removed again."""

from __future__ import annotations

from contextlib import suppress

from prefkit.hub.importing.index import merged_requests, rewrite_requests, stage_requests
from prefkit.store import Store
from prefkit.store.table import Table


def totals(store: Store, name: str, pictures: int) -> dict[str, int]:
    """Rows that the import `name` has added so far, by kind. pictures: of all its items, including known images."""
    candidates = _rows(store.candidates(name))
    return {
        "requests": _rows(merged_requests(store, name)) + _rows(stage_requests(store, name)),
        "candidates": candidates,
        "comparisons": _rows(store.comparisons(name)),
        "scores": sum(map(_rows, _ratings(store, name))),
        "known": max(0, pictures - candidates),
    }


def discard(store: Store, name: str) -> None:
    """Remove the tables of a failed import, and its requests unless images of other generators answer them."""
    for table in (store.candidates(name), store.comparisons(name), *_ratings(store, name)):
        _clear(table)
    merged = merged_requests(store, name)
    requests = set(merged.read(["request_id"]).column("request_id").to_pylist())
    for other in store.names("candidates") if requests else ():
        requests -= set(store.candidates(other).read(["request_id"]).column("request_id").to_pylist())
    if requests:
        rewrite_requests(store, without=requests)
    _clear(merged)
    _clear(stage_requests(store, name))


def _ratings(store: Store, name: str) -> list[Table]:
    """Tables of scores that the import `name` wrote."""
    tables = [store.scores(alias) for alias in store.names("scores") if alias.startswith(f"{name}.")]
    return [table for table in tables if "imported" in (table.spec() or {})]


def _rows(table: Table) -> int:
    return sum(len(part) for part in table.batches([table.schema.names[0]]))


def _clear(table: Table) -> None:
    """Remove the files of a table; other files in its folder stay."""
    for path in (*table.parts(), table.folder / "spec.json", table.folder / "pace.json"):
        path.unlink(missing_ok=True)
    with suppress(OSError):
        table.folder.rmdir()
