"""The embedded default: a wardrobe at 64x64 whose every image can be read back, and small models of it."""

from __future__ import annotations

import os
from pathlib import Path

#: what recipes call it: `model: {base: tiny}`, `requests: {source: tiny}`, `clip` with `model: tiny`
NAME = "tiny"
FOLDER = Path(__file__).parent
#: a StableDiffusionPipeline folder, and an open_clip one
PIPELINE, CLIP = FOLDER / "sd", FOLDER / "clip"
#: what a made-up user has liked: a table of user, image, category
HISTORY = FOLDER / "history" / "history.csv"


def located(base: str | Path) -> str:
    """The folder for `tiny`; any other base as it is, with the home folder for ~."""
    return str(PIPELINE) if str(base) == NAME else os.path.expanduser(str(base))
