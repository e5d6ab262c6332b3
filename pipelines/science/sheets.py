"""Draw contact sheets, to be judged by eye.

    python pipelines/science/sheets.py subjects OUT.png            # every subject in every look, a row per law and look
"""

from __future__ import annotations

import sys
from pathlib import Path

from laws import LAWS
from looks import Scene, render
from PIL import Image


def subjects() -> Image.Image:
    """Return a sheet of all subjects, a row per law, setting and look."""
    rows = [(law, look, setting) for law in LAWS.values() for setting in (*law.settings.values(), "")[: max(1, len(law.settings))] for look in law.looks]
    sheet = Image.new("RGB", (66 * max(len(law.kind_of) for law in LAWS.values()), 66 * len(rows)), "white")
    for row, (law, look, setting) in enumerate(rows):
        for column, subject in enumerate(law.kind_of):
            sheet.paste(render(Scene(law.name, subject, look, setting), 1000 * row + column), (66 * column, 66 * row))
    return sheet


if __name__ == "__main__":
    subjects().save(Path(sys.argv[2]))
