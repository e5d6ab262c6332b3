"""The user's tables, and the embeddings of the images that they name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.errors import UsageError
from prefkit.images import rgb
from prefkit.output import Progress
from prefkit.paths import image_suffixes, named, nfc
from prefkit.tables import SUFFIXES, id_text, read, user_path

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from prefkit.score.embed.encoder import Encoder

BATCH = 64


def read_table(
    name: str, path: str, needed: Sequence[str], ids: Sequence[str] = (), optional: Sequence[str] = ()
) -> pd.DataFrame:
    """A table of any kind that prefkit reads, its values as they are there (those of .csv are text) in columns of objects.

    needed: columns that must be there and have a value in every row. ids: columns that become text, as `id_text` has it; if
    they are there, they have a value in every row. optional: further columns to keep. Raises UsageError naming the row.
    """
    import pandas as pd

    if not path:
        raise UsageError(f"{name} is not set: give a table ({', '.join(SUFFIXES)}) with {', '.join(needed)}.")
    wanted = list(dict.fromkeys((*needed, *ids, *optional)))
    rows = []
    for where, values, _ in read(user_path(path, name), shown=f"{name}: {path}"):
        missing = [column for column in needed if column not in values]
        if missing:
            raise UsageError(f"{where} has no column {', '.join(missing)} (it has {', '.join(values)}).")
        rows.append({column: value for column, value in values.items() if column in wanted})
        for column in (*needed, *ids):
            if column in rows[-1]:
                rows[-1][column] = _filled(rows[-1][column], column, column in ids, where)
    if not rows:
        raise UsageError(f"{name}: {path} has no rows.")
    present = dict.fromkeys(column for row in rows for column in row)
    uneven = [column for column in ids if column in present and not all(column in row for row in rows)]
    if uneven:
        raise UsageError(f"{name}: {path} has rows without {uneven[0]}. Give every row one, or none.")
    return pd.DataFrame({column: [row.get(column) for row in rows] for column in present}, dtype=object)


def _filled(value: Any, column: str, is_id: bool, where: str) -> Any:
    if value is None or (isinstance(value, str) and not value.strip()):
        raise UsageError(f"{where}: {column} has no value. Remove the row or fill it in.")
    if is_id and not isinstance(value, (str, int, float)):
        raise UsageError(f"{where}: {column} is {str(value)[:40]!r}. It must be text or a number.")
    return id_text(value) if is_id else value


def numbers(table: pd.DataFrame, column: str, name: str) -> list[float]:
    """The column as numbers. Raises UsageError naming the row of the first value that is not a finite one."""
    found = []
    for row, value in enumerate(table[column], 1):
        try:
            found.append(float(value))
        except (TypeError, ValueError):
            found.append(math.nan)
        if not math.isfinite(found[-1]):
            raise UsageError(f"{name} row {row}: {column} is {str(value)[:40]!r}. It must be a number.")
    return found


def times(table: pd.DataFrame, column: str, name: str) -> list[int]:
    """The rank of each row's time, equal times sharing one. Times are all numbers, or all dates in ISO form.

    Raises UsageError naming the row of the first value that is neither.
    """
    found: list[Any] = []
    for row, value in enumerate(table[column], 1):
        when = _time(value)
        if when is None or (found and not _comparable(when, found[0])):
            raise UsageError(
                f"{name} row {row}: {column} is {str(value)[:40]!r}. All times must be numbers, or all dates such as "
                "2026-01-31 or 2026-01-31T12:00:00+00:00."
            )
        found.append(when)
    rank = {when: n for n, when in enumerate(sorted(set(found)))}
    return [rank[when] for when in found]


def _time(value: Any) -> int | float | datetime | None:
    if isinstance(value, (int, float)):
        return value if math.isfinite(value) else None
    for kind in (int, float, datetime.fromisoformat):
        with suppress(ValueError, TypeError):
            found: Any = kind(value)
            return None if isinstance(found, float) and not math.isfinite(found) else found
    return None


def _comparable(one: Any, other: Any) -> bool:
    """Two numbers, or two dates that both have a time zone or both lack one."""
    if isinstance(one, datetime) and isinstance(other, datetime):
        return (one.utcoffset() is None) == (other.utcoffset() is None)
    return not isinstance(one, datetime) and not isinstance(other, datetime)


def named_files(name: str, path: str, images: Iterable[Any]) -> list[Path]:
    """The images that the table at `path` names. Raises UsageError where one is not there, or not below the table's folder."""
    folder = user_path(path, name).parent
    try:
        files = [named(folder, str(image)) for image in images]
    except ValueError as error:
        raise UsageError(f"{name}: {path}: {error}.") from error
    lacking = [file for file in files if not file.is_file()]
    if lacking:
        raise UsageError(f"{name}: {path} names {lacking[0]}, which is not there.")
    return files


def image_files(folder: Path, items: Sequence[str], name: str) -> dict[str, Path]:
    """Item -> FOLDER/ITEM.png (or any other suffix that Pillow reads). Raises UsageError for items without."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    found = {nfc(path.stem): path for path in files if path.suffix.lower() in image_suffixes()}
    lacking = [item for item in items if nfc(item) not in found]
    if lacking:
        raise UsageError(
            f"{name}: {folder} has no image of {len(lacking)} of {len(items)} items, such as {lacking[0]}.png."
        )
    return {item: found[nfc(item)] for item in items}


def embed(encoder: Encoder, files: Sequence[Path], device: str, normalize: bool) -> Tensor:
    """[len(files), D] float32 on the CPU. Raises UsageError for a file that is no image."""
    import torch

    encoder.load(device, "float32")
    rows = []
    with Progress("embed", len(files)) as progress:
        for start in range(0, len(files), BATCH):
            part = files[start : start + BATCH]
            try:
                images = [rgb(path) for path in part]
            except (OSError, ValueError) as error:
                raise UsageError(f"an image could not be read: {' '.join(str(error).split())[:200]}.") from error
            rows.append(encoder.images(images, normalize=normalize).cpu())
            progress.update(len(part))
    return torch.cat(rows)


def files_digest(files: Sequence[Path]) -> str:
    """Of contents, in order."""
    from prefkit.models.load.revision import weights_revision
    from prefkit.types import digest

    return digest([weights_revision(path) for path in files])


def frame_digest(table: Any) -> str:
    """Of the values of a table, row by row."""
    from prefkit.types import digest

    return digest(table.astype(str).to_csv(index=False))
