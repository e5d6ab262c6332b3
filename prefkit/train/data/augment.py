"""Horizontal flips as augmentation: at half of the visits to a group, all its images are mirrored.

Like time and noise, the choice is a function of (train.seed, group, visit), so every process and every resumed run
makes the same choice. A mirrored image is encoded once and cached under a separate key. Measurements (held-out pairs,
preflight) always use the unflipped images.
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
    """Random flips of images. flip: mirror the images at half of the visits; seed: train.seed."""

    flip: bool = False
    seed: int = 0

    def at(self, group: Any, visit: int) -> Any:
        """Return the group for a visit: mirrored at half of the visits, never in measurements (visits below 0)."""
        if visit < 0 or not self.flip:
            return group
        drawn = int(digest("view", draw_key(self.seed, group.id, visit), visit), 16)
        return mirrored(group) if drawn % 2 else group

    def every(self, group: Any) -> list[Any]:
        """Return the group and, if flips are on, its mirrored version."""
        return [group, mirrored(group)] if self.flip else [group]

    def keys(self, image: PairImage) -> Iterator[str]:
        """Yield the keys under which an image may be cached: unflipped and flipped, both with the same image size."""
        yield image.key
        if self.flip:
            yield _mirrored(image).key


def mirrored(group: Any) -> Any:
    return replace(group, images=tuple(map(_mirrored, group.images)))


def _mirrored(image: PairImage) -> PairImage:
    return replace(image, key=digest(image.key, "flip", length=40), unflipped=image.key, flip=True)


def check_prompts(config: Train, pairs: Sequence[PairRow]) -> None:
    """Warn if images are flipped although their prompts say left or right."""
    if not config.flip:
        return
    sided = {pair.prompt for pair in pairs if SIDED.search(pair.prompt)}
    if sided:
        warn(
            f"train.flip: {len(sided)} prompts say left or right (such as {min(sided)[:60]!r}), which is wrong for "
            "mirrored images. Set train.NAME.flip: false, or remove their pairs."
        )
