"""The reader as scorers of pictures (evaluation only). The requests are those of tuples.py.

score:
  obeys: {use: "pipelines/science/judge.py:obeys"}            # shows the right look of the right subject
  recognized: {use: "pipelines/science/judge.py:recognized"}  # shows the subject in any of the law's looks
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import prefkit

sys.path.insert(0, str(Path(__file__).parent))
from reader import read_many
from tuples import NO_SETTING


@prefkit.scorer(name="obeys", version="1", range=(0, 1), evaluation_only=True)
def obeys(
    images: Sequence[Any],
    prompts: Sequence[str],
    law: Sequence[str],
    subject: Sequence[str],
    look: Sequence[str],
    setting: Sequence[str],
) -> list[float]:
    """1 if the picture shows the subject of the request in the right look and setting, else 0."""
    seen = read_many(images, law, subject)
    return [
        float((one.look, one.setting or NO_SETTING) == (a, b)) for one, a, b in zip(seen, look, setting, strict=True)
    ]


@prefkit.scorer(name="recognized", version="1", range=(0, 1), evaluation_only=True)
def recognized(
    images: Sequence[Any], prompts: Sequence[str], law: Sequence[str], subject: Sequence[str]
) -> list[float]:
    """1 if the picture shows the subject of the request in any look of its law, else 0."""
    return [float(one.look is not None) for one in read_many(images, law, subject)]
