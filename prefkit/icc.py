"""Colour profiles (ICC): pixels as stored -> the sRGB colours that a viewer shows."""

from __future__ import annotations

import functools
import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

SAME = 2  # levels of 255: a profile that moves no colour further than this is sRGB, and pixels stay as stored
#: colour space of a profile -> mode of the pixels it describes
MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}
SRGB, CONVERTED, BROKEN = "", "profile", "broken_profile"


def to_srgb(image: Image, profile: bytes | None) -> Image:
    """Pixels of mode L, RGB, CMYK or LAB -> the same image, or a new RGB one where its profile is not sRGB.

    The perceptual intent, as viewers use. A broken profile is ignored, and so is one of another colour space than the pixels.
    """
    kind = kind_of(profile, image.mode)
    if kind == CONVERTED:
        return _apply(image, _transform(profile or b""))
    return _apply(image, _lab()) if image.mode == "LAB" else image


def kind_of(profile: bytes | None, mode: str) -> str:
    """SRGB (also where there is no profile), CONVERTED or BROKEN. mode: of the pixels, L, RGB, CMYK or LAB."""
    if not profile:
        return SRGB
    try:
        wanted, _, same = _transform(profile)
    except Exception:  # PyCMSError, OSError, ValueError: bytes that somebody else wrote
        return BROKEN
    if wanted != mode and (wanted, mode) != ("RGB", "L"):
        return BROKEN
    return SRGB if same else CONVERTED


def _apply(image: Image, found: tuple[str, Any, bool]) -> Image:
    wanted, transform, _ = found
    if image.mode != wanted:  # grey pixels with a profile for RGB are red, green and blue alike
        image = image.convert(wanted)
    if wanted == "L":
        return _by_table(image, transform)
    result: Image = transform.apply(image)
    return result


def _by_table(image: Image, transform: Any) -> Image:
    from PIL import Image as pil

    greys = pil.frombytes("L", (256, 1), bytes(range(256)))
    tables = [channel.tobytes() for channel in transform.apply(greys).split()]
    return pil.merge("RGB", [image.point(list(table)) for table in tables])


@functools.lru_cache(32)
def _transform(profile: bytes) -> tuple[str, Any, bool]:
    """(mode of the pixels, transform to sRGB, whether it is sRGB itself). Raises what ImageCms raises for a broken profile."""
    from PIL import ImageCms

    opened = ImageCms.getOpenProfile(io.BytesIO(profile))
    mode = MODES[opened.profile.xcolor_space.strip()]
    # exact, for 256 colours are transformed; the library's own shortcut for grey is 10 levels off in dark tones
    flags = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
    srgb = ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(opened, srgb, mode, "RGB", ImageCms.Intent.PERCEPTUAL, flags)
    return mode, transform, mode in ("L", "RGB") and _moves(mode, transform) <= SAME


@functools.lru_cache(1)
def _lab() -> tuple[str, Any, bool]:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return "LAB", ImageCms.buildTransform(lab, srgb, "LAB", "RGB", ImageCms.Intent.PERCEPTUAL), False


def _moves(mode: str, transform: Any) -> int:
    """By how many levels the transform moves a colour at most, over a grid of 17 x 17 x 17 colours and all greys."""
    import numpy as np
    from PIL import Image

    greys = np.repeat(np.arange(256), 3).reshape(-1, 3)
    steps = np.linspace(0, 255, 17).round()
    grid = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, 3)
    colours = Image.fromarray((np.concatenate([greys, grid]) if mode == "RGB" else greys).astype(np.uint8)[None])
    moved = transform.apply(colours if mode == "RGB" else colours.getchannel(0))
    return int(np.abs(np.asarray(moved, np.int16) - np.asarray(colours, np.int16)).max())
