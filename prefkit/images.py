"""Encoded images to RGB pixels as a viewer shows them, in one place for scorers, judges, pages, caches and exports.

The rules. RULES is their version; every cache and fingerprint of something made from pixels contains it:

- the EXIF orientation is applied; of several frames (GIF, WebP, APNG, TIFF) the first one counts
- a colour profile is converted to sRGB; one that is sRGB, or broken, leaves pixels as stored (prefkit/icc.py)
- more than 8 bits are scaled: integers of 9 to 16 bits by their full range. Floats and integers of 32 bits do not say
  their range, so the largest value decides: up to 1 (floats only), 255 or 65535, else the integer's full range or, of
  floats, the largest value itself. Values below 0 are black; values that are not finite make the image damaged
- transparency is composited on the background: white, unless the recipe's `background` says otherwise
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from prefkit import icc
from prefkit.paths import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image

RULES = 2
ORIENTATION = 0x0112  # the EXIF tag; 5 to 8 lie on their side
#: how to stand it up, as Image.Transpose names it
TURNS = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE",
         8: "ROTATE_90"}  # fmt: skip
WIDTH, HEIGHT, BITS, PHOTOMETRIC, SAMPLE_FORMAT = 256, 257, 258, 262, 339  # tags of TIFF
#: chunks of a PNG that can say how it stands
SAYING = (b"eXIf", b"iTXt", b"tEXt", b"zTXt")
#: what `traits` finds
TRAITS = ("transparent", "profile", "broken_profile", "deep", "turned", "animated")
#: samples of fewer bits are stretched to 8, the transparent grey of a PNG is not
STRETCHED = {"L;2": 85, "L;4": 17}
RESIZED_OTHERWISE = ("1", "P", "CMYK")
Source = bytes | str | Path


class Background:
    """What transparency is composited on; one for the process, set by whoever reads a recipe."""

    colour: tuple[int, int, int] = (255, 255, 255)

    @classmethod
    def set(cls, name: str) -> None:
        """name: as CSS writes colours (white, #f5f5dc). Raises ValueError."""
        from PIL import ImageColor

        cls.colour = ImageColor.getrgb(name)[:3]

    @classmethod
    def rules(cls) -> str:
        """Names the rules and the colour: part of a key of whatever is kept of pixels."""
        return f"{RULES} on {cls.name()}"

    @classmethod
    def name(cls) -> str:
        return "#{:02x}{:02x}{:02x}".format(*cls.colour)

    @classmethod
    def said(cls) -> str:
        """What a spec adds where the colour is not white."""
        return "" if cls.colour == (255, 255, 255) else f"; transparency on {cls.name()}"


def rgb(source: Source, draft: int | None = None) -> Image:
    """RGB uint8, by the rules above.

    draft: a JPEG may be decoded smaller, its sides no less than so many pixels, which is faster. Raises OSError or
    ValueError where the image is damaged, whatever its decoder raises.
    """
    from PIL import Image

    with _image(source) as image:
        sample = _sample(image)
        if draft is not None:
            image.draft("RGB", (draft, draft))
        colours, alpha = _split(upright(image), image, sample)
        seen = icc.to_srgb(colours, image.info.get("icc_profile")).convert("RGB")
        if alpha is None or alpha.getextrema()[0] == 255:
            return seen
        return Image.composite(seen, Image.new("RGB", seen.size, Background.colour), alpha)


def native(source: Source) -> Image | None:
    """An upright, opaque image without a profile in its own mode, where that resizes otherwise than its RGB: P, 1, CMYK.

    None for all others. For scorers whose published code resizes before it converts to RGB (a palette is then not
    interpolated). Raises as `rgb`.
    """
    with _image(source) as image:
        if image.mode not in RESIZED_OTHERWISE or image.has_transparency_data or image.info.get("icc_profile"):
            return None
        return upright(image).copy()


def storable(image: Image, kind: str) -> Image:
    """A decoded image in a mode that `kind` ("png" or "webp") can hold: the same one where it can, else 8 bits by the rules
    above. Raises ValueError where values are not finite."""
    import numpy as np

    holds = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16") if kind == "png" else ("RGB", "RGBA")
    if image.mode in holds:
        return image
    if image.mode.startswith(("I", "F")):
        return _eight_bits(np.asarray(image), image).convert("RGB")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _split(image: Image, opened: Image, sample: str) -> tuple[Image, Image | None]:
    """(colours of 8 bits as L, RGB, CMYK or LAB; alpha as L, or None where there is none). sample: see `_sample`."""
    from PIL import Image as pil

    key: Any = image.info.get("transparency")
    if image.mode.startswith(("I", "F")):
        import numpy as np

        values = np.asarray(image)
        alpha = pil.fromarray(np.where(values == key, 0, 255).astype(np.uint8)) if isinstance(key, int) else None
        return _eight_bits(values, opened), alpha
    if not image.has_transparency_data:
        return image if image.mode in icc.MODES.values() else image.convert("L" if image.mode == "1" else "RGB"), None
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode == "LA":
        return image.getchannel("L"), image.getchannel("A")
    if image.mode in ("L", "RGB"):  # one colour is transparent, and is named in the file's own depth
        image = image.copy()
        if image.mode == "L":
            image.info["transparency"] = STRETCHED.get(sample, 1) * key
        elif sample.startswith("RGB;16"):
            image.info["transparency"] = tuple(value >> 8 for value in key)
    both = image.convert("RGBA")
    return image if image.mode == "L" else both.convert("RGB"), both.getchannel("A")


def _eight_bits(values: Any, opened: Image) -> Image:
    """[H, W] of integers beyond 8 bits, or floats, as mode L. opened: the file, whose tags say what TIFF means."""
    import numpy as np
    from PIL import Image

    tags = getattr(opened, "tag_v2", {})
    bits, signed = (tags.get(BITS) or (16,))[0], (tags.get(SAMPLE_FORMAT) or (1,))[0] == 2
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise ValueError("some of its values are not finite")
        most = float(values.max(initial=0.0))
        top = next((top for top in (1.0, 255.0, 65535.0) if most <= top), most)
        levels = np.rint(values.clip(0, top) * (255.0 / top))
    else:
        if bits == 32 and not signed:
            values = values.view(np.uint32)
        whole = 2**bits - 1 if not signed else 2 ** (bits - 1) - 1
        most = int(values.max(initial=0))
        top = whole if bits <= 16 else next((top for top in (255, 65535) if most <= top), whole)
        levels = values.astype(np.int64).clip(0, top) * 255 // top
    if tags.get(PHOTOMETRIC) == 0:  # white is zero; Pillow turns only 8 bits and less
        levels = 255 - levels
    return Image.fromarray(levels.astype(np.uint8))


def _sample(image: Image) -> str:
    """How the file holds a pixel, as Pillow's raw modes have it (L;2, RGB;16B); known until it is loaded."""
    tile: Any = getattr(image, "tile", None)
    args = tile[0].args if tile else ""
    return str(args[0] if isinstance(args, tuple) and args else args)


def traits(source: Source) -> frozenset[str]:
    """Which of TRAITS make the image another one than its stored RGB numbers. Raises as `rgb`.

    transparent: some pixel is not opaque; profile: a colour profile that is not sRGB; deep: more than 8 bits; turned: by
    EXIF; animated: several frames.
    """
    with _image(source) as image:
        found, sample = head_traits(image, source), _sample(image)
        if "transparent" in found:
            _, alpha = _split(upright(image), image, sample)
            if alpha is not None and alpha.getextrema()[0] == 255:
                found.discard("transparent")
        return frozenset(found)


def head_traits(image: Image, source: Source) -> set[str]:
    """By the head of an opened file alone: transparent is then what may be so."""
    sample = _sample(image)
    grey = image.mode in ("1", "L", "LA", "La") or image.mode.startswith(("I", "F"))
    mode = "L" if grey else image.mode if image.mode in icc.MODES.values() else "RGB"
    silent = image.format == "PNG" and not said_in_png(source)
    profile = icc.kind_of(image.info.get("icc_profile"), mode)
    found = {
        "transparent": image.has_transparency_data,
        profile: bool(profile),
        "deep": image.mode.startswith(("I", "F")) or ";16" in sample,
        "turned": not silent and orientation(image) != 1,
        "animated": image.format != "MPO" and getattr(image, "is_animated", False),
    }
    return {name for name, there in found.items() if there}


def shown(data: bytes) -> bytes:
    """The encoded image as everyone who decodes it shows it: the same bytes wherever they say so, else `rgb` as PNG.

    For those who do not decode with this module: servers, other trainers. Damaged bytes are returned as they are, for
    their reader to say what is wrong.
    """
    try:
        with _image(data) as image:
            if not head_traits(image, data) - {icc.BROKEN} and image.mode not in ("CMYK", "LAB"):
                return data
        buffer = io.BytesIO()
        rgb(data).save(buffer, "PNG", compress_level=1)
    except Exception:  # of bytes that somebody else wrote
        return data
    return buffer.getvalue()


def upright(image: Image) -> Image:
    """The image as its EXIF data says it stands; the same one where it says nothing."""
    from PIL import Image as pil

    image.load()  # a TIFF turns here
    turn = TURNS.get(orientation(image))
    return image.transpose(pil.Transpose[turn]) if turn else image


def size(source: Source) -> tuple[int, int]:
    """(width, height) of the upright image, without decoding it. Raises as `rgb`."""
    with _image(source) as image:
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


@contextmanager
def _image(source: Source) -> Iterator[Image]:
    """Open, not decoded. What a decoder raises becomes a ValueError: SyntaxError, struct.error, DecompressionBombError, ..."""
    from PIL import Image

    try:
        with _opened(source) as file, Image.open(file) as image:
            yield image
    except (OSError, ValueError):
        raise
    except Exception as error:
        raise ValueError(str(error) or type(error).__name__) from error


def _opened(source: Source) -> BinaryIO:
    """Raises OSError for a path that leads to no regular file."""
    return io.BytesIO(source) if isinstance(source, bytes) else open_regular(source)
