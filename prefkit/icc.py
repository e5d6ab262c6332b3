"""Convert stored pixels with an ICC colour profile to the sRGB colours that a viewer shows."""

from __future__ import annotations

import functools
import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

TOLERANCE = 2  # levels (0..255); a profile that shifts colours by at most this much counts as sRGB
#: a profile's colour space -> Pillow mode of the pixels
MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}
SRGB, CONVERTED, BROKEN = "", "profile", "broken_profile"


def to_srgb(image: Image, profile: bytes | None) -> Image:
    """Convert an image (L, RGB, CMYK or LAB) to RGB if it is LAB or its profile is not sRGB; else return it unchanged.

    Uses the perceptual intent, as viewers do. Ignores a profile that is broken or does not match the pixels' mode.
    """
    kind = kind_of(profile, image.mode)
    if kind == CONVERTED:
        return _apply(image, _transform(profile or b""))
    return _apply(image, _lab()) if image.mode == "LAB" else image


def kind_of(profile: bytes | None, mode: str) -> str:
    """Return SRGB (also without a profile), BROKEN (damaged or not for `mode`) or CONVERTED (another valid profile)."""
    if not profile:
        return SRGB
    try:
        expected, _, is_srgb = _transform(profile)
    except Exception:  # damaged profiles: PyCMSError, OSError, ValueError
        return BROKEN
    if expected != mode and (expected, mode) != ("RGB", "L"):
        return BROKEN
    return SRGB if is_srgb else CONVERTED


def _apply(image: Image, conversion: tuple[str, Any, bool]) -> Image:
    mode, transform, _ = conversion
    if image.mode != mode:  # grey pixels with an RGB profile: red, green and blue are equal
        image = image.convert(mode)
    return _by_table(image, transform) if mode == "L" else transform.apply(image)


def _by_table(image: Image, transform: Any) -> Image:
    from PIL import Image as pil

    greys = pil.frombytes("L", (256, 1), bytes(range(256)))
    tables = [channel.tobytes() for channel in transform.apply(greys).split()]
    return pil.merge("RGB", [image.point(list(table)) for table in tables])


@functools.lru_cache(32)
def _transform(profile: bytes) -> tuple[str, Any, bool]:
    """Return (mode of the pixels, transform to sRGB, True if the profile is sRGB). Raises ImageCms's errors."""
    from PIL import ImageCms

    opened = ImageCms.getOpenProfile(io.BytesIO(profile))
    mode = MODES[opened.profile.xcolor_space.strip()]
    # the optimised transform is off by 10 levels in dark greys; 256 values need no optimisation
    flags = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
    srgb = ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(opened, srgb, mode, "RGB", ImageCms.Intent.PERCEPTUAL, flags)
    return mode, transform, mode in ("L", "RGB") and _max_shift(mode, transform) <= TOLERANCE


@functools.lru_cache(1)
def _lab() -> tuple[str, Any, bool]:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return "LAB", ImageCms.buildTransform(lab, srgb, "LAB", "RGB", ImageCms.Intent.PERCEPTUAL), False


def _max_shift(mode: str, transform: Any) -> int:
    """Return the largest change of a channel by the transform, in levels, over 17 x 17 x 17 colours and all greys."""
    import numpy as np
    from PIL import Image

    greys = np.repeat(np.arange(256), 3).reshape(-1, 3)
    steps = np.linspace(0, 255, 17).round()
    grid = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, 3)
    colours = Image.fromarray((np.concatenate([greys, grid]) if mode == "RGB" else greys).astype(np.uint8)[None])
    moved = transform.apply(colours if mode == "RGB" else colours.getchannel(0))
    return int(np.abs(np.asarray(moved, np.int16) - np.asarray(colours, np.int16)).max())
