"""Pictures without a sprite: trees, flames, tank, vessels. Drawn at four times the size: RGBA 64 x 64 after reduction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

SIZE, SCALE = 64, 4
Colour = tuple[int, int, int]
BARK: Colour = (112, 78, 52)
LEAF = {"green": (62, 148, 58), "orange": (236, 124, 28), "blossom": (250, 178, 208)}
NEEDLE = {"green": (28, 104, 66), "orange": (214, 104, 30), "blossom": (244, 164, 200)}
#: tree -> shape, width and height of the crown in px
TREES = {
    "oak": ("round", 44, 30), "maple": ("round", 36, 34), "birch": ("round", 26, 38), "cherry tree": ("round", 48, 22),
    "poplar": ("round", 16, 46), "beech": ("round", 40, 38), "chestnut": ("round", 32, 28), "willow": ("hanging", 46, 34),
    "spruce": ("cone", 32, 46), "pine": ("tiers", 40, 26), "fir": ("cone", 40, 44), "cypress": ("column", 14, 48),
    "cedar": ("tiers", 50, 34), "yew": ("column", 28, 38), "palm tree": ("palm", 44, 24),
}  # fmt: skip
FLAME_TONES: dict[str, tuple[Colour, Colour]] = {
    "orange": ((244, 120, 24), (255, 224, 96)), "green": ((26, 160, 70), (140, 240, 150)), "yellow": ((252, 214, 10), (255, 250, 190)),
    "violet": ((140, 60, 206), (222, 170, 255)), "red": ((222, 24, 40), (255, 130, 130)), "blue": ((36, 96, 232), (150, 210, 255)),
}  # fmt: skip
LIQUID_TONES: dict[str, Colour] = {"water": (92, 166, 240), "alcohol": (226, 190, 236), "mercury": (128, 132, 142)}
#: vessel -> half widths at the rim and the foot, height, in px
VESSELS = {"glass": (13, 11, 38), "bowl": (25, 15, 20), "jar": (17, 17, 34), "flask": (7, 20, 38)}
TONES: dict[str, Colour] = {
    "olive oil": (186, 172, 40), "petrol": (232, 176, 120), "paraffin": (240, 236, 220), "sunflower oil": (248, 208, 60),
    "diesel": (196, 130, 40), "mercury": (150, 154, 164), "tar": (30, 28, 30), "chloroform": (196, 216, 208),
    "bromine": (150, 44, 20), "molasses": (76, 40, 20), "orange juice": (250, 150, 30), "milk": (250, 248, 240),
    "ink": (30, 34, 110), "red wine": (130, 20, 50), "tea": (176, 96, 36), "red ink": (214, 30, 44), "blue ink": (36, 60, 190),
    "coffee": (92, 54, 30), "green dye": (30, 150, 70), "beet juice": (150, 20, 80), "violet dye": (130, 60, 190), "cola": (58, 30, 22),
    "sand": (216, 184, 120), "gravel": (128, 126, 124), "glass beads": (120, 210, 200), "pebbles": (168, 150, 136),
    "gold dust": (236, 190, 50), "iron filings": (74, 76, 84), "coal dust": (40, 38, 40),
}  # fmt: skip
GLASS = (84, 96, 124, 255)


class Sheet:
    """A transparent drawing whose coordinates are px of the 64 x 64 picture."""

    def __init__(self) -> None:
        self.image = Image.new("RGBA", (SIZE * SCALE, SIZE * SCALE))
        self.draw = ImageDraw.Draw(self.image)

    def polygon(self, points: Sequence[tuple[float, float]], colour: tuple[int, ...]) -> None:
        self.draw.polygon([(x * SCALE, y * SCALE) for x, y in points], fill=colour)

    def disc(self, x: float, y: float, rx: float, ry: float, colour: tuple[int, ...]) -> None:
        self.draw.ellipse([(x - rx) * SCALE, (y - ry) * SCALE, (x + rx) * SCALE, (y + ry) * SCALE], fill=colour)

    def line(self, points: Sequence[tuple[float, float]], width: float, colour: tuple[int, ...]) -> None:
        self.draw.line(
            [(x * SCALE, y * SCALE) for x, y in points], fill=colour, width=round(width * SCALE), joint="curve"
        )

    def done(self) -> Image.Image:
        return self.image.reduce(SCALE)


def shaded(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, round(c * factor)) for c in colour)
    return red, green, blue


def tree(subject: str, look: str, rng: np.random.Generator) -> Image.Image:
    """Draw a tree with its foot at y = 58."""
    shape, width, height = TREES[subject]
    sheet = Sheet()
    bark = (222, 218, 210) if subject == "birch" else BARK
    top = max(4.0, 46 - height)
    sheet.disc(32, 58, 13, 2.4, (60, 60, 60, 90))
    sheet.line([(32, 58), (32, top + (4 if look == "bare" else height / 2))], 3.4, bark)
    if look == "bare":
        _branches(sheet, shape, width, top, height, bark, rng)
        return sheet.done()
    tones = LEAF if shape in ("round", "hanging") else NEEDLE
    crown = {"round": _round, "hanging": _hanging, "cone": _cone, "column": _column, "tiers": _tiers, "palm": _palm}[
        shape
    ]
    crown(sheet, width, top, height, tones[look], rng)
    return sheet.done()


def _branches(
    sheet: Sheet, shape: str, width: int, top: float, height: int, bark: Colour, rng: np.random.Generator
) -> None:
    for part in np.linspace(0.05, 0.75, 7):
        y = top + height * part
        reach = width / 2 * (part + 0.15 if shape == "cone" else 0.9 - 0.5 * abs(part - 0.4))
        rise = -2 if shape in ("cone", "tiers") else 7
        for side in (-1, 1):
            end = (32 + side * reach * rng.uniform(0.8, 1.0), y - rise * rng.uniform(0.6, 1.2))
            middle = ((32 + end[0]) / 2, (y + 4 + end[1]) / 2)
            sheet.line([(32, y + 5), middle, end], 1.3, bark)
            sheet.line([middle, (middle[0] + side * 3, middle[1] - 6)], 1.0, bark)


def _round(sheet: Sheet, width: int, top: float, height: int, tone: Colour, rng: np.random.Generator) -> None:
    blobs = [(rng.uniform(0, 6.28), rng.uniform(0.3, 0.75)) for _ in range(26)]
    r = min(width, height) * 0.24
    for number, (angle, far) in enumerate(blobs):
        x = 32 + np.cos(angle) * far * (width / 2 - r * 0.5)
        y = top + height / 2 + np.sin(angle) * far * (height / 2 - r * 0.5)
        sheet.disc(x, y, r, r * 0.85, shaded(tone, 0.82 + 0.3 * number / 26))


def _hanging(sheet: Sheet, width: int, top: float, height: int, tone: Colour, rng: np.random.Generator) -> None:
    _round(sheet, width, top, height // 2, tone, rng)
    for x in np.linspace(32 - width / 2 + 2, 32 + width / 2 - 2, 12):
        sheet.line(
            [(x, top + height * 0.25), (x + rng.uniform(-1, 1), top + height * rng.uniform(0.85, 1.05))],
            2.6,
            shaded(tone, rng.uniform(0.8, 1.1)),
        )


def _cone(sheet: Sheet, width: int, top: float, height: int, tone: Colour, rng: np.random.Generator) -> None:
    for step in range(4, -1, -1):
        y, half = top + height * (step + 1) / 5, width / 2 * (step + 1.4) / 5.4
        sheet.polygon([(32, y - height * 0.36), (32 - half, y), (32 + half, y)], shaded(tone, 1.15 - 0.08 * step))


def _column(sheet: Sheet, width: int, top: float, height: int, tone: Colour, rng: np.random.Generator) -> None:
    sheet.disc(32, top + height / 2, width / 2, height / 2, tone)
    for _ in range(16):
        y = rng.uniform(0.12, 0.9)
        x = 32 + rng.uniform(-0.3, 0.3) * width * (1 - abs(2 * y - 1))
        sheet.line(
            [(x, top + height * y), (x + rng.uniform(-1, 1), top + height * y - 5)],
            1.4,
            shaded(tone, rng.uniform(0.8, 1.35)),
        )


def _tiers(sheet: Sheet, width: int, top: float, height: int, tone: Colour, rng: np.random.Generator) -> None:
    for part, share in zip((0.12, 0.48, 0.84), (0.5, 0.8, 1.0)):
        for shift in (-0.2, 0.2, 0):
            x = 32 + shift * width * share + rng.uniform(-1, 1)
            sheet.disc(
                x, top + height * part, width * share * 0.3, height * 0.15, shaded(tone, 0.9 + 0.25 * (shift == 0))
            )


def _palm(sheet: Sheet, width: int, top: float, height: int, tone: Colour, rng: np.random.Generator) -> None:
    sheet.line([(32, 58), (33, top + 8)], 3.2, shaded(BARK, 1.25))
    for angle in np.linspace(-0.5, 3.64, 8) + rng.uniform(-0.08, 0.08, 8):
        x, y = np.cos(angle), -np.sin(angle)
        sheet.line(
            [(33, top + 8), (33 + x * width * 0.3, top + 6 + y * 8), (33 + x * width / 2, top + 12 + y * 5)],
            3.2,
            shaded(tone, rng.uniform(0.9, 1.3)),
        )


def flame(subject: str, look: str, rng: np.random.Generator) -> Image.Image:
    """Draw a holder with a flame on it."""
    sheet = Sheet()
    foot = _holder(sheet, subject)
    outer, inner = FLAME_TONES[look]
    for radius, alpha in ((22, 40), (17, 60)):
        sheet.disc(foot[0], foot[1] - 12, radius, radius, (*inner, alpha))
    for colour, width, height in ((outer, 10, 27), (inner, 5.5, 15)):
        lean = rng.uniform(-3, 3)
        y = np.linspace(0, 1, 24)
        half = width * np.sqrt(y) * (1 - y) ** 0.75 * 1.75
        middle = foot[0] + lean * y**2
        outline = [*zip(middle - half, foot[1] - height * y), *zip((middle + half)[::-1], (foot[1] - height * y)[::-1])]
        sheet.polygon(outline, colour)
    return sheet.done()


def _holder(sheet: Sheet, subject: str) -> tuple[float, float]:
    """Draw what carries the flame; returns the flame's foot."""
    grey, dark, wood = (150, 156, 168), (64, 68, 78), (140, 92, 50)
    if subject == "burner":
        sheet.polygon([(24, 58), (40, 58), (36, 54), (28, 54)], dark)
        sheet.line([(32, 56), (32, 38)], 5, grey)
        return 32, 38
    if subject == "torch":
        sheet.polygon([(28, 38), (36, 38), (33, 60), (31, 60)], wood)
        sheet.line([(27, 39), (37, 39)], 4, dark)
        return 32, 38
    if subject == "spoon":
        sheet.line([(30, 44), (58, 56)], 3, grey)
        sheet.disc(28, 43, 9, 3.4, grey)
        return 28, 42
    if subject == "bowl":
        sheet.polygon([(16, 42), (48, 42), (41, 54), (23, 54)], (196, 110, 84))
        return 32, 42
    if subject == "stove":
        sheet.polygon([(12, 42), (52, 42), (52, 60), (12, 60)], (56, 78, 96))
        sheet.disc(22, 52, 3, 3, grey), sheet.disc(42, 52, 3, 3, grey)
        sheet.line([(20, 42), (44, 42)], 3, dark)
        return 32, 41
    if subject == "spirit lamp":
        sheet.disc(32, 51, 12, 9, (120, 190, 226))
        sheet.line([(32, 44), (32, 39)], 4, grey)
        return 32, 39
    if subject == "match":
        sheet.line([(32, 40), (50, 60)], 2.6, (222, 188, 130))
        sheet.disc(32, 40, 2.6, 2.6, (170, 40, 36))
        return 32, 40
    sheet.line([(30, 40), (10, 58)], 4, wood)  # stick
    return 30, 40


