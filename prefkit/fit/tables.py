"""Load the user's tables as data frames, and embed the images that they name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.errors import UsageError
from prefkit.images import rgb
from prefkit.output import Progress, message
from prefkit.paths import image_suffixes, named, nfc
from prefkit.tables import SUFFIXES, id_text, read, user_path
from prefkit.types import digest

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from prefkit.score.embed.encoder import Encoder

BATCH = 64


def read_table(
    name: str, path: str, required: Sequence[str], ids: Sequence[str] = (), optional: Sequence[str] = ()
) -> pd.DataFrame:
    """Read a table in any supported format as a data frame of unchanged Python objects (text for a .csv file).

    required: columns that must exist and have a value in every row. ids: columns that `id_text` converts to text; those
    in the table need a value in every row. optional: other columns to keep. Raises UsageError naming the row.
    """
    import pandas as pd

    if not path:
        raise UsageError(f"{name} is not set. Give a table ({', '.join(SUFFIXES)}) with columns {', '.join(required)}.")
    wanted = {*required, *ids, *optional}
    rows = []
    for where, values, _ in read(user_path(path, name), shown=f"{name}: {path}"):
        missing = [column for column in required if column not in values]
        if missing:
            raise UsageError(f"{where} has no column {', '.join(missing)} (it has {', '.join(values)}).")
        rows.append({column: value for column, value in values.items() if column in wanted})
        for column in (*required, *ids):
            if column in rows[-1]:
                rows[-1][column] = _checked(rows[-1][column], column, column in ids, where)
    if not rows:
        raise UsageError(f"{name}: {path} has no rows.")
    columns = dict.fromkeys(column for row in rows for column in row)
    uneven = [column for column in ids if column in columns and not all(column in row for row in rows)]
    if uneven:
        raise UsageError(f"{name}: {path} has rows without {uneven[0]}. Set it in every row or in none.")
    return pd.DataFrame({column: [row.get(column) for row in rows] for column in columns}, dtype=object)


def _checked(value: Any, column: str, is_id: bool, where: str) -> Any:
    if value is None or (isinstance(value, str) and not value.strip()):
        raise UsageError(f"{where}: {column} has no value. Remove the row or fill it in.")
    if is_id and not isinstance(value, (str, int, float)):
        raise UsageError(f"{where}: {column} is {str(value)[:40]!r}. It must be text or a number.")
    return id_text(value) if is_id else value


def numbers(table: pd.DataFrame, column: str, name: str) -> list[float]:
    """Return a column as floats. Raises UsageError naming the first row whose value is not a finite number."""
    values = []
    for row, value in enumerate(table[column], 1):
        number = math.nan
        with suppress(TypeError, ValueError):
            number = float(value)
        if not math.isfinite(number):
            raise UsageError(f"{name} row {row}: {column} is {str(value)[:40]!r}. It must be a number.")
        values.append(number)
    return values


def times(table: pd.DataFrame, column: str, name: str) -> list[int]:
    """Return the rank of each row's time, from 0; equal times share a rank. Times must be all numbers or all dates.

    Raises UsageError naming the first row that breaks this rule.
    """
    values: list[Any] = []
    for row, value in enumerate(table[column], 1):
        time = _time(value)
        if time is None or (values and not _comparable(time, values[0])):
            raise UsageError(
                f"{name} row {row}: {column} is {str(value)[:40]!r}. All times must be numbers, or all dates such as "
                "2026-01-31 or 2026-01-31T12:00:00+00:00."
            )
        values.append(time)
    rank = {time: n for n, time in enumerate(sorted(set(values)))}
    return [rank[time] for time in values]


def _time(value: Any) -> Any:
    """Parse a time as int, float or datetime. Returns None for any other value."""
    if isinstance(value, (int, float)):
        return value if math.isfinite(value) else None
    for kind in (int, float, datetime.fromisoformat):
        with suppress(ValueError, TypeError):
            time: Any = kind(value)
            return None if isinstance(time, float) and not math.isfinite(time) else time
    return None


def _comparable(one: Any, other: Any) -> bool:
    """True for two numbers, and for two dates that both have a time zone or both lack one."""
    if isinstance(one, datetime) and isinstance(other, datetime):
        return (one.utcoffset() is None) == (other.utcoffset() is None)
    return not isinstance(one, datetime) and not isinstance(other, datetime)


def named_files(name: str, path: str, images: Iterable[Any]) -> list[Path]:
    """Return the paths of a table's images, relative to its folder. Raises UsageError if one is missing or outside."""
    folder = user_path(path, name).parent
    try:
        files = [named(folder, str(image)) for image in images]
    except ValueError as error:
        raise UsageError(f"{name}: {path}: {error}.") from error
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise UsageError(f"{name}: {path} names {missing[0]}, which does not exist.")
    return files


def image_files(folder: Path, items: Sequence[str], name: str) -> dict[str, Path]:
    """Map items to FOLDER/ITEM.png (or any suffix that Pillow reads). Raises UsageError for items without an image."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    images = {nfc(path.stem): path for path in files if path.suffix.lower() in image_suffixes()}
    missing = [item for item in items if nfc(item) not in images]
    if missing:
        raise UsageError(
            f"{name}: {folder} has no image for {len(missing)} of {len(items)} items, such as {missing[0]}.png."
        )
    return {item: images[nfc(item)] for item in items}


def embed(encoder: Encoder, files: Sequence[Path], device: str, normalize: bool) -> Tensor:
    """Embed image files: [len(files), D] float32 on the CPU. Raises UsageError naming a file that is not an image."""
    import torch

    encoder.load(device, "float32")
    rows = []
    with Progress("embed", len(files)) as progress:
        for start in range(0, len(files), BATCH):
            images = [_image(path) for path in files[start : start + BATCH]]
            rows.append(encoder.images(images, normalize=normalize).cpu())
            progress.update(len(images))
    return torch.cat(rows)


def _image(path: Path) -> Any:
    try:
        return rgb(path)
    except (OSError, ValueError) as error:
        text = message(str(error), 200)
        raise UsageError(f"image {path} could not be read: {text}. Replace the file or remove its row.") from error


def files_digest(files: Sequence[Path]) -> str:
    """Return one digest of all files' contents, in order."""
    from prefkit.models.load.revision import weights_revision

    return digest([weights_revision(path) for path in files])


def frame_digest(table: pd.DataFrame) -> str:
    """Return a digest of a table's values, row by row."""
    return digest(table.astype(str).to_csv(index=False))
