"""How an image is looked at: whole or cropped, as it is or mirrored; all images of a group alike.

The view of a group's n-th visit is a function of (train.seed, group, n), as its time and noise are. It is therefore the
same in every process and after every resume. Every view of an image is encoded once and cached under its own key. Held-out
pairs and the preflight are always measured on the plain view: the whole frame around the centre, not mirrored.

flip   half of the visits see mirrored images. What a text, a logo or the words left and right say is then wrong.
crop   random: where an image does not have the aspect of its frame, one of CROPS places along what hangs over, the two
       ends among them; centre: always the middle
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prefkit.config import Train
from prefkit.errors import UsageError
from prefkit.output import warn
from prefkit.train.data.draws import draw_key
from prefkit.train.data.pairs import PairImage, PairRow
from prefkit.types import digest

CROPS = 4
CENTRE = 0.5
SIDED = re.compile(r"\b(left|right)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Augmentation:
    """flips, crops: what a visit chooses from; crops are shares of what hangs over, 0 (left or top) to 1. seed: train.seed."""

    flips: tuple[bool, ...] = (False,)
    crops: tuple[float, ...] = (CENTRE,)
    seed: int = 0

    @property
    def many(self) -> bool:
        return len(self.flips) * len(self.crops) > 1

    @classmethod
    def of(cls, config: Train) -> Augmentation:
        places = tuple(k / (CROPS - 1) for k in range(CROPS)) if config.crop == "random" else (CENTRE,)
        return cls((False, True) if config.flip else (False,), places, config.seed)

    def at(self, group: Any, visit: int) -> Any:
        """The group as its visit sees it; visits below 0 are measurements."""
        if visit < 0 or not self.many:
            return group
        number = int(digest("view", draw_key(self.seed, group.id, visit), visit), 16) % (
            len(self.flips) * len(self.crops)
        )
        return self._seen(group, self.flips[number % len(self.flips)], self.crops[number // len(self.flips)])

    def every(self, group: Any) -> Iterator[Any]:
        """The group in all its views, the plain one first."""
        yield group
        for crop in self.crops:
            for flip in self.flips:
                if (flip, crop) != (False, CENTRE):
                    yield self._seen(group, flip, crop)

    def keys(self, side: PairImage) -> Iterator[str]:
        """Under which its views may be cached; they have one size."""
        yield side.key
        for crop in self.crops:
            for flip in self.flips:
                yield _of_side(side, flip, crop).key

    def _seen(self, group: Any, flip: bool, crop: float) -> Any:
        sides = tuple(_of_side(side, flip, crop) for side in group.sides)
        if isinstance(group, PairRow):
            return replace(group, win=sides[0], lose=sides[1])
        return replace(group, sides=sides)


def _of_side(side: PairImage, flip: bool, crop: float) -> PairImage:
    if not _overhangs(side):
        crop = CENTRE
    if (flip, crop) == (False, CENTRE):
        return side
    key = digest(side.key, "view", flip, crop, length=40)
    return replace(side, key=key, plain=side.key, flip=flip, crop=crop)


def _overhangs(side: PairImage) -> bool:
    """Whether its frame hides a part of the image; of one that cannot be read nothing is known."""
    if side.frame is None or side.whole is None:
        return False
    return side.whole[0] * side.frame[1] != side.whole[1] * side.frame[0]


def check(name: str, config: Train) -> None:
    """Raises UsageError where a view would not be what the rest of the training takes it for."""
    where = f"train.{name}"
    if config.crop not in ("centre", "random"):
        raise UsageError(f"{where}.crop: {config.crop!r} is not known; choose centre, random.")
    if not config.flip and config.crop == "centre":
        return
    if config.online is not None or config.noise != "shared":
        raise UsageError(f"{where}: flip and crop: random are for images that are there; a candidate's own noise made the "
                         "image as it is, and online training samples its own. Leave them out.")  # fmt: skip
    if config.crop == "random" and config.resolution is None:
        raise UsageError(
            f"{where}.crop: random chooses what a frame shows of an image; set resolution, or crop: centre."
        )
    if config.crop == "random" and config.mask is not None:
        raise UsageError(
            f"{where}.crop: random may cut off what mask shows, and then nothing is learned. Set it to centre."
        )


def check_prompts(config: Train, inputs: Mapping[str, str], pairs: Sequence[PairRow]) -> None:
    """Raises UsageError for models with images beside the prompt, which would stay as they are; warns of sided prompts."""
    if (config.flip or config.crop == "random") and inputs:
        raise UsageError("train: flip and crop: random would turn the images, and not those that model.inputs gives "
                         f"the model beside them ({', '.join(inputs)}). Leave them out.")  # fmt: skip
    sided = {pair.prompt for pair in pairs if SIDED.search(pair.prompt)} if config.flip else set()
    if sided:
        warn(f"train.flip: {len(sided)} prompts say left or right, as {min(sided)[:60]!r} does, and mirrored images do "
             "not. Set flip: false, or remove their pairs.")  # fmt: skip


def warn_of_coordinates(config: Train, family: Any) -> None:
    """Models as SDXL are told of every image where it was cropped; prefkit tells them what generation does: nowhere."""
    told = "crops_coords_top_left" in inspect.signature(type(family.pipe).__call__).parameters
    if told and config.crop == "random":
        warn(f"train.crop: {type(family.pipe).__name__} is told where an image was cropped, and hears (0, 0) here as in "
             "generation: random crops may teach it cut-off images. Set crop: centre.")  # fmt: skip
