"""A picture of held-out requests before and after a training, at equal seeds: the first picture of README.md.

    prefkit train -r pipelines/online/taste.yaml --name policy && prefkit eval -r pipelines/online/taste.yaml --models policy
    python pipelines/online/picture.py runs/online-taste policy docs/change.png

The requests are the first of the held-out ones by the SHA-256 of their id, so nobody chose them.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from prefkit.store import Store
from prefkit.types import Candidate

SIDE, GAP, TOP, LEFT = 112, 6, 26, 64


def pictures(folder: Path) -> dict[str, Candidate]:
    """Return {request id: its candidate with index 0} of an evaluated model's images."""
    return {c.request_id: c for c in Store(folder).iter_candidates() if c.index == 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--eval", default="held_out/held_out", help="EVAL/SET under RUN/eval")
    a = parser.parse_args()
    rows = [pictures(a.run / "eval" / a.eval / name) for name in ("base", a.model)]
    ids = sorted(rows[0], key=lambda key: hashlib.sha256(key.encode()).hexdigest())[: a.columns]
    sheet = Image.new("RGB", (LEFT + len(ids) * (SIDE + GAP), TOP + 2 * (SIDE + GAP)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for x, key in enumerate(ids):
        draw.text((LEFT + x * (SIDE + GAP), 6), rows[0][key].prompt.split(" on ")[0], "black", font)
        for y, row in enumerate(rows):
            image = row[key].pil().resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            sheet.paste(image, (LEFT + x * (SIDE + GAP), TOP + y * (SIDE + GAP)))
    for y, word in enumerate(("before", "after")):
        draw.text((8, TOP + y * (SIDE + GAP) + SIDE // 2 - 8), word, "black", font)
    sheet.save(a.out)


if __name__ == "__main__":
    main()
