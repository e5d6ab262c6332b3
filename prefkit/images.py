"""Decode images to RGB pixels as a viewer shows them, for scorers, judges, pages, caches and exports.

RULES is the version of these rules; every cache key and fingerprint that depends on pixels contains it:

- the EXIF orientation is applied; if there are several frames (GIF, WebP, APNG, TIFF), the first one is used
- pixels with a colour profile are converted to sRGB; a profile that is sRGB or broken changes nothing (prefkit/icc.py)
- values of more than 8 bits are scaled to 8 bits. Integers of 9 to 16 bits are scaled by their full range. Floats and
  32-bit integers have no known range: white is the smallest of 1 (floats only), 255 and 65535 that no value exceeds. If
  all are exceeded, white is the floats' largest value or the integers' full range. Negative values become black. An
  image with values that are not finite counts as damaged
- transparent pixels are composited on the recipe's `background` (default: white)
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
ORIENTATION = 0x0112  # EXIF tag; its values 5 to 8 swap width and height
#: EXIF orientation -> method of Image.Transpose that makes the image upright
TRANSPOSE = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270",
             7: "TRANSVERSE", 8: "ROTATE_90"}  # fmt: skip
WIDTH, HEIGHT, BITS, PHOTOMETRIC, SAMPLE_FORMAT = 256, 257, 258, 262, 339  # TIFF tags
#: PNG chunks that can hold an orientation
METADATA_CHUNKS = (b"eXIf", b"iTXt", b"tEXt", b"zTXt")
TRAITS = ("transparent", "profile", "broken_profile", "deep", "turned", "animated")
#: raw mode -> factor for the grey that a PNG declares transparent: Pillow scales only the pixels to 8 bits
STRETCHED = {"L;2": 85, "L;4": 17}
RESIZED_DIFFERENTLY = ("1", "P", "CMYK")
Source = bytes | str | Path


class Background:
    """The process-wide colour behind transparent pixels, set when a recipe is read."""

    colour: tuple[int, int, int] = (255, 255, 255)

    @classmethod
    def set(cls, name: str) -> None:
        """Set the colour, given in CSS notation such as white or #f5f5dc. Raises ValueError if it is unknown."""
        from PIL import ImageColor

        cls.colour = ImageColor.getrgb(name)[:3]

    @classmethod
    def rules(cls) -> str:
        """Return the version of the rules and the colour, for the cache keys of everything made from pixels."""
        return f"{RULES} on {cls.name()}"

    @classmethod
    def name(cls) -> str:
        return "#{:02x}{:02x}{:02x}".format(*cls.colour)

    @classmethod
    def suffix(cls) -> str:
        """Return the text to append to a scorer's spec if the colour is not white, else an empty string."""
        return "" if cls.colour == (255, 255, 255) else f"; transparency on {cls.name()}"


def rgb(source: Source, draft: int | None = None) -> Image:
    """Decode an image to RGB uint8 by the rules of this module. Raises OSError or ValueError for any damaged image.

    draft: a JPEG may be decoded faster, at a smaller size whose sides are at least `draft` pixels.
    """
    from PIL import Image

    with _image(source) as image:
        sample = _sample(image)
        if draft is not None:
            image.draft("RGB", (draft, draft))
        colours, alpha = _split(upright(image), image, sample)
        opaque = icc.to_srgb(colours, image.info.get("icc_profile")).convert("RGB")
        if alpha is None or alpha.getextrema()[0] == 255:
            return opaque
        return Image.composite(opaque, Image.new("RGB", opaque.size, Background.colour), alpha)


def native(source: Source) -> Image | None:
    """Return the upright image in its own mode if that mode (P, 1, CMYK) resizes differently from RGB, else None.

    Also None for images with transparency or a colour profile. Used by scorers whose published code resizes before it
    converts to RGB. Raises the same errors as `rgb`.
    """
    with _image(source) as image:
        if image.mode not in RESIZED_DIFFERENTLY or image.has_transparency_data or image.info.get("icc_profile"):
            return None
        return upright(image).copy()


def storable(image: Image, kind: str) -> Image:
    """Return a decoded image in a mode that `kind` ("png" or "webp") supports: unchanged if its mode is supported, else
    converted to 8 bits by the rules in the module docstring. Raises ValueError for values that are not finite."""
    import numpy as np

    supported = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16") if kind == "png" else ("RGB", "RGBA")
    if image.mode in supported:
        return image
    if image.mode.startswith(("I", "F")):
        return _eight_bits(np.asarray(image), image).convert("RGB")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _split(image: Image, opened: Image, sample: str) -> tuple[Image, Image | None]:
    """Split an image into 8-bit colours (mode L, RGB, CMYK or LAB) and alpha (mode L; None if opaque)."""
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
    if image.mode in ("L", "RGB"):  # one colour is transparent; the file gives it in its own bit depth
        image = image.copy()
        if image.mode == "L":
            image.info["transparency"] = STRETCHED.get(sample, 1) * key
        elif sample.startswith("RGB;16"):
            image.info["transparency"] = tuple(value >> 8 for value in key)
    both = image.convert("RGBA")
    return image if image.mode == "L" else both.convert("RGB"), both.getchannel("A")


