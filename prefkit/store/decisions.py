"""decisions.csv: the curator's word on single candidates, applied by `pair` and counted in the card."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.errors import StoreError

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("id", "verdict", "reason", "by")
VERDICTS = ("keep", "reject", "remove")


def read_decisions(path: Path) -> pd.DataFrame:
    """One row per id, its last line holds. An absent file is an empty frame. Raises StoreError naming file and line."""
    import pandas as pd

    if not path.exists():
        return pd.DataFrame(columns=list(COLUMNS))
    rows = []
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restkey="more", restval="")
            if not {"id", "verdict"} <= set(reader.fieldnames or ()):
                raise StoreError(
                    f"{path}: columns id and verdict are missing. Its first line must be {','.join(COLUMNS)}."
                )
            for row in reader:
                _check(row, f"{path}:{reader.line_num}")
                rows.append(row)
    except (ValueError, OSError, csv.Error) as error:
        raise StoreError(
            f"{path} could not be read: {error}. It is UTF-8 text, its first line {','.join(COLUMNS)}."
        ) from error
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame.fillna("").drop_duplicates("id", keep="last", ignore_index=True)


def _check(row: Mapping[str, Any], where: str) -> None:
    if "more" in row:
        raise StoreError(f"{where}: more fields than the first line has. Put quotes round a text with commas.")
    if row["verdict"] not in VERDICTS:
        raise StoreError(f"{where}: verdict {row['verdict']!r} is not known; write {', '.join(VERDICTS)}.")
