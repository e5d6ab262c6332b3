"""decisions.csv: a curator's decisions about candidates. `prefkit pair` applies them; the dataset card counts them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prefkit.errors import StoreError, UsageError
from prefkit.store.files import write_atomic
from prefkit.tables import read
from prefkit.tables.delimited import header
from prefkit.tables.files import MARKS, mark_of

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("id", "verdict", "reason", "by")
VERDICTS = ("keep", "reject", "remove")


def read_decisions(path: Path) -> pd.DataFrame:
    """Return a frame with the last decision about each candidate id, empty without a file. Raises StoreError."""
    import pandas as pd

    rows = []
    try:
        if path.exists() and not {"id", "verdict"} <= set(header(path, str(path)).names):
            raise StoreError(f"{path}: column id or verdict is missing. The first line must be {','.join(COLUMNS)}.")
        for where, values, _ in read(path, may_end_early=True) if path.exists() else ():
            if values["verdict"] not in VERDICTS:
                raise StoreError(
                    f"{where}: verdict {values['verdict'] or ''!r} is unknown; use one of {', '.join(VERDICTS)}."
                )
            rows.append({name: values.get(name) or "" for name in COLUMNS})
    except UsageError as error:
        raise StoreError(f"{error} The first line of decisions.csv must be {','.join(COLUMNS)}.") from error
    return pd.DataFrame(rows, columns=list(COLUMNS)).drop_duplicates("id", keep="last", ignore_index=True)


def append_decisions(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Append rows (keys: COLUMNS) to decisions.csv, keeping its encoding and column order. Raises StoreError."""
    columns, separator, encoding, before = list(COLUMNS), ",", "utf-8", b""
    try:
        if path.exists():
            head, before = header(path, str(path)), path.read_bytes()
            columns, separator, encoding = head.names, head.separator, MARKS.get(mark_of(before), encoding)
    except (UsageError, OSError) as error:
        raise StoreError(f"decisions cannot be added to {path}: {error}") from error
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, lineterminator="\n")
    if not before:
        writer.writerow(columns)
    elif not before.decode(encoding).endswith(("\n", "\r")):
        text.write("\n")
    writer.writerows([row.get(name, "") for name in columns] for row in rows)
    write_atomic(path, before + text.getvalue().encode(encoding))
