"""A contact sheet of a seed of the study: held-out requests, and the pictures of each row of the tables.

    python pipelines/fashion/sheet.py WORK --seed N [--out sheet.png] [--requests 8]

A line is a request: the other three items of its outfit, then two pictures of each row, with the same noise. A green frame marks
a picture that obeys the rule. The order of the rows is printed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd
from outcome import evaluated
from PIL import Image, ImageDraw

from prefkit.evaluate.distances import images
from prefkit.store import Store

SIDE, EDGE, EACH = 64, 2, 2


def drawn(work: Path, seed: int, count: int) -> tuple[Image.Image, list[str]]:
    """Return the sheet and the names of its rows. count: number of requests."""
    folder = work / f"seed-{seed}"
    rounds = sorted((folder / "ours" / "rounds").iterdir(), key=lambda path: int(path.name))
    models = evaluated(rounds)
    lines = (folder / "fashion" / "requests.jsonl").read_text(encoding="utf-8").splitlines()
    held_out = [row for row in map(json.loads, lines) if row["split"] == "test"]
    chosen = held_out[:: max(1, len(held_out) // count)][:count]
    wanted = {row["request_id"] for row in chosen}
    table = pd.read_csv(work / f"seed-{seed}.csv").set_index(["row", "request", "index"])["rule"]
    cell = SIDE + 2 * EDGE
    sheet = Image.new("RGB", (cell * (3 + EACH * len(models)), cell * len(chosen)), "white")
    draw = ImageDraw.Draw(sheet)
    for y, row in enumerate(chosen):
        for x, name in enumerate(row["outfit"]):
            sheet.paste(Image.open(folder / "fashion" / name).convert("RGB"), (cell * x + EDGE, cell * y + EDGE))
    order = {row["request_id"]: y for y, row in enumerate(chosen)}
    for number, (name, place) in enumerate(models.items()):
        for (request, index), image in images(Store(place), "own", wanted, EACH):
            x, y = cell * (3 + EACH * number + index), cell * order[request]
            if table[name, request, index] == 1:
                draw.rectangle([x, y, x + cell - 1, y + cell - 1], fill=(0, 160, 0))
            sheet.paste(image.convert("RGB"), (x + EDGE, y + EDGE))
    return sheet, list(models)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("sheet.png"))
    args = parser.parse_args()
    sheet, rows = drawn(args.work, args.seed, args.requests)
    sheet.save(args.out)
    print("\n".join(["the other items", *rows]))


if __name__ == "__main__":
    main()
