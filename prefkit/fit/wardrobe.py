"""Write synthetic interactions and outfits with the embedded wardrobe, by rules that a fit should recover.

python -m prefkit.fit.wardrobe FOLDER [--users 300] [--outfits 3000] [--seed 0]

FOLDER/images/ITEM.png      960 images: every item in every colour, four times, on random plain backgrounds
FOLDER/interactions.csv     user, item, time: each user has a palette of three of the ten colours, sees random items,
                            and takes all in the palette and 15 % of the others (three in four taken items fit)
FOLDER/outfits.csv          outfit, image, category: each outfit has four items of different categories, all of whose
                            colours go together according to prefkit/tiny/rules.py
FOLDER/palettes.json        user -> palette, the ground truth
"""

from __future__ import annotations

import argparse
import csv
import json
from itertools import combinations
from pathlib import Path

import numpy as np

from prefkit.tiny.domain import BACKGROUNDS, COLOURS, ITEMS, Scene
from prefkit.tiny.rules import compatible

FAITHFUL = 0.85  # probability of refusing an item outside the palette
COPIES = 4
PIECES = 4


def write_wardrobe(folder: Path, users: int = 300, outfits: int = 3000, seed: int = 0) -> None:
    from prefkit.tiny.scene import render

    rng = np.random.default_rng(seed)
    catalogue = [(item, colour, copy) for item in ITEMS for colour in COLOURS for copy in range(COPIES)]
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number, (item, colour, copy) in enumerate(catalogue):
        background = str(rng.choice(list(BACKGROUNDS)))
        picture = render(Scene(item, colour, background), seed * 1000 + number)
        picture.save(folder / "images" / f"{name_of(item, colour, copy)}.png")
    palettes = {f"user{u:03d}": sorted(rng.choice(list(COLOURS), 3, replace=False).tolist()) for u in range(users)}
    (folder / "palettes.json").write_text(json.dumps(palettes, indent=1), encoding="utf-8")
    with open(folder / "interactions.csv", "w", newline="", encoding="utf-8") as file:
        write = csv.writer(file)
        write.writerow(["user", "item", "time"])
        for user, palette in palettes.items():
            write.writerows((user, item, time) for time, item in enumerate(_taken(palette, catalogue, rng)))
    with open(folder / "outfits.csv", "w", newline="", encoding="utf-8") as file:
        write = csv.writer(file)
        write.writerow(["outfit", "image", "category"])
        for number in range(outfits):
            for piece in _outfit(catalogue, rng):
                write.writerow([f"outfit{number:05d}", f"images/{name_of(*piece)}.png", ITEMS[piece[0]]])


def name_of(item: str, colour: str, copy: int) -> str:
    return f"{colour}-{item}-{copy}".replace(" ", "-")


def _taken(palette: list[str], catalogue: list[tuple[str, str, int]], rng: np.random.Generator) -> list[str]:
    """Draw the 10 to 24 different items that a user with this palette takes."""
    taken: dict[str, None] = {}
    wanted = int(rng.integers(10, 25))
    while len(taken) < wanted:
        item, colour, copy = catalogue[rng.integers(len(catalogue))]
        if colour in palette or rng.random() > FAITHFUL:
            taken[name_of(item, colour, copy)] = None
    return list(taken)


def _outfit(catalogue: list[tuple[str, str, int]], rng: np.random.Generator) -> list[tuple[str, str, int]]:
    """Draw four items of different categories whose colours all go together, by rejection sampling."""
    while True:
        drawn = [catalogue[i] for i in rng.choice(len(catalogue), PIECES, replace=False)]
        if len({ITEMS[item] for item, _, _ in drawn}) == PIECES and all(
            compatible(a, b) for (_, a, _), (_, b, _) in combinations(drawn, 2)
        ):
            return drawn


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write synthetic interactions and outfits with the embedded wardrobe.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--users", type=int, default=300)
    parser.add_argument("--outfits", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    write_wardrobe(args.folder, args.users, args.outfits, args.seed)
    print(args.folder)


if __name__ == "__main__":
    main()
