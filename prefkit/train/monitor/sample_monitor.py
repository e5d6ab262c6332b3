"""Evaluates the policy's samples with the watched scorers, at fixed seeds, for requests that are not trained on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from prefkit.errors import TrainingError
from prefkit.generate.generators import candidate_id, candidate_seed, encoded, latents_payload
from prefkit.models.latents import NOT_FINITE
from prefkit.models.memory import AdaptiveBatchSize
from prefkit.models.sample import Sampled
from prefkit.output import warn
from prefkit.score.diversity import mean_diversity, thumbnail
from prefkit.score.scorer_set import ScorerSet, values_of
from prefkit.store.files import write_whole
from prefkit.types import Candidate, Request

SEEDS = 2
COLUMNS = 8  # of the picture that shows all samples
EVALUATIONS = 2  # alarms in a row that stop training
OUT_OF_MEMORY = "Free the device, or sample smaller images (generate.NAME.height and width)."


@dataclass(frozen=True)
class SampleSpec:
    """One sample to generate: its request, its index within the request's group, and its seed."""

    request: Request
    index: int
    seed: int


def candidate_of(settings: Mapping[str, Any], spec: SampleSpec, sampled: Sampled, latents: bool) -> Candidate:
    """Return a sample as a candidate; it is failed if not finite. latents: store the latents as the payload."""
    request, index, seed = spec.request, spec.index, spec.seed
    id = candidate_id(dict(settings), request, index, seed)
    candidate = Candidate(id, request.request_id, index, seed, prompt=request.prompt, extra=request.extra)
    if not sampled.finite:
        return replace(candidate, error=NOT_FINITE)
    image, payload = encoded(sampled.image, "png"), latents_payload(sampled.latents) if latents else None
    sha256 = hashlib.sha256(image).hexdigest()
    return replace(candidate, image=image, sha256=sha256, payload=payload, decoded=sampled.image)


class SampleMonitor:
    """Samples the policy at fixed requests and seeds, and scores the images.

    sample: function (requests, seeds) -> images; scorer_set: rewards and watched scorers; first: [mean, std] by score
    name, from the first evaluation.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        sample: Callable[[Sequence[Request], Sequence[int]], list[Sampled]],
        scorer_set: ScorerSet,
        watched: Sequence[str],
        rewards: Sequence[str],
        seed: int,
        batch: int,
        folder: Path,
    ) -> None:
        self.sample, self.scorer_set, self.watched, self.rewards = sample, scorer_set, list(watched), list(rewards)
        self.folder = folder
        hint = "; the samples stay the same except for rounding"
        self.batch_size = AdaptiveBatchSize(batch, "sample evaluation", hint=hint, remedy=OUT_OF_MEMORY)
        self.specs = [
            SampleSpec(request, index, candidate_seed(seed, f"watch {request.request_id}", index))
            for request in requests
            for index in range(SEEDS)
        ]
        self.first: dict[str, list[float]] = {}
        self.best = -math.inf

    def evaluate(self, name: str) -> dict[str, Any]:
        """Sample and score; return mean and std by score name, the gains and the diversity.

        Gains are differences from the first evaluation, in its stds. name: picture file to write, without suffix.
        """
        specs = self.specs
        images = self.batch_size.each(
            specs, lambda part: self.sample([s.request for s in part], [s.seed for s in part])
        )
        self._check_finite(name, images)
        candidates = [candidate_of({}, *both, latents=False) for both in zip(specs, images, strict=True)]
        scores = self.scorer_set.score([candidates[i : i + SEEDS] for i in range(0, len(candidates), SEEDS)])
        report: dict[str, Any] = {}
        for alias in scores:
            values = values_of(scores, alias)
            known = values[~np.isnan(values)]
            mean, std = (float(known.mean()), float(known.std())) if len(known) else (math.nan, math.nan)
            self.first.setdefault(alias, [mean, std])
            report[alias] = {"mean": mean, "std": std, "failed": len(values) - len(known)}
        report["gain"] = self.gain(report, self.watched)
        report["reward_gain"] = self.gain(report, self.rewards)
        finite = [(spec, sampled) for spec, sampled in zip(specs, images, strict=True) if sampled.finite]
        thumbnails = {(spec.request.request_id, spec.index): thumbnail(sampled.image) for spec, sampled in finite}
        report["diversity"] = mean_diversity(thumbnails)
        self._write_picture(name, images)
        return report

    def _check_finite(self, name: str, images: Sequence[Sampled]) -> None:
        """Raise TrainingError if the first evaluation has no finite image; else warn about non-finite images."""
        broken = sum(not sampled.finite for sampled in images)
        where = f"{self.folder.parent.name}, {name}"
        if broken == len(images) and not self.first:
            raise TrainingError(f"{where}: {NOT_FINITE}")
        if broken:
            warn(f"{where}: {broken} of {len(images)} images are not finite and count as failed.")

    def gain(self, report: Mapping[str, Any], aliases: Sequence[str]) -> float:
        """Return the mean of (now - first) / (first std) over these scores: above 0 is better, 0 without scores."""
        signs = self.scorer_set.signs()
        gains = [
            signs[alias] * (report[alias]["mean"] - mean) / (std or 1.0)
            for alias in aliases
            for mean, std in [self.first[alias]]
        ]
        return float(np.mean(gains)) if gains else 0.0

    def improved(self, report: Mapping[str, Any]) -> bool:
        """True if this evaluation is the best so far, by the watched scorers or, if there are none, by the reward."""
        value = report["gain" if self.watched else "reward_gain"]
        better = value > self.best
        self.best = max(self.best, value)
        return better

    def _write_picture(self, name: str, images: Sequence[Sampled]) -> None:
        width, height = images[0].image.size
        grid = Image.new("RGB", (COLUMNS * width, math.ceil(len(images) / COLUMNS) * height), "white")
        for i, sampled in enumerate(images):
            grid.paste(sampled.image, (i % COLUMNS * width, i // COLUMNS * height))
        write_whole(self.folder / f"{name}.png", lambda path: grid.save(path, "PNG"))


class StopRule:
    """Stops training when the watched scores fall while the reward rises: the policy then improves only the reward.

    drop: smallest fall that counts, in stds of the watched scores at the first evaluation; training stops after
    EVALUATIONS such falls in a row.
    """

    def __init__(self, drop: float) -> None:
        self.drop, self.below = drop, 0

    def update(self, gain: float, reward_gain: float) -> bool:
        """Return True if training must stop. gain, reward_gain: see SampleMonitor.gain."""
        falling = self.drop > 0 and gain <= -self.drop and reward_gain > 0
        self.below = self.below + 1 if falling else 0
        return self.below >= EVALUATIONS
