"""Checks of untrusted images, before they are stored."""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

from prefkit.hub.importing.records import Picture
from prefkit.paths import MAX_FILE, formats, read_regular, shown

MAX_PIXELS = 64_000_000


@dataclass(frozen=True)
class Checked:
    """The encoded bytes of an image and their SHA-256; for a payload without an image, None and the payload's SHA-256."""

    data: bytes | None
    sha256: str


def check(picture: Picture) -> Checked:
    """Read the picture's bytes and decode them once. A payload without an image is only hashed.

    Raises ValueError if the image is missing, too large (checked before decoding), truncated, or not an image.
    """
    if picture.payload is not None and picture.data is None and picture.path is None:
        return Checked(None, hashlib.sha256(picture.payload).hexdigest())
    data = picture.data if picture.data is not None else _read(picture.path)
    if not data:
        raise ValueError(f"image {picture.key} is empty")
    if len(data) > MAX_FILE:
        raise ValueError(f"image {picture.key} has {len(data) >> 20} MB; at most {MAX_FILE >> 20} MB are allowed")
    _decode(picture.key, data)
    return Checked(data, hashlib.sha256(data).hexdigest())


def _read(path: Path | None) -> bytes:
    if path is None:
        raise ValueError("the image is missing")
    try:
        str(path).encode()
        return read_regular(path)
    except UnicodeEncodeError as error:
        raise ValueError(f"the file name {shown(path.name)} is not UTF-8; rename the file") from error
    except OSError as error:
        raise ValueError(f"{shown(path, 200)} cannot be read: {error.strerror or error}") from error


def _decode(key: str, data: bytes) -> None:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MAX_PIXELS is stricter than Pillow's limit
            with Image.open(io.BytesIO(data), formats=formats()) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise ValueError(
                        f"image {key} has {width} x {height} pixels; at most {MAX_PIXELS // 10**6} million are allowed"
                    )
                image.load()
    except Image.DecompressionBombError as error:  # raised for more than twice Pillow's limit
        raise ValueError(
            f"image {key} claims more than {MAX_PIXELS // 10**6} million pixels; it was not decoded"
        ) from error
    except ValueError as error:
        raise error if str(error).startswith("image ") else ValueError(f"image {key} is damaged: {error}") from error
    except Exception as error:  # decoders raise anything: OSError, SyntaxError, struct.error, ...
        text = " ".join(str(error).split())[:120]
        text = "unknown image format" if "cannot identify" in text else text
        raise ValueError(f"image {key} is damaged: {text or type(error).__name__}") from error


def suffix_of(data: bytes) -> str:
    """Return the suffix for an encoded image (.png, .jpg, ...), from its first bytes; .bin for an unknown format."""
    signatures = ((b"\x89PNG", ".png"), (b"\xff\xd8\xff", ".jpg"), (b"GIF8", ".gif"), (b"BM", ".bmp"), (b"II*", ".tif"),
             (b"MM\0*", ".tif"), (b"\0\0\0\x0cjP", ".jp2"), (b"\xffO\xffQ", ".j2k"))  # fmt: skip
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        return ".avif"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    return next((suffix for signature, suffix in signatures if data.startswith(signature)), ".bin")
