"""Rendering of a scene: the recoloured sprite, its soft shadow and the background, 64 x 64 RGB."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageFilter

from prefkit.tiny.art import BACKGROUNDS, from_oklab, recolour, to_oklab
from prefkit.tiny.domain import Scene

__all__ = ["SIZE", "Scene", "backdrop", "place", "render", "shadow"]

SIZE = 64
SUPERSAMPLING = 2
SHADOW = (20, 18, 30)
SHADE = 0.075  # difference in OKLab lightness between the two tones of a pattern


def render(scene: Scene, seed: int) -> Image.Image:
    """Render the scene in RGB, 64 x 64, in a random pose: long side 46 +- 3.5 px, angle +- 3 degrees, shift +- 2 px."""
    rng = np.random.default_rng(seed)
    side = 46 + rng.uniform(-3.5, 3.5)
    angle = rng.uniform(-3, 3)
    shift = rng.uniform(-2, 2, 2)
    item = place(recolour(scene.item, scene.colour), side, angle, (shift[0], shift[1]))
    image = Image.fromarray(backdrop(scene.background, scene.pattern))
    image.paste(SHADOW, (1, 2), shadow(item))
    image.paste(item, (0, 0), item)
    return image


def shadow(item: Image.Image) -> Image.Image:
    """Return the opacity of a placed item's shadow, to be pasted 1 px to the right of the item and 2 px below it."""
    return item.getchannel("A").point(lambda a: a * 0.30).filter(ImageFilter.GaussianBlur(1.8))


def place(picture: np.ndarray, side: float, angle: float = 0.0, shift: tuple[float, float] = (0.0, 0.0)) -> Image.Image:
    """Place a sprite, scaled to `side` px, rotated by `angle` degrees and shifted, on transparent RGBA 64 x 64."""
    size = SIZE * SUPERSAMPLING
    scale = picture.shape[0] / (side * SUPERSAMPLING)
    cos, sin = np.cos(np.radians(angle)) * scale, np.sin(np.radians(angle)) * scale
    x, y = size / 2 + shift[0] * SUPERSAMPLING, size / 2 + shift[1] * SUPERSAMPLING
    middle = picture.shape[0] / 2
    matrix = (cos, sin, middle - cos * x - sin * y, -sin, cos, middle + sin * x - cos * y)
    large = Image.fromarray(picture).transform(
        (size, size), Image.Transform.AFFINE, tuple(map(float, matrix)), Image.Resampling.BICUBIC
    )
    return large.reduce(SUPERSAMPLING)


@cache
def backdrop(background: str, pattern: str) -> np.ndarray:
    """Draw the background without an item: uint8 [64, 64, 3]. A pattern uses a second tone of its colour."""
    light = to_oklab(np.array(BACKGROUNDS[background]))
    second = light - np.array([SHADE, 0, 0]) if light[0] > 0.5 else light + np.array([SHADE, 0, 0])
    mask = _mask(pattern)[..., None]
    return from_oklab(light * (1 - mask) + second * mask)


def _mask(pattern: str) -> np.ndarray:
    """Return the coverage of a pattern's second tone: float [64, 64] in 0..1."""
    grid = (np.arange(SIZE * 4) + 0.5) / 4
    y, x = np.meshgrid(grid, grid, indexing="ij")
    inside = {
        "plain": np.zeros_like(x, bool),
        "striped": x % 8 < 4,
        "dotted": (x % 8 - 4) ** 2 + (y % 8 - 4) ** 2 < 2.2**2,
        "checked": (x % 16 < 8) != (y % 16 < 8),
    }[pattern]
    return inside.reshape(SIZE, 4, SIZE, 4).mean((1, 3))
