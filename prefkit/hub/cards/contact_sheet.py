"""Contact sheets for cards: cells chosen by hash, never picked, as one WebP image."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from prefkit.images import rgb

CELL = 192
GAP = 6
WINNER, LOSER, PAPER = (46, 160, 67), (160, 160, 160), (255, 255, 255)


def pair_sheet(pairs: Sequence[tuple[bytes, bytes]], path: Path, columns: int = 4) -> None:
    """Pairs as (winner, loser) encoded images, side by side: the winner first, with a green edge."""
    cells = [[(_thumbnail(win), WINNER), (_thumbnail(lose), LOSER)] for win, lose in pairs]
    width = 2 * (CELL + 2 * GAP) + GAP
    _paste(cells, width, CELL + 2 * GAP, columns, path)


def compared_sheet(rows: Sequence[tuple[bytes, bytes]], path: Path, columns: int = 4) -> None:
    """(base, tuned) at equal seed, side by side."""
    pair_sheet([(tuned, base) for base, tuned in rows], path, columns)


def _paste(cells: list, width: int, height: int, columns: int, path: Path) -> None:
    from PIL import Image

    columns = min(columns, len(cells))
    sheet = Image.new("RGB", (columns * width, -(-len(cells) // columns) * height), PAPER)
    for number, cell in enumerate(cells):
        x, y = number % columns * width, number // columns * height
        for image, edge in cell:
            sheet.paste(Image.new("RGB", (CELL + GAP, CELL + GAP), edge), (x + GAP // 2, y + GAP // 2))
            sheet.paste(image, (x + GAP, y + GAP))
            x += CELL + 2 * GAP
    buffer = io.BytesIO()
    sheet.save(buffer, "WEBP", quality=82, method=4)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())


def _thumbnail(data: bytes):
    """A square of CELL pixels that holds the whole image."""
    from PIL import Image

    square = Image.new("RGB", (CELL, CELL), PAPER)
    try:
        small = rgb(data, draft=CELL)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return square  # a damaged image leaves its cell empty
    scale = CELL / max(small.size)
    small = small.resize((max(1, round(small.width * scale)), max(1, round(small.height * scale))), Image.Resampling.BICUBIC)  # fmt: skip
    square.paste(small, ((CELL - small.width) // 2, (CELL - small.height) // 2))
    return square
