"""Build prefkit/tiny/atlas.webp and atlas.json from an unpacked `@lobehub/fluent-emoji-3d` 1.1.0 (MIT, see NOTICE).

    npm pack @lobehub/fluent-emoji-3d@1.1.0 && tar xzf lobehub-fluent-emoji-3d-1.1.0.tgz
    python pipelines/tiny/atlas.py package

Every sprite is cropped to its silhouette, scaled and centred in a square of 112 px, 6 squares per row. Takes 2 s.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image

from prefkit.tiny.domain import ITEMS

CELL, COLUMNS = 112, 6
CODE_POINTS = {
    "t-shirt": "1f455",
    "coat": "1f9e5",
    "dress": "1f457",
    "tank top": "1f3bd",
    "kimono": "1f458",
    "lab coat": "1f97c",
    "jeans": "1f456",
    "shorts": "1fa73",
    "running shoe": "1f45f",
    "hiking boot": "1f97e",
    "high heel": "1f460",
    "sandal": "1f461",
    "boot": "1f462",
    "socks": "1f9e6",
    "backpack": "1f392",
    "handbag": "1f45c",
    "clutch": "1f45d",
    "briefcase": "1f4bc",
    "cap": "1f9e2",
    "top hat": "1f3a9",
    "sun hat": "1f452",
    "sunglasses": "1f576-fe0f",
    "umbrella": "2602-fe0f",
    "watch": "231a",
}


def sprite(path: Path, size: int = CELL) -> Image.Image:
    """Return the picture cropped to its silhouette (alpha above 8) and centred in a square of `size` px."""
    image = Image.open(path).convert("RGBA")
    image = image.crop(image.getchannel("A").point([255 * (a > 8) for a in range(256)]).getbbox())
    scale = size / max(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    cell = Image.new("RGBA", (size, size))
    cell.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return cell


def main(package: Path, out: Path) -> None:
    rows = -(-len(ITEMS) // COLUMNS)
    atlas = Image.new("RGBA", (COLUMNS * CELL, rows * CELL))
    index = {}
    for number, (item, group) in enumerate(ITEMS.items()):
        row, column = divmod(number, COLUMNS)
        atlas.paste(sprite(package / "assets" / f"{CODE_POINTS[item]}.webp"), (column * CELL, row * CELL))
        index[item] = {"cell": [row, column], "group": group, "code_point": CODE_POINTS[item]}
    atlas.save(out / "atlas.webp", quality=92, method=6)
    (out / "atlas.json").write_text(json.dumps({"size": CELL, "items": index}, indent=1) + "\n", encoding="utf-8")
    print(f"{out / 'atlas.webp'}: {(out / 'atlas.webp').stat().st_size / 1000:.0f} kB, {len(index)} sprites")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parents[2] / "prefkit" / "tiny")
