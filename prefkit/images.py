"""Encoded images to pixels: the one way in which a picture is looked at, whoever looks."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from prefkit.paths import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image

ORIENTATION = 0x0112  # the EXIF tag; 5 to 8 lie on their side
#: how to stand it up, as Image.Transpose names it
TURNS = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE",
         8: "ROTATE_90"}  # fmt: skip
WIDTH, HEIGHT = 256, 257  # tags of TIFF
#: chunks of a PNG that can say how it stands
SAYING = (b"eXIf", b"iTXt", b"tEXt", b"zTXt")
Source = bytes | str | Path


def rgb(source: Source, draft: int | None = None) -> Image:
    """RGB uint8, turned as its EXIF data says, 16-bit greys brought to 8; transparency is dropped.

    draft: a JPEG may be decoded smaller, its sides no less than so many pixels, which is faster. Raises OSError or
    ValueError where the image is damaged, whatever its decoder raises.
    """
    import numpy as np
    from PIL import Image

    try:
        with _opened(source) as file, Image.open(file) as image:
            if draft is not None:
                image.draft("RGB", (draft, draft))
            stood = upright(image)
            if stood.mode.startswith("I"):  # convert cuts 16 bits off at 255
                stood = Image.fromarray((np.asarray(stood).clip(0, 65535) // 257).astype(np.uint8))
            return stood.convert("RGB")
    except (OSError, ValueError):
        raise
    except Exception as error:  # SyntaxError, struct.error, RuntimeError, DecompressionBombError
        raise ValueError(str(error) or type(error).__name__) from error


def upright(image: Image) -> Image:
    """The image as its EXIF data says it stands; the same one where it says nothing."""
    from PIL import Image as pil

    image.load()  # a TIFF turns here
    turn = TURNS.get(orientation(image))
    return image.transpose(pil.Transpose[turn]) if turn else image


def size(source: Source) -> tuple[int, int]:
    """(width, height) of the upright image, without decoding it."""
    from PIL import Image

    with _opened(source) as file, Image.open(file) as image:
        # Pillow gives a TIFF's size turned already
        width, height = (image.tag_v2[WIDTH], image.tag_v2[HEIGHT]) if image.format == "TIFF" else image.size  # type: ignore[attr-defined]
        silent = image.format == "PNG" and not said_in_png(source)
        return (height, width) if not silent and orientation(image) >= 5 else (width, height)


def orientation(image: Image) -> int:
    """1 to 8; 1 (upright) also where the EXIF data cannot be read: that says nothing about the pixels."""
    try:
        found: Any = image.getexif().get(ORIENTATION, 1)
    except Exception:  # of bytes that somebody else wrote: SyntaxError, struct.error, TypeError, ...
        return 1
    return found if found in TURNS else 1


def said_in_png(source: Source) -> bool:
    """Whether a PNG may say how it stands. Where it does not, `orientation` would decode it to learn that."""
    with _opened(source) as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            if head[4:] in SAYING:
                return True
            file.seek(int.from_bytes(head[:4], "big") + 4, io.SEEK_CUR)  # its data and checksum
    return False


def _opened(source: Source) -> BinaryIO:
    """Raises OSError for a path that leads to no regular file."""
    return io.BytesIO(source) if isinstance(source, bytes) else open_regular(source)
