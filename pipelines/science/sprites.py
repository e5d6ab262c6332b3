"""The pictures of the subjects, from Fluent Emoji 3D (MIT, see NOTICE): reading the atlas, and building it.

    npm pack @lobehub/fluent-emoji-3d@1.1.0 && tar xzf lobehub-fluent-emoji-3d-1.1.0.tgz
    python pipelines/science/sprites.py package

Every sprite is cropped to its silhouette, scaled and centred in a square of 80 px, 12 squares per row. Takes 2 s.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

CELL, COLUMNS = 80, 12
ATLAS = Path(__file__).parent / "atlas.webp"
CODE_POINTS = {
    "banana": "1f34c", "tomato": "1f345", "strawberry": "1f353", "mango": "1f96d", "apple": "1f34e", "lemon": "1f34b",
    "orange": "1f34a", "peach": "1f351", "cherries": "1f352", "chili": "1f336-fe0f", "cucumber": "1f952",
    "pea pod": "1fadb", "avocado": "1f951", "kiwi": "1f95d", "broccoli": "1f966", "lettuce": "1f96c", "olive": "1fad2",
    "melon": "1f348", "gear": "2699-fe0f", "wrench": "1f527", "hammer": "1f528", "bolt": "1f529", "chain": "26d3-fe0f",
    "axe": "1fa93", "saw": "1fa9a", "anchor": "2693", "hook": "1fa9d", "crown": "1f451", "trophy": "1f3c6",
    "medal": "1f947", "coin": "1fa99", "guitar": "1f3b8", "chair": "1fa91", "log": "1fab5", "teddy bear": "1f9f8",
    "snowman": "26c4", "ice cube": "1f9ca", "shaved ice": "1f367", "butter": "1f9c8", "cheese": "1f9c0",
    "chocolate bar": "1f36b", "lollipop": "1f36d", "candy": "1f36c", "ice cream": "1f366", "rock": "1faa8",
    "statue": "1f5ff", "brick": "1f9f1", "potted plant": "1fab4", "seedling": "1f331", "fern": "1f33f",
    "clover": "1f340", "sunflower": "1f33b", "tulip": "1f337", "rose": "1f339", "daisy": "1f33c", "frog": "1f438",
    "turtle": "1f422", "crocodile": "1f40a", "snake": "1f40d", "lizard": "1f98e", "dinosaur": "1f996",
    "dragon": "1f409", "textbook": "1f4d7", "hibiscus": "1f33a", "rosette": "1f3f5-fe0f", "toy duck": "1f986",
    "basketball": "1f3c0", "cactus": "1f335", "light bulb": "1f4a1", "television": "1f4fa", "traffic light": "1f6a6",
    "computer": "1f5a5-fe0f", "floor lamp": "1f6cb-fe0f", "christmas tree": "1f384", "radio": "1f4fb",
    "slot machine": "1f3b0", "laptop": "1f4bb", "phone": "1f4f1", "flashlight": "1f526", "robot": "1f916",
    "candle": "1f56f-fe0f", "oil lamp": "1fa94", "campfire": "1f525", "lantern": "1f3ee", "crayon": "1f58d-fe0f",
    "blueberries": "1fad0", "jeans": "1f456", "gem": "1f48e", "notebook": "1f4d8", "whale": "1f433",
}  # fmt: skip


@cache
def _atlas() -> np.ndarray:
    with Image.open(ATLAS) as image:
        return np.asarray(image.convert("RGBA"))


@cache
def sprite(subject: str) -> np.ndarray:
    """Return a subject in its original colours: RGBA uint8 [80, 80, 4]. Raises KeyError for an unknown subject."""
    if subject not in CODE_POINTS:
        raise KeyError(subject)
    row, column = divmod(list(CODE_POINTS).index(subject), COLUMNS)
    return _atlas()[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]


def main(package: Path) -> None:
    sys.path.append(str(Path(__file__).parents[1] / "tiny"))
    from atlas import sprite as cut

    rows = -(-len(CODE_POINTS) // COLUMNS)
    atlas = Image.new("RGBA", (COLUMNS * CELL, rows * CELL))
    for number, code_point in enumerate(CODE_POINTS.values()):
        row, column = divmod(number, COLUMNS)
        atlas.paste(cut(package / "assets" / f"{code_point}.webp", CELL), (column * CELL, row * CELL))
    atlas.save(ATLAS, quality=90, method=6)
    print(f"{ATLAS}: {ATLAS.stat().st_size / 1000:.0f} kB, {len(CODE_POINTS)} sprites")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
