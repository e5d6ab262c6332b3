"""Sprites of the wardrobe and their recolouring in OKLab (Ottosson, "A perceptual color space", 2020)."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from prefkit.tiny.domain import BACKGROUNDS, COLOURS, ITEMS, PATTERNS

__all__ = ["BACKGROUNDS", "COLOURS", "ITEMS", "PATTERNS", "from_oklab", "recolour", "sprite", "to_oklab"]

FOLDER = Path(__file__).parent
LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
SRGB = np.arange(256) / 255
LINEAR = np.where(SRGB <= 0.04045, SRGB / 12.92, ((SRGB + 0.055) / 1.055) ** 2.4)
# item -> (a, b) distance from its most frequent colour where a pixel counts half as main cloth; larger for two tones
REACH = {"sandal": 0.30, "shorts": 0.18, "cap": 0.16, "clutch": 0.16, "hiking boot": 0.14, "t-shirt": 0.14}
REACH |= {"handbag": 0.14, "running shoe": 0.12, "tank top": 0.11, "backpack": 0.11, "dress": 0.10, "jeans": 0.10}
REACH |= {"umbrella": 0.10, "watch": 0.10, "coat": 0.10, "briefcase": 0.05}


def to_oklab(rgb: np.ndarray) -> np.ndarray:
    """Convert sRGB uint8 [..., 3] to OKLab float64 [..., 3]: L in 0..1, a and b about -0.4..0.4."""
    return np.cbrt(LINEAR[np.asarray(rgb, np.uint8)] @ LMS.T) @ LAB.T


def from_oklab(lab: np.ndarray) -> np.ndarray:
    """Convert OKLab float [..., 3] to sRGB uint8 [..., 3]; each channel is clipped to the gamut."""
    linear = ((lab @ np.linalg.inv(LAB).T) ** 3 @ np.linalg.inv(LMS).T).clip(0, 1)
    srgb = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (srgb * 255).round().clip(0, 255).astype(np.uint8)


@cache
def _atlas() -> tuple[np.ndarray, dict[str, Any]]:
    with Image.open(FOLDER / "atlas.webp") as image:
        return np.asarray(image.convert("RGBA")), json.loads((FOLDER / "atlas.json").read_text(encoding="utf-8"))


@cache
def sprite(item: str) -> np.ndarray:
    """Return the item in its original colours: RGBA uint8 [112, 112, 4]. Raises KeyError for an unknown item."""
    atlas, index = _atlas()
    size, (row, column) = index["size"], index["items"][item]["cell"]
    return atlas[row * size : (row + 1) * size, column * size : (column + 1) * size]


@cache
def cloth(item: str) -> np.ndarray:
    """Return a mask of the main cloth, whose colours are near the most frequent one: float64 [112, 112] in 0..1."""
    picture = sprite(item)
    lab, alpha = to_oklab(picture[..., :3]), picture[..., 3] / 255.0
    counts, a, b = np.histogram2d(
        lab[..., 1].ravel(), lab[..., 2].ravel(), 24, ((-0.35, 0.35), (-0.35, 0.35)), weights=alpha.ravel()
    )
    i, j = np.unravel_index(counts.argmax(), counts.shape)
    peak = np.array([a[i] + a[i + 1], b[j] + b[j + 1]]) / 2
    near = np.linalg.norm(lab[..., 1:] - peak, axis=-1) < 0.03
    peak = np.average(lab[..., 1:][near], axis=0, weights=alpha[near] + 1e-9)
    distance = np.linalg.norm(lab[..., 1:] - peak, axis=-1)
    reach = REACH.get(item, 0.08)
    return (1.5 - distance / reach).clip(0, 1)


@cache
def recolour(item: str, colour: str) -> np.ndarray:
    """Return the item with its main cloth in `colour` and its shading preserved: RGBA uint8 [112, 112, 4]."""
    picture, mask = sprite(item), cloth(item)[..., None]
    lab = to_oklab(picture[..., :3])
    weight = mask * (picture[..., 3:] / 255.0)
    mean = (lab * weight).sum((0, 1)) / weight.sum()
    target = to_oklab(np.array(COLOURS[colour]))
    shading = 0.75 if target[0] < 0.8 else 0.55
    tint = 0.35 if np.linalg.norm(target[1:]) > 0.05 else 0.08  # black and white cloth has no hue
    new = target + (lab - mean) * np.array([shading, tint, tint])
    new[..., 0] = new[..., 0].clip(0.1, 0.985)
    changed = from_oklab(lab * (1 - mask) + new * mask)
    return np.dstack([changed, picture[..., 3]])
