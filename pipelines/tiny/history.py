"""Render 40 garments that the wardrobe's fictitious user likes, 32 of them in the three colours of her palette.

    python pipelines/tiny/history.py prefkit/tiny/history

Items and patterns are random, and every background is equally frequent both in her palette and in other colours, so
that the palette is the only common property of the images; uneven backgrounds would affect the mean embedding. (item,
colour) pairs that were held out when the embedded models were trained are excluded. Writes PNG files and history.csv
(user, image, category, item), which the scorer `personalization` reads. Takes seconds.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

from prefkit.tiny.captions import held_out_pair
from prefkit.tiny.domain import BACKGROUNDS, COLOURS, ITEMS, PATTERNS, Scene
from prefkit.tiny.scene import render

USER = "mira"
PALETTE = ("red", "pink", "purple")
LIKED, OTHER = 32, 8  # garments in her palette and in other colours, since no history is pure


def scenes(seed: int) -> list[Scene]:
    rng = np.random.default_rng(seed)
    rest = [colour for colour in COLOURS if colour not in PALETTE]
    found: list[Scene] = []
    while len(found) < LIKED + OTHER:
        colours = PALETTE if len(found) < LIKED else rest
        item, colour = list(ITEMS)[rng.integers(len(ITEMS))], colours[rng.integers(len(colours))]
        background = list(BACKGROUNDS)[len(found) % len(BACKGROUNDS)]
        pattern = "plain" if rng.random() < 0.75 else PATTERNS[1 + rng.integers(len(PATTERNS) - 1)]
        if not held_out_pair(item, colour):
            found.append(Scene(item, colour, background, pattern))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / "history.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["user", "image", "category", "item"])
        for number, scene in enumerate(scenes(args.seed)):
            name = f"{number:02d}.png"
            render(scene, seed=10_000 + number).save(args.out / name, optimize=True)
            table.writerow([USER, name, ITEMS[scene.item], scene.item])


if __name__ == "__main__":
    main()
