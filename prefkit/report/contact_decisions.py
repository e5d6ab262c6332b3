"""What was decided on a contact sheet -> RUN/decisions.csv."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from prefkit.errors import UsageError
from prefkit.store.decisions import COLUMNS, append_decisions, read_decisions
from prefkit.store.summary import candidate_index
from prefkit.tables.delimited import header

if TYPE_CHECKING:
    from prefkit.store import Store


def add_decisions(store: Store, source: str | Path) -> dict[str, int]:
    """Append the lines of `source` (saved by a contact sheet) that say something new to RUN/decisions.csv.

    Nothing is written unless every line is sound: a known verdict on a candidate of this run. What decisions.csv holds is
    kept byte for byte. Returns {new, known}. Raises UsageError and StoreError naming file and line or id.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        raise UsageError(f"--decisions: {path} is not here. The contact sheet saves it as decisions-….csv.")
    new = read_decisions(path)
    ids = set(candidate_index(store).id)
    for row in new.itertuples():
        if row.id not in ids:
            raise UsageError(
                f"{path}: {row.id!r} is no candidate of {store.folder}. Is it from another run's contact sheet?"
            )
    target = store.folder / "decisions.csv"
    with store.lock("decisions"):
        said = set(read_decisions(target)[list(COLUMNS)].itertuples(index=False, name=None))
        lines = [row for row in new[list(COLUMNS)].itertuples(index=False, name=None) if row not in said]
        if lines:
            if target.exists():
                _check_header(target)
            append_decisions(target, [dict(zip(COLUMNS, line)) for line in lines])
    return {"new": len(lines), "known": len(new) - len(lines)}


def _check_header(path: Path) -> None:
    lacking = [name for name in COLUMNS if name not in header(path, str(path)).names]
    if lacking:
        raise UsageError(f"{path}: its first line lacks {', '.join(lacking)}, which the lines to be added have.")
