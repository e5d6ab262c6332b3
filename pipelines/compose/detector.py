"""A rule-based stand-in for an object detector: it finds the wardrobe's garments without a trained network.

    score:
      clauses: {use: geneval, detector: "pipelines/compose/detector.py:garments", model: tiny}

1. The backdrop is the one of 32 whose pixels are nearest to those of the image's border. An image may have any size;
   garments among others are expected to have a long side of about 30 px, one alone 46 px.
2. What is neither backdrop nor backdrop in shadow belongs to garments; each connected part is one garment. Gaps of
   up to two pixels do not separate parts.
3. Its outline is compared with those of the 24 items. The four most similar items are drawn in the two colours nearest to
   the part's, and the drawing with the smallest difference from the image names the item.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image
from scipy import ndimage

from prefkit.tiny.art import recolour, sprite, to_oklab
from prefkit.tiny.domain import BACKGROUNDS, COLOURS, ITEMS, PATTERNS
from prefkit.tiny.scene import SHADOW, backdrop, place

BORDER = 2  # px at the image's edge that no garment covers
DARKEST = 0.35  # opacity of a shadow, at most
DIFFERENT = 0.09  # distance from backdrop and shadow in RGB, 0 to sqrt(3), above which a pixel belongs to a garment
NOISE = 2.0  # the same, as a multiple of the distance that a tenth of the border exceeds
SMALLEST = 60  # px of a garment
GRID = 20  # px of the side of compared outlines and drawings
ANGLES = (-4.0, 0.0, 4.0)
BEST = 4  # number of items to draw
SHARPNESS = 40.0  # how much a difference of drawings counts for the confidence

Detection = tuple[str, float, tuple[int, int, int, int], np.ndarray]


def garments(images: list[Image.Image]) -> list[list[Detection]]:
    """Return, for each image, a list of (item, confidence, (left, top, right, bottom), mask)."""
    return [_garments(np.asarray(image.convert("RGB"))) for image in images]


def _garments(pixels: np.ndarray) -> list[Detection]:
    foreground = _foreground(pixels)
    parts, _ = ndimage.label(ndimage.binary_dilation(foreground, np.ones((3, 3))), np.ones((3, 3)))
    parts *= foreground
    found = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(parts), 1):
        mask = parts == number
        if mask.sum() >= SMALLEST:
            item, confidence = _named(pixels[rows, columns], mask[rows, columns])
            found.append((item, confidence, (columns.start, rows.start, columns.stop, rows.stop), mask))
    return found


def _foreground(pixels: np.ndarray) -> np.ndarray:
    """Return a mask [H, W] of the pixels of garments. Images with a noisy border are first filtered by a median."""
    for picture in (pixels, ndimage.median_filter(pixels, (3, 3, 1))):
        ground, border = _ground(picture), _border(picture)
        ground = (ground + np.median((picture - ground)[border], axis=0)).clip(0, 255) / 255
        distance = _distance(picture / 255, ground)
        noise = NOISE * float(np.quantile(distance[border], 0.9))
        if noise < DIFFERENT:
            break
    return distance > max(DIFFERENT, noise)


def _ground(pixels: np.ndarray) -> np.ndarray:
    """Return the backdrop nearest to the image's border, float64 [H, W, 3] in 0..255."""
    height, width = pixels.shape[:2]
    border = _border(pixels)
    grounds = [_tiled(b, p, height, width) for b in BACKGROUNDS for p in PATTERNS]
    errors = [np.median(np.abs(pixels[border].astype(int) - ground[border]).sum(-1)) for ground in grounds]
    means = [np.abs(pixels[border].astype(int) - ground[border]).mean() for ground in grounds]
    return grounds[int(np.lexsort((means, errors))[0])].astype(np.float64)


def _border(pixels: np.ndarray) -> np.ndarray:
    border = np.ones(pixels.shape[:2], bool)
    border[BORDER:-BORDER, BORDER:-BORDER] = False
    return border


