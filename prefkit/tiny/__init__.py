"""The embedded example: a synthetic wardrobe (64x64 images that code can recognize) and small models trained on it."""

from __future__ import annotations

import os
from pathlib import Path

#: the name in recipes: `model: {base: tiny}`, `requests: {source: tiny}`, `clip` or `mllm` with `model: tiny`
NAME = "tiny"
FOLDER = Path(__file__).parent
#: folders of a StableDiffusionPipeline, of an open_clip model and of an image-text-to-text model of transformers
PIPELINE, CLIP, JUDGE = FOLDER / "sd", FOLDER / "clip", FOLDER / "judge"
#: images that a fictitious user likes: a table with the columns user, image, category
HISTORY = FOLDER / "history" / "history.csv"


def located(base: str | Path) -> str:
    """Return the embedded pipeline folder for `tiny`; any other base is returned with ~ expanded."""
    return str(PIPELINE) if str(base) == NAME else os.path.expanduser(str(base))
