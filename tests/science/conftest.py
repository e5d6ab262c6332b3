"""The modules of pipelines/science, which import each other by their names."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

SCIENCE = Path(__file__).parents[2] / "pipelines" / "science"
NAMES = ("laws", "words", "tuples", "sprites", "effects", "drawn", "looks", "reader", "blind", "check_reader", "judge")
STUDY = ("box", "garment", "clip_base", "sciscore", "results", "study")
TRAINING = ("base", "check_base", "clip", "machine", "negatives", "tokenizer", "unet", "vae", "scenes")


@pytest.fixture(scope="module")
def science() -> Iterator[SimpleNamespace]:
    """The modules without the generator's; they are forgotten afterwards, since other pipelines have the same names."""
    before = {name: sys.modules.pop(name, None) for name in (*NAMES, *STUDY, *TRAINING)}
    path = list(sys.path)
    sys.path.insert(0, str(SCIENCE))
    yield SimpleNamespace(**{name: __import__(name) for name in NAMES})
    sys.path[:] = path
    for name, module in before.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module
