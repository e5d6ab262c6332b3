"""SampleEvaluation at requests that are not trained on: fixed seeds, the sampler that users run, scorers that were not the reward."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prefkit.errors import TrainingError
from prefkit.generate.generators import candidate_seed
from prefkit.models.latents import NOT_FINITE
from prefkit.models.memory import AdaptiveBatchSize
from prefkit.models.sample import Sampled
from prefkit.output import warn
from prefkit.score.diversity import mean_diversity, thumbnail
from prefkit.score.scorer_set import ScorerSet, values_of
from prefkit.store.files import write_whole
from prefkit.train.monitor.samples import Asked, candidate_of
from prefkit.types import Request

SEEDS = 2
GRID = 8  # columns of the picture
LOOKS = 2  # in a row
NO_ROOM = "Free the device, or sample smaller images (generate.NAME.height and width)."


class SampleMonitor:
    """sample: (requests, seeds) -> images; jury: rewards and watched scorers. first: what the first look found."""

    def __init__(
        self,
        requests: Sequence[Request],
        sample: Callable[[Sequence[Request], Sequence[int]], list[Sampled]],
        jury: ScorerSet,
        watched: Sequence[str],
        rewards: Sequence[str],
        seed: int,
        batch: int,
        folder: Path,
    ) -> None:
        self.sample, self.jury, self.watched, self.rewards = sample, jury, list(watched), list(rewards)
        self.folder = folder
        self.room = AdaptiveBatchSize(
            batch, "looking at samples", hint="; the samples stay the same but for rounding", remedy=NO_ROOM
        )
        self.asked = [
            Asked(request, index, candidate_seed(seed, f"watch {request.request_id}", index))
            for request in requests
            for index in range(SEEDS)
        ]
        self.first: dict[str, list[float]] = {}
        self.best = -math.inf

    def look(self, name: str) -> dict[str, Any]:
        """Means and deviations by alias, the gains over the first look in its deviations, and the diversity.

        name: of the picture, which is written.
        """
        images = self.room.each(self.asked, lambda part: self.sample([a.request for a in part], [a.seed for a in part]))
        self._check_finite(name, images)
        candidates = [candidate_of({}, a, s, latents=False) for a, s in zip(self.asked, images, strict=True)]
        scores = self.jury.score([candidates[i : i + SEEDS] for i in range(0, len(candidates), SEEDS)])
        found: dict[str, Any] = {}
        for alias in scores:
            values = values_of(scores, alias)
            mean, deviation = _mean(values), _deviation(values)
            self.first.setdefault(alias, [mean, deviation])
            found[alias] = {"mean": mean, "deviation": deviation, "failed": int(np.isnan(values).sum())}
        found["gain"] = self.gain(found, self.watched)
        found["reward_gain"] = self.gain(found, self.rewards)
        both = zip(self.asked, images, strict=True)
        small = {(a.request.request_id, a.index): thumbnail(s.image) for a, s in both if s.finite}
        found["diversity"] = mean_diversity(small)
        self._picture(name, images)
        return found

    def _check_finite(self, name: str, images: Sequence[Sampled]) -> None:
        """Raises TrainingError where no image of the first look is finite; warns of fewer, and of later ones."""
        broken = sum(not sampled.finite for sampled in images)
        if broken == len(images) and not self.first:
            raise TrainingError(f"{self.folder.parent.name}, {name}: {NOT_FINITE}")
        if broken:
            warn(
                f"{self.folder.parent.name}, {name}: {broken} of {len(images)} images are not finite and count as failed."
            )

    def gain(self, found: dict[str, Any], aliases: Sequence[str]) -> float:
        """Mean over the aliases of (now - first) / first deviation, better being above 0; 0 where there is none."""
        signs = self.jury.signs()
        gains = []
        for alias in aliases:
            mean, deviation = self.first[alias]
            gains.append(signs[alias] * (found[alias]["mean"] - mean) / (deviation or 1.0))
        return float(np.mean(gains)) if gains else 0.0

    def improved(self, found: dict[str, Any]) -> bool:
        """Whether this look is the best so far: by the watched scorers, or by the reward where there are none."""
        value = found["gain" if self.watched else "reward_gain"]
        better = value > self.best
        self.best = max(self.best, value)
        return better

    def _picture(self, name: str, images: Sequence[Sampled]) -> None:
        from PIL import Image

        width, height = images[0].image.size
        rows = math.ceil(len(images) / GRID)
        grid = Image.new("RGB", (GRID * width, rows * height), "white")
        for i, sampled in enumerate(images):
            grid.paste(sampled.image, (i % GRID * width, i // GRID * height))
        write_whole(self.folder / f"{name}.png", lambda path: grid.save(path, "PNG"))


class StopRule:
    """Stops when the watched scores fall while the reward rises: what is learned then is to please the reward alone.

    drop: how far, in deviations of the watched score over the first look's images; LOOKS times in a row.
    """

    def __init__(self, drop: float) -> None:
        self.drop, self.below = drop, 0

    def look(self, gain: float, reward_gain: float) -> bool:
        """gain: mean over the watched scores of (now - first) / first deviation; whether to stop."""
        falling = self.drop > 0 and gain <= -self.drop and reward_gain > 0
        self.below = self.below + 1 if falling else 0
        return self.below >= LOOKS


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _deviation(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.std()) if len(known) else math.nan
