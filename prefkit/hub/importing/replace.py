"""`prefkit import --redo`: an earlier import under the same name makes way for one with other settings or rows."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefkit.config import Recipe
from prefkit.config.redo import described, put_away, with_later
from prefkit.errors import UsageError
from prefkit.hub.importing.index import merged_requests
from prefkit.hub.importing.sink import ChangedImport, discard, ratings
from prefkit.store import Store
from prefkit.store.files import read_json


def replacing(store: Store, name: str, act: Callable[[], dict[str, Any]], redo: bool) -> dict[str, Any]:
    """Call `act`, the import called `name`, and return its counts.

    If an earlier import holds the name, it and everything made from it move to RUN/.old first; without `redo`, raises
    UsageError, which lists them.
    """
    try:
        return act()
    except ChangedImport as error:
        refused = error
    entries = with_later(store, Recipe(), _tables(store, name))
    if not redo:
        moved = f", which moves {described(store, entries)}" if entries else ""
        raise UsageError(f"{refused} Or add --redo{moved}.") from refused
    _check_unshared(store, name)
    if entries:
        place = Path(put_away(store, entries))
        merged = merged_requests(store, name).folder
        if merged.is_dir():
            shutil.copytree(merged, place / merged.relative_to(store.folder))
    discard(store, name)
    (store.folder / ".imports" / f"{name}.json").unlink(missing_ok=True)
    return act()


def _check_unshared(store: Store, name: str) -> None:
    """Raise UsageError if verdicts of another import are about images of the import `name`."""
    ids = store.candidates(name).ids()
    for other in store.names("comparisons"):
        table = store.comparisons(other)
        if other != name and "imported" in (table.spec() or {}):
            used = {value for column in table.read(["id_a", "id_b"]).columns for value in column.to_pylist()}
            if not used.isdisjoint(ids):
                raise UsageError(
                    f"import {name}: comparisons/{other} are verdicts on its images, so the images cannot be replaced. "
                    "Import under another name with --name, or into another run."
                )


def _tables(store: Store, name: str) -> list[str]:
    """Return the entries that an import wrote."""
    entries = [f"{kind}/{name}" for kind in ("candidates", "comparisons")]
    entries += [table.folder.relative_to(store.folder).as_posix() for table in ratings(store, name)]
    spec = store.pairs(name) / "spec.json"
    if spec.is_file() and (read_json(spec).get("spec") or {}).get("comparisons") == name:
        entries.append(f"pairs/{name}")
    return [entry for entry in entries if (store.folder / entry).is_dir()]
