"""Contact sheets for cards: pairs of images in one WebP file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from prefkit.images import rgb

CELL = 192
GAP = 6
GREEN, GREY, WHITE = (46, 160, 67), (160, 160, 160), (255, 255, 255)


def pair_sheet(pairs: Sequence[tuple[bytes, bytes]], path: Path) -> None:
    """Write pairs of encoded images, four per row; a pair's first image has a green border, its second a grey one."""
    from PIL import Image

    pitch = CELL + 2 * GAP
    width, columns = 2 * pitch + GAP, min(4, len(pairs))
    sheet = Image.new("RGB", (columns * width, -(-len(pairs) // columns) * pitch), WHITE)
    for number, pair in enumerate(pairs):
        x, y = number % columns * width, number // columns * pitch
        for data, edge in zip(pair, (GREEN, GREY)):
            sheet.paste(Image.new("RGB", (CELL + GAP, CELL + GAP), edge), (x + GAP // 2, y + GAP // 2))
            sheet.paste(_thumbnail(data), (x + GAP, y + GAP))
            x += pitch
    buffer = io.BytesIO()
    sheet.save(buffer, "WEBP", quality=82, method=4)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())


def _thumbnail(data: bytes):
    """Return a white CELL x CELL square with the image in its centre; the square is empty for a damaged image."""
    from PIL import Image

    square = Image.new("RGB", (CELL, CELL), WHITE)
    try:
        small = rgb(data, draft=CELL)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return square
    scale = CELL / max(small.size)
    size = (max(1, round(small.width * scale)), max(1, round(small.height * scale)))
    square.paste(small.resize(size, Image.Resampling.BICUBIC), ((CELL - size[0]) // 2, (CELL - size[1]) // 2))
    return square