@cache
def _tiled(background: str, pattern: str, height: int, width: int) -> np.ndarray:
    ground = backdrop(background, pattern)
    times = -(-height // ground.shape[0]), -(-width // ground.shape[1]), 1
    return np.tile(ground, times)[:height, :width]


def _distance(pixels: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """Return the distance [H, W] of each pixel from the backdrop under any shadow up to DARKEST; colours from 0 to 1."""
    dark = np.array(SHADOW) / 255 - ground
    opacity = ((pixels - ground) * dark).sum(-1) / (dark**2).sum(-1)
    shaded = ground + opacity.clip(0, DARKEST)[..., None] * dark
    return np.linalg.norm(pixels - shaded, axis=-1)


def _named(part: np.ndarray, mask: np.ndarray) -> tuple[str, float]:
    """Return (item, confidence) of a garment. part: RGB uint8 [h, w, 3]; mask: bool [h, w]."""
    outline = _scaled(mask * 255.0)
    ratio = np.log(mask.shape[1] / mask.shape[0])
    alike = {
        item: max(_alike(outline, other) - 0.5 * abs(ratio - its) for other, its in _outlines(item)) for item in ITEMS
    }
    best = sorted(alike, key=lambda item: -alike[item])[:BEST]
    small = np.dstack([_scaled(part[..., channel].astype(float)) for channel in range(3)])
    colours = _colours(part[mask])
    values = np.array(
        [alike[item] - min(_difference(small, outline, item, colour) for colour in colours) for item in best]
    )
    weights = np.exp(SHARPNESS * (values - values.max()))
    return best[int(values.argmax())], float(1 / weights.sum()) * float(np.clip(max(alike.values()) / 0.8, 0, 1))


def _scaled(channel: np.ndarray) -> np.ndarray:
    """Return an image [h, w] of values 0 to 255 as [GRID, GRID] of values 0 to 1."""
    image = Image.fromarray(channel.astype(np.uint8))
    return np.asarray(image.resize((GRID, GRID), Image.Resampling.BOX)) / 255.0


def _alike(a: np.ndarray, b: np.ndarray) -> float:
    """Return the intersection over union of two outlines with values 0 to 1."""
    return float(np.minimum(a, b).sum() / np.maximum(a, b).sum())


@cache
def _outlines(item: str) -> list[tuple[np.ndarray, float]]:
    """Return (outline, logarithm of width / height) of the item at each angle."""
    alphas = [np.asarray(_cropped(place(sprite(item), 46, angle)).getchannel("A")) for angle in ANGLES]
    return [(_scaled((a > 127) * 255.0), np.log(a.shape[1] / a.shape[0])) for a in alphas]


def _cropped(piece: Image.Image) -> Image.Image:
    return piece.crop(piece.getchannel("A").point(lambda a: 255 * (a > 127)).getbbox())


def _colours(pixels: np.ndarray) -> list[str]:
    """Return the two colours nearest to the median of a garment's pixels [N, 3]."""
    targets = to_oklab(np.array(list(COLOURS.values())))
    distances = np.linalg.norm(targets - np.median(to_oklab(pixels), axis=0), axis=-1)
    return [list(COLOURS)[i] for i in distances.argsort()[:2]]


def _difference(small: np.ndarray, outline: np.ndarray, item: str, colour: str) -> float:
    """Return the mean squared difference of a garment [GRID, GRID, 3] and the item's drawing, inside the outline."""
    squares = ((small - _drawing(item, colour)) ** 2).sum(-1)
    return float((squares * outline).sum() / outline.sum())


@cache
def _drawing(item: str, colour: str) -> np.ndarray:
    piece = np.asarray(_cropped(place(recolour(item, colour), 46)).convert("RGB")).astype(float)
    return np.dstack([_scaled(piece[..., channel]) for channel in range(3)])


def boxes(images: list[Image.Image]) -> list[list[tuple[str, float, tuple[int, int, int, int]]]]:
    """Return the same garments without masks, as most detectors do."""
    return [[(item, confidence, box) for item, confidence, box, _ in found] for found in garments(images)]
