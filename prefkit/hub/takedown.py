"""Which images must not leave the run: verdict `remove` in decisions.csv, and whatever shows the same picture file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.errors import UsageError
from prefkit.store.decisions import append_decisions

if TYPE_CHECKING:
    from prefkit.store import Store

REASON = "takedown"
NAMES = re.compile(r"candidate_\d+|image_\d+_uid")


@dataclass(frozen=True)
class Removed:
    """ids: of candidates; files: SHA-256 of the bytes of their images, so that copies under another id go too."""

    ids: frozenset[str] = frozenset()
    files: frozenset[str] = frozenset()

    def hits(self, row: Mapping[str, Any]) -> bool:
        """Whether a row of any config shows or names one of these images, in a column of its own or in a list."""
        return any(self._named(value) for value in row.values())

    def _named(self, value: Any) -> bool:
        if isinstance(value, str):
            return value in self.ids or value in self.files
        if isinstance(value, (list, tuple)):
            return any(self._named(entry) for entry in value)
        return isinstance(value, dict) and any(self._named(entry) for entry in value.values())

    def __bool__(self) -> bool:
        return bool(self.ids or self.files)


def removed(store: Store, more: Sequence[str] = ()) -> Removed:
    """The candidates that decisions.csv says to remove, with `more` (ids, or SHA-256 of image files) on top."""
    decisions = store.decisions()
    wanted = {*decisions.id[decisions.verdict == "remove"], *more}
    if not wanted:
        return Removed()
    files = _files(store)
    shas = {files[name] for name in wanted if files.get(name)} | {name for name in wanted if len(name) == 64}
    return Removed(frozenset(wanted | {name for name, sha in files.items() if sha in shas}), frozenset(shas))


def check_known(store: Store, ids: Sequence[str], pairs: Path | None) -> None:
    """Raises UsageError for an id that neither the candidates nor the pairs know: a takedown must not miss."""
    files = _files(store)
    known = set(files) | set(files.values()) | (_named_in(pairs) if pairs is not None else set())
    unknown = [name for name in ids if name not in known]
    if unknown:
        raise UsageError(
            f"--remove: {', '.join(unknown[:5])} is no candidate of {store.folder} and no image of its pairs. Give ids as "
            "in the column id of `candidates` (or candidate_0/candidate_1 of the pairs), or the SHA-256 of an image file."
        )


def write_removals(store: Store, ids: Sequence[str]) -> None:
    """Append `id,remove,takedown,push` lines to decisions.csv, what stands there untouched."""
    path = store.folder / "decisions.csv"
    decisions = store.decisions()
    already = set(decisions.id[decisions.verdict == "remove"])
    lines = [name for name in ids if name not in already]
    if not lines:
        return
    row = {"verdict": "remove", "reason": REASON, "by": "push"}
    append_decisions(path, [row | {"id": name} for name in lines])


def _files(store: Store) -> dict[str, str]:
    found: dict[str, str] = {}
    for generator in store.names("candidates"):
        frame = store.candidates(generator).frame(["id", "sha256"])
        found |= dict(zip(frame.id, frame.sha256.fillna("")))
    return found


def _named_in(folder: Path) -> set[str]:
    import pyarrow.parquet as pq

    found: set[str] = set()
    for path in folder.rglob("*.parquet"):
        columns = [c for c in pq.read_schema(path).names if NAMES.fullmatch(c)]
        for column in pq.read_table(path, columns=columns).columns:
            found.update(str(value) for value in column.to_pylist() if value is not None)
    return found
