"""The user's tables, and the embeddings of the images that they name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.errors import UsageError
from prefkit.images import rgb
from prefkit.output import Progress
from prefkit.paths import image_suffixes, nfc

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from prefkit.score.encoder import Encoder

BATCH = 64


def read_table(name: str, path: str, needed: Sequence[str]) -> pd.DataFrame:
    """.csv, .jsonl or .parquet; a row that lacks a needed value is an error. Raises UsageError."""
    import pandas as pd

    if not path:
        raise UsageError(f"{name} is not set: give a table (.csv, .jsonl or .parquet) with {', '.join(needed)}.")
    file = Path(path).expanduser()
    try:
        if file.suffix == ".parquet":
            table = pd.read_parquet(file)
        elif file.suffix == ".jsonl":
            table = pd.read_json(file, lines=True, dtype=False)
        else:  # ids such as 007 stay what they are
            table = pd.read_csv(file, dtype={column: str for column in ("user", "item", "outfit", "image")})
    except (OSError, ValueError) as error:
        raise UsageError(f"{name}: {path} could not be read: {' '.join(str(error).split())[:200]}.") from error
    missing = [column for column in needed if column not in table.columns]
    if missing:
        raise UsageError(
            f"{name}: {path} has no column {', '.join(missing)} (it has {', '.join(map(str, table.columns))})."
        )
    holes = table[list(needed)].isna().any(axis=1)
    if holes.any():
        raise UsageError(
            f"{name}: {path}, row {int(holes.to_numpy().argmax())}: an empty value; remove the row or fill it in."
        )
    if table.empty:
        raise UsageError(f"{name}: {path} has no rows.")
    return table


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
    from prefkit.models.revision import weights_revision
    from prefkit.types import digest

    return digest([weights_revision(path) for path in files])


def frame_digest(table: Any) -> str:
    """Of the values of a table, row by row."""
    from prefkit.types import digest

    return digest(table.astype(str).to_csv(index=False))
