"""What the importers of tables share: the rows of a source, the files beside them that are not read, and image cells."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefkit.errors import UsageError
from prefkit.hub.items import Workplace
from prefkit.hub.rows import Row, files, picture_parts, rows
from prefkit.hub.walk import leave_rest
from prefkit.paths import embedded, named, shown

#: what a cell of somebody else's table makes the code of an importer raise: that row fails, and no other
FAULTS = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, OSError)
SAVED = ("state.json", "dataset_dict.json")  # written by datasets' save_to_disk


def table_rows(source: str, work: Workplace, columns: list[str] | None = None) -> Iterator[Row]:
    """The rows of `source`; afterwards the files in it that were not read are counted. Raises UsageError as `rows`."""
    yield from rows(source, columns)
    path = Path(source).expanduser()
    if path.is_dir() and not any((path / name).exists() for name in SAVED):
        leave_rest(path, files(path), work)


def reason(error: Exception) -> str:
    return f"there is no {error}" if isinstance(error, KeyError) else str(error)


def image_cell(
    value: Any, folder: Path | None, own: bool = False, root: Path | None = None
) -> tuple[bytes | None, Path | None]:
    """(bytes, path) of an image in a table: bytes, {'bytes', 'path'}, a data URI, base64, or the path of a file.

    own: the user wrote the table, so that absolute paths (and ~) may lead anywhere; relative ones stay below `root`
    (the table's folder). Raises ValueError for what is none of these.
    """
    if isinstance(value, dict):
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if not isinstance(value, str):
        return picture_parts(value, folder, own)
    data = embedded(value)
    if data is not None:
        return data, None
    if folder is not None and "\\" in value and not (folder / value).exists():
        value = value.replace("\\", "/")  # as Windows writes paths
        if value[1:2] == ":":
            raise ValueError(
                f"the path {shown(value)!r} starts with a Windows drive; write it as it is on this machine"
            )
    try:
        if folder is not None and own and "://" not in value:
            named(folder, value, root)
        return picture_parts(value, folder, own)
    except UsageError as error:  # of a path that no file can have: this row alone
        raise ValueError(str(error)) from error
