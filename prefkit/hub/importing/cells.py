"""What the importers of tables share: the rows of a source, the files beside them that are not read, and image cells."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefkit.hub.importing.readers import Row, files, is_saved, rows
from prefkit.hub.importing.records import Workplace
from prefkit.hub.importing.walk import leave_rest
from prefkit.paths import embedded, find_file, named, shown

#: what a cell of somebody else's table makes the code of an importer raise: that row fails, and no other
FAULTS = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, OSError)


def table_rows(source: str, work: Workplace, columns: list[str] | None = None) -> Iterator[Row]:
    """The rows of `source`; afterwards the files in it that were not read are counted. Raises UsageError as `rows`."""
    yield from rows(source, columns)
    path = Path(source).expanduser()
    if path.is_dir() and not is_saved(path):
        leave_rest(path, files(path), work)


def reason(error: Exception) -> str:
    return f"there is no {error}" if isinstance(error, KeyError) else str(error)


def image_cell(
    value: Any, folder: Path | None, own: bool = False, root: Path | None = None
) -> tuple[bytes | None, Path | None]:
    """(bytes, path) of an image in a table: bytes, {'bytes', 'path'}, a data URI, base64, or the path of a file.

    folder: the table's; None for rows of the Hub, which name no files here. own: the user wrote the table, so that absolute
    paths (and ~) may lead anywhere; relative ones stay below `root` (the table's folder). Raises ValueError for what is none
    of these, and for web addresses.
    """
    if isinstance(value, dict):
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes):
        return value, None
    if not isinstance(value, str) or not value.strip():
        raise ValueError("the image is missing")
    data = embedded(value)
    if data is not None:
        return data, None
    if re.match(r"[a-z]+://", value):
        raise ValueError(f"the image is a web address ({shown(value)}). Download the image; import does not")
    if folder is None:
        raise ValueError(f"the image is a path ({shown(value)}) without its bytes; download the dataset and import the folder")  # fmt: skip
    if "\\" in value and not (folder / value).exists():
        value = value.replace("\\", "/")  # as Windows writes paths
        if value[1:2] == ":":
            raise ValueError(
                f"the path {shown(value)!r} starts with a Windows drive; write it as it is on this machine"
            )
    if own:
        return None, named(folder, value, root)
    if Path(value).is_absolute() or ".." in Path(value).parts:
        raise ValueError(f"the image {shown(value)!r} leads out of {folder}. Refused")
    return None, find_file(folder / value)
