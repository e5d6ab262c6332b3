"""Encoded images to pixels: the one way in which a picture is looked at, whoever looks."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

ORIENTATION = 0x0112  # the EXIF tag; 5 to 8 lie on their side
Source = bytes | str | Path


def rgb(source: Source, draft: int | None = None) -> Image:
    """RGB uint8, turned as its EXIF data says, 16-bit greys brought to 8; transparency is dropped.

    draft: a JPEG may be decoded smaller, its sides no less than so many pixels, which is faster. Raises OSError,
    ValueError or Pillow's own errors (SyntaxError, DecompressionBombError) where the image is damaged.
    """
    import numpy as np
    from PIL import Image, ImageOps

    with Image.open(_opened(source)) as image:
        if draft is not None:
            image.draft("RGB", (draft, draft))
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):  # convert cuts 16 bits off at 255
            upright = Image.fromarray((np.asarray(upright) // 257).astype(np.uint8))
        return upright.convert("RGB")


def size(source: Source) -> tuple[int, int]:
    """(width, height) of the upright image, from the head of the file."""
    from PIL import Image

    with Image.open(_opened(source)) as image:
        width, height = image.size
        return (height, width) if image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8) else (width, height)


def _opened(source: Source) -> io.BytesIO | str | Path:
    return io.BytesIO(source) if isinstance(source, bytes) else source
