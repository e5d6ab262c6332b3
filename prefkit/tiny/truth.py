"""Recognition of an image's item, colour, background and pattern without a trained model.

1. Background and pattern: compare the image's rim of 5 px, which no item reaches, with the rims of the 32 backdrops, by
   mean colour and by the differences from the mean. Then shift the backdrop to the mean colour of the image's rim.
2. Items: correlate the difference from the backdrop with silhouettes of all items in 7,200 poses; keep the best six.
3. Colour: for each of the six, take the colour nearest to the mean OKLab colour of the main cloth, and draw the item in
   that colour and its best poses on the backdrop. The drawing with the smallest squared error wins. If this error is
   more than a tenth of the difference from the backdrop, the two best drawings are first refined by half a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from PIL import Image

from prefkit.tiny.art import BACKGROUNDS, COLOURS, ITEMS, PATTERNS, cloth, recolour, sprite, to_oklab
from prefkit.tiny.scene import SHADOW, SIZE, backdrop, place, shadow

RIM = 5
FAINT = 0.35  # a pattern is recognized from this fraction of its contrast
SIDES, ANGLES, SHIFTS = (43.5, 46.0, 48.5), (-2.0, 0.0, 2.0), (-2, -1, 0, 1, 2)
BEST_ITEMS, POSES = 6, 4  # number of items to draw, and of poses for each
BLOCK = 64  # images compared with the silhouettes at once
SEEN = 0.04  # OKLab distance from the backdrop at which a pixel counts half as item
UNSURE = 0.1  # refine the best drawings if the error is a larger fraction of the difference from the backdrop
STEPS = [(0, 0, 0.5, 0), (0, 0, -0.5, 0), (0, 0, 0, 0.5), (0, 0, 0, -0.5), (1.2, 0, 0, 0), (-1.2, 0, 0, 0)]
STEPS += [(0, 1, 0, 0), (0, -1, 0, 0)]  # px of side, degrees, px right, px down
MIN_DIFFERENCE = 0.1  # lower limit of an image's squared difference from its backdrop; empty images have less
KNOWN = 0.6  # a match below this is not an item of the wardrobe


@dataclass(frozen=True)
class Seen:
    """The recognized content of an image. `item` and `colour` are None if no item of the wardrobe matches.

    match: fraction of the image's squared difference from its backdrop that the best drawing explains, 0..1.
    """

    item: str | None
    colour: str | None
    background: str
    pattern: str
    match: float

    def __str__(self) -> str:
        thing = f"{self.colour} {self.item}" if self.item else "nothing known"
        return f"{thing} on {self.pattern} {self.background}"


@dataclass(frozen=True)
class Pose:
    item: str
    side: float
    angle: float
    shift: tuple[float, float]


def read(image: Image.Image) -> Seen:
    """Recognize an image, after scaling it to 64 x 64."""
    return read_many([image])[0]


def read_many(images: Sequence[Image.Image]) -> list[Seen]:
    """Recognize images in blocks, with one matrix product per block, which is faster than one by one."""
    return [seen for start in range(0, len(images), BLOCK) for seen in _read(images[start : start + BLOCK])]


def _read(images: Sequence[Image.Image]) -> list[Seen]:
    pixels = [_pixels(image) for image in images]
    names = [_background(p) for p in pixels]
    grounds = [_toned(p, *name) for p, name in zip(pixels, names)]
    away = np.array([_coarse(_standing_out(p, ground)) for p, ground in zip(pixels, grounds)], np.float32)
    fits = away @ _bank()[0].T
    contents = []
    for p, (background, pattern), ground, fit in zip(pixels, names, grounds, fits):
        item, colour, match = _best(p, ground, fit)
        contents.append(Seen(item, colour, background, pattern, match))
    return contents


def _pixels(image: Image.Image) -> np.ndarray:
    if image.size != (SIZE, SIZE):
        image = image.resize((SIZE, SIZE), Image.Resampling.BOX)
    return np.asarray(image.convert("RGB"))


def _best(pixels: np.ndarray, ground: np.ndarray, fit: np.ndarray) -> tuple[str | None, str | None, float]:
    """Return (item, colour, match) of the drawing with the smallest error."""
    picture, lab = _halved(pixels / 255.0), to_oklab(pixels)
    drawn = []
    for poses in _poses(fit):
        colours = _colours(lab, poses[0])
        options = [(_error(picture, _drawing(p, c, ground)), p, c) for p, c in _pairs(poses, colours)]
        drawn.append(min(options, key=lambda option: option[0]))
    drawn.sort(key=lambda option: option[0])
    total = max(_error(picture, ground / 255.0), MIN_DIFFERENCE)
    if drawn[0][0] > UNSURE * total:
        drawn = [(_refined(picture, error, pose, colour, ground), pose, colour) for error, pose, colour in drawn[:2]]
    error, pose, colour = min(drawn, key=lambda option: option[0])
    match = max(0.0, 1 - error / total)
    known = match >= KNOWN
    return pose.item if known else None, colour if known else None, round(match, 4)


def _pairs(poses: list[Pose], colours: list[str]) -> list[tuple[Pose, str]]:
    """Return the (pose, colour) pairs to try: each pose in the most likely colour, the best pose also in the second."""
    return [(pose, colours[0]) for pose in poses] + [(poses[0], colours[1])]


def _error(picture: np.ndarray, drawing: np.ndarray) -> float:
    """Return the squared difference between a halved image and a drawing [64, 64, 3], both in 0..1."""
    return float(((_halved(drawing) - picture) ** 2).sum())


def _refined(picture: np.ndarray, error: float, pose: Pose, colour: str, ground: np.ndarray) -> float:
    """Return the error after half a step in position, size and angle; each step is kept if it reduces the error."""
    for side, angle, x, y in STEPS:
        moved = Pose(pose.item, pose.side + side, pose.angle + angle, (pose.shift[0] + x, pose.shift[1] + y))
        moved_error = _error(picture, _drawing(moved, colour, ground))
        if moved_error < error:
            error, pose = moved_error, moved
    return error


@cache
def _rims() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (rim, means, differences).

    rim: mask of the N border pixels, bool [64, 64]. means: their mean OKLab colour for each background and pattern,
    [8, 4, 3]. differences: each border pixel minus that mean, [8, 4, N, 3].
    """
    rim = np.ones((SIZE, SIZE), bool)
    rim[RIM:-RIM, RIM:-RIM] = False
    grounds = to_oklab(np.array([[backdrop(b, p)[rim] for p in PATTERNS] for b in BACKGROUNDS]))
    means = grounds.mean(2)
    return rim, means, (grounds - means[:, :, None]).astype(np.float32)


