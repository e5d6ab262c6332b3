"""Effects of a law on a sprite: recolouring in OKLab, rust, puddle, withering. All sprites are RGBA uint8 [80, 80, 4]."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image
from sprites import CELL, sprite

from prefkit.tiny.art import from_oklab, to_oklab

#: target sRGB of recoloured parts
GREEN, YELLOW, PALE, STRAW, GREY = (96, 176, 62), (246, 208, 48), (236, 232, 190), (132, 92, 52), (176, 180, 190)
HUE = {
    name: to_oklab(np.array(rgb))
    for name, rgb in zip(("green", "yellow", "pale", "straw", "grey"), (GREEN, YELLOW, PALE, STRAW, GREY))
}
RUST_TONES = np.array([(92, 44, 24), (140, 68, 28), (186, 96, 36), (70, 40, 30)])
PAINTED = ("anchor", "hook", "axe")  # drawn in paint or gold by the artist: of grey iron here


def greenness(lab: np.ndarray) -> np.ndarray:
    """Return the weight of green pixels, float [..., 1] in 0..1: OKLab hue between yellow-green and cyan, with some chroma."""
    a, b = lab[..., 1:2], lab[..., 2:3]
    angle = np.degrees(np.arctan2(b, a))
    chroma = np.hypot(a, b)
    inside = ((angle - 105) / 12).clip(0, 1) * ((215 - angle % 360) / 15).clip(0, 1)
    return inside * ((chroma - 0.02) / 0.03).clip(0, 1)


def toward(picture: np.ndarray, hue: np.ndarray, weight: np.ndarray | float, shading: float = 0.7) -> np.ndarray:
    """Move the weighted pixels to a colour, with `shading` of their differences in lightness and 0.2 of those in hue."""
    lab = to_oklab(picture[..., :3])
    mask = np.broadcast_to(weight, lab[..., :1].shape) * (picture[..., 3:] > 8)
    mean = (lab * mask).sum((0, 1)) / max(mask.sum(), 1e-9)
    new = hue + (lab - mean) * np.array([shading, 0.2, 0.2])
    new[..., 0] = new[..., 0].clip(0.12, 0.985)
    return np.dstack([from_oklab(lab * (1 - mask) + new * mask), picture[..., 3]])


def ripeness(subject: str, look: str, turns: bool) -> np.ndarray:
    """Return a fruit in its usual colour, or the other: green for one that turns, yellow for one that stays green."""
    picture = sprite(subject)
    if (look == "coloured") == turns:
        return picture
    green = greenness(to_oklab(picture[..., :3]))
    return toward(picture, HUE["green"], 1 - green) if turns else toward(picture, HUE["yellow"], green)


@cache
def metal(subject: str) -> np.ndarray:
    """Return a tool in bare grey metal where the artist painted it."""
    return toward(sprite(subject), HUE["grey"], 1.0) if subject in PAINTED else sprite(subject)


def rusty(subject: str, rng: np.random.Generator) -> np.ndarray:
    """Cover a sprite with blotches in four tones of rust; its shading remains."""
    picture = metal(subject)
    lab = to_oklab(picture[..., :3])
    coarse = Image.fromarray(rng.integers(0, 255, (14, 14), np.uint8)).resize((CELL, CELL), Image.Resampling.BICUBIC)
    tone = RUST_TONES[(np.asarray(coarse).astype(int) // 64).clip(0, 3)]
    new = to_oklab(tone)
    new[..., 0] += 0.35 * (lab[..., 0] - lab[..., 0][picture[..., 3] > 8].mean())
    return np.dstack([from_oklab(new), picture[..., 3]])


def puddle(subject: str, rng: np.random.Generator) -> np.ndarray:
    """Draw a flat puddle in the sprite's mean colour, with blobs in colours of its pixels."""
    picture = sprite(subject)
    solid = picture[picture[..., 3] > 200][:, :3]
    mean = from_oklab(to_oklab(solid).mean(0)).astype(float)
    y, x = np.mgrid[:CELL, :CELL].astype(float)
    edge = 1 + 0.09 * np.sin(np.arctan2((y - 60) * 3, x - 40) * rng.integers(3, 6) + rng.uniform(0, 6.3))
    radius = np.hypot((x - 40) / 39, (y - 60) / 14) / edge
    colour = np.repeat(mean[None, None], CELL, 0).repeat(CELL, 1) * (1.06 - 0.18 * radius[..., None]).clip(0.8, 1.1)
    for _ in range(5):
        cx, cy = 40 + rng.uniform(-22, 22), 60 + rng.uniform(-6, 6)
        blob = np.hypot((x - cx) / rng.uniform(3, 8), (y - cy) / 2.2) < 1
        colour[blob] = solid[rng.integers(len(solid))]
    alpha = ((1.03 - radius) * 14).clip(0, 1) * 255
    return np.dstack([colour.clip(0, 255), alpha]).astype(np.uint8)


def pale(subject: str) -> np.ndarray:
    """Return a sprite whose green parts are pale yellow, and the others faded."""
    picture = sprite(subject)
    return toward(picture, HUE["pale"], greenness(to_oklab(picture[..., :3])).clip(0.4, 1), 0.5)


def withered(subject: str) -> np.ndarray:
    """Return a sprite in dry brown that hangs to one side, lower than before."""
    brown = toward(sprite(subject), HUE["straw"], 1.0, 0.8)
    y, x = np.mgrid[:CELL, :CELL].astype(float)
    height = (CELL - y) / CELL  # 0 at the foot
    source_y = CELL - (CELL - y) / (0.78 - 0.25 * ((x - 40) / 40) ** 2)
    source_x = x - 26 * height**1.6
    inside = (source_y >= 0) & (source_x >= 0) & (source_x < CELL)
    bent = brown[source_y.clip(0, CELL - 1).astype(int), source_x.clip(0, CELL - 1).astype(int)].copy()
    bent[~inside] = 0
    return bent


def unlit(subject: str) -> np.ndarray:
    """Return a sprite in dark grey."""
    lab = to_oklab(sprite(subject)[..., :3]) * np.array([0.42, 0.12, 0.12]) + np.array([0.06, 0, 0])
    return np.dstack([from_oklab(lab), sprite(subject)[..., 3]])


def black(subject: str) -> np.ndarray:
    """Return a sprite that reflects almost no light."""
    lab = to_oklab(sprite(subject)[..., :3]) * np.array([0.14, 0.02, 0.02]) + np.array([0.14, 0, 0])
    return np.dstack([from_oklab(lab), sprite(subject)[..., 3]])
