"""Horizontal flips as augmentation: half of the visits see all images of a group mirrored.

The choice is a function of (train.seed, group, visit), as time and noise are, so every process and every resumed
training makes the same one. A mirrored image is encoded once and cached under its own key. Measurements (held-out
pairs, preflight) always see the images as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prefkit.config import Train
from prefkit.output import warn
from prefkit.train.data.draws import draw_key
from prefkit.train.data.pairs import PairImage, PairRow
from prefkit.types import digest

SIDED = re.compile(r"\b(left|right)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Augmentation:
    """The flips of a training. flip: half of the visits are mirrored; seed: train.seed."""

    flip: bool = False
    seed: int = 0

    def at(self, group: Any, visit: int) -> Any:
        """The group at a visit: mirrored in half of them, never in measurements (visits below 0)."""
        if visit < 0 or not self.flip:
            return group
        drawn = int(digest("view", draw_key(self.seed, group.id, visit), visit), 16)
        return mirrored(group) if drawn % 2 else group

    def every(self, group: Any) -> list[Any]:
        """The group and, if flips are on, its mirrored version."""
        return [group, mirrored(group)] if self.flip else [group]

    def keys(self, image: PairImage) -> Iterator[str]:
        """The keys under which an image may be cached; all of them have one size."""
        yield image.key
        if self.flip:
            yield _mirrored(image).key


def mirrored(group: Any) -> Any:
    """The group with all its images mirrored."""
    return replace(group, images=tuple(map(_mirrored, group.images)))


def _mirrored(image: PairImage) -> PairImage:
    return replace(image, key=digest(image.key, "flip", length=40), unflipped=image.key, flip=True)


def check_prompts(config: Train, pairs: Sequence[PairRow]) -> None:
    """Warn of flipped prompts that say left or right."""
    if not config.flip:
        return
    sided = {pair.prompt for pair in pairs if SIDED.search(pair.prompt)}
    if sided:
        warn(
            f"train.flip: {len(sided)} prompts say left or right (such as {min(sided)[:60]!r}), which mirrored images "
            "contradict. Set flip: false, or remove their pairs."
        )
