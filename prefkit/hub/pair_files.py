"""Writes the images and captions of pairs as files that other programs read."""

from __future__ import annotations

import io
from pathlib import Path

from prefkit.hub.importing.image_check import suffix_of
from prefkit.images import rgb

#: suffixes of the formats that every trainer reads
COMMON = (".png", ".jpg", ".webp")


def write_image(folder: Path, name: str, data: bytes) -> Path:
    """Write FOLDER/NAME.png, .jpg or .webp and return its path. Images of other formats are converted to PNG."""
    suffix = suffix_of(data)
    path = folder / f"{name}{suffix if suffix in COMMON else '.png'}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if suffix in COMMON else as_png(data))
    return path


def as_png(data: bytes) -> bytes:
    out = io.BytesIO()
    rgb(data).save(out, "PNG")
    return out.getvalue()


def one_line(caption: str) -> str:
    """Join a caption's lines into one, for programs that read each line of a caption file as its own caption."""
    lines = caption.splitlines()
    return caption if lines in ([], [caption]) else " ".join(filter(None, (line.strip() for line in lines)))
