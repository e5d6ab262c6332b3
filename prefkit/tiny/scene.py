"""A scene as a picture: the recoloured sprite, its soft shadow and the background, 64 x 64 RGB."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageFilter

from prefkit.tiny.art import BACKGROUNDS, from_oklab, recolour, to_oklab
from prefkit.tiny.domain import Scene

__all__ = ["SIZE", "Scene", "backdrop", "place", "render", "shadow"]

SIZE = 64
OVER = 2  # drawn this many times larger, then averaged down
SHADOW = (20, 18, 30)
SHADE = 0.075  # a pattern's second tone differs by this much in OKLab lightness


def render(scene: Scene, seed: int) -> Image.Image:
    """The scene as RGB, 64 x 64; the seed places the item: longest side 46 +- 3.5 px, +- 3 degrees, +- 2 px off centre."""
    rng = np.random.default_rng(seed)
    side = 46 + rng.uniform(-3.5, 3.5)
    angle = rng.uniform(-3, 3)
    shift = rng.uniform(-2, 2, 2)
    return compose(
        recolour(scene.item, scene.colour), scene.background, scene.pattern, side, angle, (shift[0], shift[1])
    )


def compose(
    picture: np.ndarray, background: str, pattern: str, side: float, angle: float, shift: tuple[float, float]
) -> Image.Image:
    """RGBA sprite [112, 112, 4] on a backdrop, with the shadow that it throws down and to the right."""
    item = place(picture, side, angle, shift)
    image = Image.fromarray(backdrop(background, pattern))
    image.paste(SHADOW, (1, 2), shadow(item))
    image.paste(item, (0, 0), item)
    return image


def shadow(item: Image.Image) -> Image.Image:
    """How dense the shadow of the placed item is, to be laid 1 px right of it and 2 px below."""
    return item.getchannel("A").point(lambda a: a * 0.30).filter(ImageFilter.GaussianBlur(1.8))


def place(picture: np.ndarray, side: float, angle: float = 0.0, shift: tuple[float, float] = (0.0, 0.0)) -> Image.Image:
    """The sprite with `side` px as its longest side, turned by degrees and shifted by px, RGBA 64 x 64."""
    size = SIZE * OVER
    scale = picture.shape[0] / (side * OVER)
    cos, sin = np.cos(np.radians(angle)) * scale, np.sin(np.radians(angle)) * scale
    x, y = size / 2 + shift[0] * OVER, size / 2 + shift[1] * OVER
    middle = picture.shape[0] / 2
    matrix = (cos, sin, middle - cos * x - sin * y, -sin, cos, middle + sin * x - cos * y)
    large = Image.fromarray(picture).transform(
        (size, size), Image.Transform.AFFINE, tuple(map(float, matrix)), Image.Resampling.BICUBIC
    )
    return large.reduce(OVER)


@cache
def backdrop(background: str, pattern: str) -> np.ndarray:
    """The background alone: uint8 [64, 64, 3]. Patterns are drawn in the background's own second tone."""
    light = to_oklab(np.array(BACKGROUNDS[background]))
    second = light - np.array([SHADE, 0, 0]) if light[0] > 0.5 else light + np.array([SHADE, 0, 0])
    mask = _mask(pattern)[..., None]
    return from_oklab(light * (1 - mask) + second * mask)


def _mask(pattern: str) -> np.ndarray:
    """Where the second tone is: float [64, 64] in 0..1."""
    grid = (np.arange(SIZE * 4) + 0.5) / 4
    y, x = np.meshgrid(grid, grid, indexing="ij")
    inside = {
        "plain": np.zeros_like(x, bool),
        "striped": x % 8 < 4,
        "dotted": (x % 8 - 4) ** 2 + (y % 8 - 4) ** 2 < 2.2**2,
        "checked": (x % 16 < 8) != (y % 16 < 8),
    }[pattern]
    return inside.reshape(SIZE, 4, SIZE, 4).mean((1, 3))