def _background(pixels: np.ndarray) -> tuple[str, str]:
    """Return (background, pattern). A pattern needs only FAINT of its contrast, because decoders soften patterns."""
    rim, means, differences = _rims()
    lab = to_oklab(pixels[rim])
    nearest = np.linalg.norm(means - lab.mean(0), axis=-1).min(1).argmin()
    errors = ((2 * FAINT * differences[nearest] - (lab - lab.mean(0)).astype(np.float32)) ** 2).sum((-1, -2))
    return list(BACKGROUNDS)[nearest], PATTERNS[errors.argmin()]


def _toned(pixels: np.ndarray, background: str, pattern: str) -> np.ndarray:
    """Return the backdrop, shifted to the mean colour of the image's rim: float64 [64, 64, 3] in 0..255."""
    ground, rim = backdrop(background, pattern), _rims()[0]
    return (ground + (pixels[rim].mean(0) - ground[rim].mean(0))).clip(0, 255)


@cache
def _bank() -> tuple[np.ndarray, list[Pose]]:
    """Return all silhouettes with shadow at 32 x 32, mean 0, norm 1: float32 [about 7200, 1024]; and their poses."""
    rows, poses = [], []
    for item in ITEMS:
        for side in SIDES:
            for angle in ANGLES:
                shape = np.asarray(place(sprite(item), side, angle).getchannel("A")) / 255.0
                shape = np.maximum(shape, 0.4 * np.roll(shape, (2, 1), (0, 1)))
                for x in SHIFTS:
                    for y in SHIFTS:
                        rows.append(_coarse(np.roll(shape, (y, x), (0, 1))))
                        poses.append(Pose(item, side, angle, (x, y)))
    return np.array(rows, np.float32), poses


