"""Recognition of the look of a subject, without a trained model.

The law and the subject are given. 16 drawings of every look in other poses, and their mean, are composed on the picture's
backdrop (the median of its rim, or the lamp's colour), at 32 x 32, and compared with 25 shifts of the picture. The drawing with
the smallest squared error wins. Its match is the fraction of the picture's squared difference from the backdrop that it
explains. A picture is not recognized if its match is below MATCH, or if one of four drawings of another subject of the law has
less than RIVAL of the error: it shows something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from laws import LAWS
from looks import LAMPS, SIZE, Scene, foreground
from PIL import Image

HALF = SIZE // 2
DRAWINGS, RIVAL_DRAWINGS, RIM = 16, 4, 2
SHIFTS = (-2, -1, 0, 1, 2)  # px of the half-size picture
FAINT = 0.002  # lower limit of a picture's mean squared difference from its backdrop, as a fraction of full scale
RIVAL = 0.8
#: law -> 5th percentile of the match of renders after the autoencoder with noise, to .05 (check_reader.py --n 80)
MATCH: dict[str, float] = {
    "ripeness": 0.65, "season": 0.5, "rust": 0.3, "melting": 0.4, "light": 0.45, "watering": 0.7, "circuit": 0.65,
    "flame": 0.55, "buoyancy": 0.55, "absorption": 0.25, "layers": 0.55, "diffusion": 0.4,
}  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """The recognized look. look and setting are None if the picture does not show the subject. match: at most 1."""

    look: str | None
    setting: str | None
    match: float


@dataclass(frozen=True)
class Drawings:
    """Drawings of a subject. names: (look, setting) of each; colour [K, 32, 32, 3], premultiplied; cover [K, 32, 32, 1]; 0..1."""

    names: list[tuple[str, str]]
    colour: np.ndarray
    cover: np.ndarray


@lru_cache(maxsize=512)
def drawings(law: str, subject: str, count: int = DRAWINGS) -> Drawings:
    """Draw a subject in every look and setting, `count` times, and add the mean."""
    names, parts = [], []
    for look, setting in product(LAWS[law].looks, tuple(LAWS[law].settings.values()) or ("",)):
        scene = Scene(law, subject, look, setting)
        scene.check()
        made = [_half(foreground(scene, np.random.default_rng([10**6, seed]))) for seed in range(count)]
        parts += [*made, np.mean(made, 0)]
        names += [(look, setting)] * (count + 1)
    stack = np.stack(parts)
    return Drawings(names, stack[..., :3], stack[..., 3:])


def _half(image: Image.Image) -> np.ndarray:
    """Return a drawing at half size with premultiplied colour: float32 [32, 32, 4] in 0..1."""
    pixels = np.asarray(image, np.float32) / 255
    pixels[..., :3] *= pixels[..., 3:]
    return pixels.reshape(HALF, 2, HALF, 2, 4).mean((1, 3))


def read(image: Image.Image, law: str, subject: str, threshold: float | None = None, rival: float = RIVAL) -> Seen:
    """Recognize a subject's look. threshold: of the match; default MATCH. rival: 0 compares with no other subject.

    Raises UsageError for an unknown law or subject.
    """
    Scene(law, subject, LAWS[law].looks[0] if law in LAWS else "", _first_setting(law)).check()
    pixels = _pixels(image)
    shifted, ground = _shifts(pixels), np.median(np.concatenate([part.reshape(-1, 3) for part in _rim(pixels)]), 0)
    errors = _errors(shifted, ground, drawings(law, subject))
    best = int(errors.argmin())
    energy = max(float(((pixels - ground) ** 2).sum()), FAINT * pixels.size)
    match = 1 - float(errors[best]) / energy
    look, setting = drawings(law, subject).names[best]
    known = match >= (MATCH[law] if threshold is None else threshold)
    if known and rival:
        others = (drawings(law, name, RIVAL_DRAWINGS) for name in LAWS[law].kind_of if name != subject)
        known = all(_errors(shifted, ground, other).min() >= rival * errors[best] for other in others)
    return Seen(look, setting, match) if known else Seen(None, None, match)


def _errors(shifted: np.ndarray, ground: np.ndarray, known: Drawings) -> np.ndarray:
    """Return the squared error of each drawing at its best shift: float [K]. shifted: [25, 3072]; ground: [3]."""
    grounds = np.stack([np.array(LAMPS[s], np.float32) / 255 if s in LAMPS else ground for _, s in known.names])
    composed = (known.colour + (1 - known.cover) * grounds[:, None, None]).reshape(len(known.names), -1)
    return ((composed**2).sum(1)[None] + (shifted**2).sum(1)[:, None] - 2 * shifted @ composed.T).min(0)


def _rim(pixels: np.ndarray) -> tuple[np.ndarray, ...]:
    return pixels[:RIM], pixels[-RIM:], pixels[:, :RIM], pixels[:, -RIM:]


def read_many(images: Sequence[Image.Image], laws: Sequence[str], subjects: Sequence[str]) -> list[Seen]:
    """Recognize pictures of several laws and subjects."""
    return [read(*one) for one in zip(images, laws, subjects, strict=True)]


def _first_setting(law: str) -> str:
    return next(iter(LAWS[law].settings.values()), "") if law in LAWS else ""


def _pixels(image: Image.Image) -> np.ndarray:
    """Return a picture at half size: float32 [32, 32, 3] in 0..1."""
    whole = image.convert("RGB")
    if whole.size != (SIZE, SIZE):
        whole = whole.resize((SIZE, SIZE), Image.Resampling.BOX if whole.width > SIZE else Image.Resampling.BICUBIC)
    return (np.asarray(whole, np.float32) / 255).reshape(HALF, 2, HALF, 2, 3).mean((1, 3))


def _shifts(pixels: np.ndarray) -> np.ndarray:
    """Return the picture at 25 shifts, its edge repeated: float32 [25, 3072]."""
    far = max(SHIFTS)
    padded = np.pad(pixels, ((far, far), (far, far), (0, 0)), mode="edge")
    return np.stack(
        [padded[far + y : far + y + HALF, far + x : far + x + HALF].ravel() for y, x in product(SHIFTS, SHIFTS)]
    )
