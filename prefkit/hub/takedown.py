"""Images that must not leave the run: those with verdict `remove` in decisions.csv, and copies of the same file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.errors import UsageError
from prefkit.store.decisions import append_decisions

if TYPE_CHECKING:
    from prefkit.store import Store

NAMES = re.compile(r"candidate_\d+|image_\d+_uid")


@dataclass(frozen=True)
class Removed:
    """Ids of removed candidates, and SHA-256 hashes of their image files, to find copies with other ids too."""

    ids: frozenset[str] = frozenset()
    files: frozenset[str] = frozenset()

    def hits(self, value: Any) -> bool:
        """True if `value`, such as a row, contains a removed id or hash, also inside lists and structs."""
        if isinstance(value, str):
            return value in self.ids or value in self.files
        entries = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
        return any(map(self.hits, entries))


def removed(store: Store, more: Sequence[str] = ()) -> Removed:
    """Return the candidates that decisions.csv removes, and those in `more` (ids, or SHA-256 of image files)."""
    decisions = store.decisions()
    wanted = {*decisions.id[decisions.verdict == "remove"], *more}
    if not wanted:
        return Removed()
    files = _files(store)
    shas = {files[name] for name in wanted if files.get(name)} | {name for name in wanted if len(name) == 64}
    return Removed(frozenset(wanted | {name for name, sha in files.items() if sha in shas}), frozenset(shas))


def check_known(store: Store, ids: Sequence[str], pairs: Path | None) -> None:
    """Raise UsageError for an id that is not in the candidates, the input images or the pairs of the run."""
    files = _files(store)
    known = set(files) | set(files.values()) | set(store.inputs().frame(["id"]).id)
    known |= _named_in(pairs) if pairs is not None else set()
    unknown = [name for name in ids if name not in known]
    if unknown:
        raise UsageError(
            f"--remove: {', '.join(unknown[:5])} is neither a candidate or input image of {store.folder}, nor "
            "an image of its pairs. "
            "Give candidate ids (candidate_0 and candidate_1 in the pairs), or the SHA-256 of image files."
        )


def write_removals(store: Store, ids: Sequence[str]) -> None:
    """Append a line `ID,remove,takedown,push` to decisions.csv for each id that is not removed yet."""
    with store.lock("decisions", seconds=60):  # contact sheets add decisions too
        decisions = store.decisions()
        new = [name for name in ids if name not in set(decisions.id[decisions.verdict == "remove"])]
        rows = [{"id": name, "verdict": "remove", "reason": "takedown", "by": "push"} for name in new]
        if rows:
            append_decisions(store.folder / "decisions.csv", rows)


def _files(store: Store) -> dict[str, str]:
    """Return {candidate id: SHA-256 of its image file}."""
    files: dict[str, str] = {}
    for generator in store.names("candidates"):
        frame = store.candidates(generator).frame(["id", "sha256"])
        files |= dict(zip(frame.id, frame.sha256.fillna("")))
    return files


def _named_in(folder: Path) -> set[str]:
    """Return every candidate id and image hash in the pairs under a folder."""
    import pyarrow.parquet as pq

    names: set[str] = set()
    for path in folder.rglob("*.parquet"):
        columns = [c for c in pq.read_schema(path).names if NAMES.fullmatch(c)]
        for column in pq.read_table(path, columns=columns).columns:
            names.update(str(value) for value in column.to_pylist() if value is not None)
    return names