def _coarse(shape: np.ndarray) -> np.ndarray:
    """Average [64, 64] in squares of 2 x 2 pixels, then normalize to mean 0 and norm 1: [1024]."""
    small = shape.reshape(SIZE // 2, 2, SIZE // 2, 2).mean((1, 3)).ravel()
    small = small - small.mean()
    return small / max(float(np.linalg.norm(small)), 1e-6)


def _standing_out(pixels: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """Return the confidence that each pixel is not backdrop: float64 [64, 64] in 0..1."""
    distance = np.linalg.norm(to_oklab(pixels) - to_oklab(ground.round()), axis=-1)
    return distance / (distance + SEEN)


def _poses(fit: np.ndarray) -> list[list[Pose]]:
    """Return the POSES best poses of the BEST_ITEMS best items, best first, by correlation with the silhouettes."""
    per_item = fit.reshape(len(ITEMS), -1)
    poses = _bank()[1]
    best = np.argpartition(per_item, -POSES, axis=1)[:, -POSES:]
    chosen = []
    for item in per_item.max(1).argsort()[::-1][:BEST_ITEMS]:
        order = best[item][per_item[item, best[item]].argsort()[::-1]]
        chosen.append([poses[item * per_item.shape[1] + i] for i in order])
    return chosen


@cache
def _cloth(item: str, side: float, angle: float) -> np.ndarray:
    """Return the mask of the main cloth in a centred pose: float64 [64, 64] in 0..1, squared to weigh edges less."""
    picture = sprite(item).copy()
    picture[..., 3] = (picture[..., 3] * cloth(item)).round()
    return (np.asarray(place(picture, side, angle).getchannel("A")) / 255.0) ** 2


def _colours(lab: np.ndarray, pose: Pose) -> list[str]:
    """Return the two colours nearest to the mean colour of the main cloth in this pose."""
    weight = np.roll(_cloth(pose.item, pose.side, pose.angle), (int(pose.shift[1]), int(pose.shift[0])), (0, 1))
    mean = np.einsum("yx,yxc->c", weight, lab) / weight.sum()
    return [list(COLOURS)[i] for i in np.linalg.norm(_targets() - mean, axis=-1).argsort()[:2]]


@cache
def _targets() -> np.ndarray:
    return to_oklab(np.array(list(COLOURS.values())))


@lru_cache(4096)
def _placed(item: str, colour: str, side: float, angle: float, part: tuple[float, float]) -> np.ndarray:
    """Draw the item with its shadow: uint8 [64, 64, 4], RGB multiplied by opacity, and transparency."""
    piece = place(recolour(item, colour), side, angle, part)
    alpha = np.asarray(piece.getchannel("A"))[..., None] / 255.0
    dark = np.roll(np.asarray(shadow(piece))[..., None] / 255.0, (2, 1), (0, 1))
    colours = np.asarray(piece.convert("RGB")) * alpha + np.array(SHADOW) * dark * (1 - alpha)
    return np.dstack([colours, 255 * (1 - dark) * (1 - alpha)]).round().astype(np.uint8)


def _drawing(pose: Pose, colour: str, ground: np.ndarray) -> np.ndarray:
    """Draw the item in the pose and colour on the backdrop: float32 [64, 64, 3] in 0..1."""
    x, y = (int(np.floor(s)) for s in pose.shift)
    part = (pose.shift[0] - x, pose.shift[1] - y)
    placed = np.roll(_placed(pose.item, colour, pose.side, pose.angle, part), (y, x), (0, 1))
    return (placed[..., :3] + placed[..., 3:] * (ground / np.float32(255))) / np.float32(255)


def _halved(picture: np.ndarray) -> np.ndarray:
    """Average squares of 2 x 2 pixels, so that a shift of half a pixel matters less: [64, 64, 3] -> [32, 32, 3]."""
    upper, lower = picture[::2], picture[1::2]
    return (upper[:, ::2] + upper[:, 1::2] + lower[:, ::2] + lower[:, 1::2]) / np.float32(4)