def vessel(
    name: str,
    layers: Sequence[tuple[float, float, tuple[int, ...]]],
    grains: Sequence[tuple[float, float, float, Colour]] = (),
) -> Image.Image:
    """Draw a vessel. layers: bottom and top as fractions of the height, colour. grains: across and up as fractions, radius, colour."""
    rim, foot, height = VESSELS[name]
    sheet, base = Sheet(), 56

    def half(part: float) -> float:
        return foot + (rim - foot) * part

    sheet.polygon(
        [(32 - foot, base), (32 + foot, base), (32 + rim, base - height), (32 - rim, base - height)],
        (255, 255, 255, 90),
    )
    for low, high, colour in layers:
        corners = [(-half(low), low), (half(low), low), (half(high), high), (-half(high), high)]
        sheet.polygon([(32 + x, base - height * part) for x, part in corners], colour)
    for across, up, radius, colour in grains:
        sheet.disc(32 + across * half(up), base - height * up, radius, radius, colour)
    wall = [(32 - rim, base - height), (32 - foot, base), (32 + foot, base), (32 + rim, base - height)]
    sheet.line(wall, 1.8, GLASS)
    return sheet.done()


def tank(liquid: str, level: float = 24) -> tuple[Image.Image, Image.Image]:
    """Return the back of a tank with its liquid, and the glass with a veil of liquid in front of the object."""
    back, front = Sheet(), Sheet()
    tone = LIQUID_TONES[liquid]
    back.polygon([(7, level), (57, level), (57, 58), (7, 58)], (*tone, 235))
    front.polygon([(7, level), (57, level), (57, 58), (7, 58)], (*tone, 70))
    front.line([(7, level), (57, level)], 1.4, (*shaded(tone, 1.3), 255))
    front.line([(6, 13), (6, 59), (58, 59), (58, 13)], 2.2, GLASS)
    return back.done(), front.done()
