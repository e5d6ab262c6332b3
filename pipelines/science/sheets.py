"""Draw contact sheets, to be judged by eye.

python pipelines/science/sheets.py subjects OUT.png    # every subject in every look, a row per law, setting and look
python pipelines/science/sheets.py tuples OUT.png      # four tuples a law: right picture, wrong ones, the three prompts
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from laws import LAWS
from looks import Scene, render
from PIL import Image, ImageDraw
from tuples import tuples as all_tuples


def subjects() -> Image.Image:
    """Return a sheet of all subjects, a row per law, setting and look."""
    rows = [
        (law, look, setting)
        for law in LAWS.values()
        for setting in (*law.settings.values(), "")[: max(1, len(law.settings))]
        for look in law.looks
    ]
    sheet = Image.new("RGB", (66 * max(len(law.kind_of) for law in LAWS.values()), 66 * len(rows)), "white")
    for row, (law, look, setting) in enumerate(rows):
        for column, subject in enumerate(law.kind_of):
            sheet.paste(render(Scene(law.name, subject, look, setting), 1000 * row + column), (66 * column, 66 * row))
    return sheet


def tuples(per_law: int = 4) -> Image.Image:
    """Return a sheet of tuples, four rows per law: the right picture, the wrong ones, and the prompts."""
    rows = []
    for law in LAWS:
        made = list(all_tuples([law]))
        rows += [made[i] for i in np.random.default_rng(7).choice(len(made), per_law, replace=False)]
    sheet = Image.new("RGB", (2 * 620, 66 * len(rows) // 2), "white")
    draw = ImageDraw.Draw(sheet)
    for number, one in enumerate(rows):
        x, y = 620 * (number % 2), 66 * (number // 2)
        for place, look in enumerate((one.look, *one.wrong)):
            sheet.paste(render(Scene(one.law, one.subject, look, one.setting), 3 * number + place), (x + 66 * place, y))
        lines = (
            f"{one.law}, {one.split}: {one.implicit}",
            f"+ {one.explicit}",
            *(f"- {text}" for text in one.superficial),
        )
        draw.text((x + 204, y + 2), "\n".join(lines), fill="black")
    return sheet


if __name__ == "__main__":
    {"subjects": subjects, "tuples": tuples}[sys.argv[1]]().save(Path(sys.argv[2]))