def _eight_bits(values: Any, opened: Image) -> Image:
    """Scale floats, or integers of more than 8 bits, [H, W], to mode L. opened: the image file, for its TIFF tags."""
    import numpy as np
    from PIL import Image

    tags = getattr(opened, "tag_v2", {})
    bits, signed = (tags.get(BITS) or (16,))[0], (tags.get(SAMPLE_FORMAT) or (1,))[0] == 2
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise ValueError("some pixel values are not finite")
        most = float(values.max(initial=0.0))
        top = next((top for top in (1.0, 255.0, 65535.0) if most <= top), most)
        levels = np.rint(values.clip(0, top) * (255.0 / top))
    else:
        if bits == 32 and not signed:
            values = values.view(np.uint32)
        full = 2**bits - 1 if not signed else 2 ** (bits - 1) - 1
        most = int(values.max(initial=0))
        top = full if bits <= 16 else next((top for top in (255, 65535) if most <= top), full)
        levels = values.astype(np.int64).clip(0, top) * 255 // top
    if tags.get(PHOTOMETRIC) == 0:  # 0 is white; Pillow inverts only up to 8 bits
        levels = 255 - levels
    return Image.fromarray(levels.astype(np.uint8))


def _sample(image: Image) -> str:
    """Return Pillow's raw mode of the file's pixels, such as RGB;16B. Call it before the image is loaded."""
    tile: Any = getattr(image, "tile", None)
    args = tile[0].args if tile else ""
    return str(args[0] if isinstance(args, tuple) and args else args)


def traits(source: Source) -> frozenset[str]:
    """Return the TRAITS of an image, reasons why viewers may show it differently. Raises the same errors as `rgb`.

    transparent: some pixel is not opaque; profile: a colour profile other than sRGB; broken_profile: an unusable one;
    deep: more than 8 bits; turned: rotated or mirrored by EXIF; animated: several frames.
    """
    with _image(source) as image:
        names, sample = head_traits(image, source), _sample(image)
        if "transparent" in names:
            _, alpha = _split(upright(image), image, sample)
            if alpha is not None and alpha.getextrema()[0] == 255:
                names.discard("transparent")
        return frozenset(names)


def head_traits(image: Image, source: Source) -> set[str]:
    """Return the TRAITS that a file's header shows. Here, "transparent" means that pixels may be transparent."""
    sample = _sample(image)
    grey = image.mode in ("1", "L", "LA", "La") or image.mode.startswith(("I", "F"))
    mode = "L" if grey else image.mode if image.mode in icc.MODES.values() else "RGB"
    profile = icc.kind_of(image.info.get("icc_profile"), mode)
    present = {
        "transparent": image.has_transparency_data,
        profile: bool(profile),
        "deep": image.mode.startswith(("I", "F")) or ";16" in sample,
        "turned": _orientation(image, source) != 1,
        "animated": image.format != "MPO" and getattr(image, "is_animated", False),
    }
    return {name for name, value in present.items() if value}


def shown(data: bytes) -> bytes:
    """Return an image file that every decoder shows alike: `data` itself if that is certain, else a PNG of `rgb(data)`.

    For programs that do not decode with this module, such as servers and other trainers. Damaged bytes are returned
    unchanged; the program that reads them reports the error.
    """
    try:
        with _image(data) as image:
            if not head_traits(image, data) - {icc.BROKEN} and image.mode not in ("CMYK", "LAB"):
                return data
        buffer = io.BytesIO()
        rgb(data).save(buffer, "PNG", compress_level=1)
    except Exception:  # decoders raise various errors for damaged bytes
        return data
    return buffer.getvalue()


def upright(image: Image) -> Image:
    """Return the image with its EXIF orientation applied; the same object if it is already upright."""
    from PIL import Image as pil

    image.load()  # Pillow rotates a TIFF here
    method = TRANSPOSE.get(orientation(image))
    return image.transpose(pil.Transpose[method]) if method else image


def size(source: Source) -> tuple[int, int]:
    """Return (width, height) of the upright image without decoding it. Raises the same errors as `rgb`."""
    with _image(source) as image:
        # a TIFF's size is read from its tags: Pillow's size is that of the rotated image
        width, height = (image.tag_v2[WIDTH], image.tag_v2[HEIGHT]) if image.format == "TIFF" else image.size  # type: ignore[attr-defined]
        return (height, width) if _orientation(image, source) >= 5 else (width, height)


def orientation(image: Image) -> int:
    """Return the EXIF orientation, 1 to 8. Damaged EXIF data counts as 1 (upright): the pixels may be intact."""
    try:
        value: Any = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF data: SyntaxError, struct.error, TypeError, ...
        return 1
    return value if value in TRANSPOSE else 1


def _orientation(image: Image, source: Source) -> int:
    """Return `orientation` without decoding pixels, as getexif would for a PNG without metadata chunks."""
    return 1 if image.format == "PNG" and not png_has_metadata(source) else orientation(image)


def png_has_metadata(source: Source) -> bool:
    """True if a PNG has a chunk that can hold an orientation."""
    with _opened(source) as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            if head[4:] in METADATA_CHUNKS:
                return True
            file.seek(int.from_bytes(head[:4], "big") + 4, io.SEEK_CUR)  # skip the chunk's data and checksum
    return False


@contextmanager
def _image(source: Source) -> Iterator[Image]:
    """Open an image without decoding it. Errors other than OSError (SyntaxError, ...) become a ValueError."""
    from PIL import Image

    try:
        with _opened(source) as file, Image.open(file) as image:
            yield image
    except (OSError, ValueError):
        raise
    except Exception as error:
        raise ValueError(str(error) or type(error).__name__) from error


def _opened(source: Source) -> BinaryIO:
    """Open a source for reading. Raises OSError for anything but a regular file."""
    return io.BytesIO(source) if isinstance(source, bytes) else open_regular(source)
