"""The over-optimisation alarm of offline training: looks at images of requests that are not trained on.

At the start and every `watch_every` steps the policy samples at fixed seeds, with the settings of the recipe's
generator. The scorers of `train.watch` score the images, and their diversity within a request is measured as in eval.
Alarm: the scores have fallen by `stop_drop` of their deviation over the start's images, or the diversity to below
three quarters of the start's, while the implicit accuracy on the training pairs since the last look is above the 0.5 that
it began with. For objectives without a reference nothing says whether what they want rises, so a fall alone is one.

The training holds the denoiser alone. For a look, the first process loads the VAE, the text encoders and the scorers,
and lets them go afterwards. A look draws from no random state of the training and changes no weight.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from prefkit import output
from prefkit.config import Generate, Train
from prefkit.errors import TrainingError, UsageError
from prefkit.generate.generators import sampling
from prefkit.generate.inputs import Inputs
from prefkit.models.load.pipeline import load_pipeline
from prefkit.models.load.trained import trained_on
from prefkit.models.predict import forward_as
from prefkit.models.sample import Sampled
from prefkit.score.scorer_set import ScorerSet
from prefkit.train import diagnose as failures
from prefkit.train.data.batches import PairData
from prefkit.train.data.pairs import PairRow
from prefkit.train.monitor import early_stop as stopping
from prefkit.train.monitor.sample_monitor import LOOKS, SEEDS, SampleMonitor
from prefkit.train.trainer import AUTOCAST, silenced
from prefkit.types import Candidate, Request, caption_key, digest

FIT = "A look loads the VAE, the text encoders and the scorers beside the training: free the device, or leave `watch` out."
DROP = 0.5  # of a deviation, where stop_drop is 0
DIVERSITY = 0.75  # share of the start's diversity below which it has fallen


class SampleEvaluation:
    """plan: what is loaded for a look; requests: what is looked at; folder: train/<name>.

    stopped: why the training is to end, "" while it is not.
    """

    def __init__(self, plan: Any, config: Train, requests: Sequence[Request], folder: Path) -> None:
        self.plan, self.config, self.requests, self.folder = plan, config, list(requests), folder
        self.settings = _settings(plan.recipe.generate, folder.name)
        self.first: dict[str, list[float]] = {}
        self.diversity: float | None = None
        self.best, self.best_step, self.below, self.stopped = -math.inf, 0, 0, ""
        self.right, self.steps = 0.0, 0  # implicit accuracy, summed since the last look
        first = self.requests[0]  # what scorers lack, an unknown one, or its licence is told now
        self.jury().check(Candidate("", first.request_id, 0, 0, prompt=first.prompt, image=b"", extra=first.extra))

    def jury(self) -> ScorerSet:
        return ScorerSet(self.plan.recipe, self.config.watch, f"train.{self.folder.name}.watch")

    @property
    def path(self) -> Path:
        return stopping.place(self.folder, stopping.LOOK, self.best_step)

    def due(self, step: int) -> bool:
        return step == self.config.steps or step % self.config.watch_every == 0

    def observe(self, shown: Mapping[str, float], objective: Any) -> None:
        """What a step shows, the same in all processes."""
        if objective.reference != "none" and "implicit_accuracy" in shown:
            self.right, self.steps = self.right + shown["implicit_accuracy"], self.steps + 1

    def look(self, loop: Any, log: Any) -> None:
        """By the first process; all know afterwards whether to stop, and which look was the best."""
        accuracy = self.right / self.steps if self.steps else None
        self.right, self.steps = 0.0, 0
        if loop.processes.main:
            begun = time.monotonic()
            with failures.explained(self.folder.name, loop.processes.device, "in a look at samples", FIT):
                found = self._found(loop)
            found |= {"implicit_accuracy": accuracy}
            found["alarm"] = self._judge(loop, found, accuracy)
            log.write(loop.step, {"watch": found})
            if loop.step == 0:
                output.note(f"train {self.folder.name}: a look at {len(self.requests)} requests, {SEEDS} images each, took "
                            f"{output.duration(time.monotonic() - begun)}; one comes every {self.config.watch_every} steps.")  # fmt: skip
        # best_step: whose weights all of them may have to load
        self.stopped, self.best_step = loop.processes.group.broadcast([self.stopped, self.best_step])

    # -- one look -------------------------------------------------------------------------------------------------
    def _found(self, loop: Any) -> dict[str, Any]:
        jury = self.jury()
        jury.load()
        sample = self._sampler(loop)
        size, seed = self.config.batch_size, self.config.seed
        watch = SampleMonitor(self.requests, sample, jury, self.config.watch, (), seed, size, self.folder / "watch")
        watch.first = self.first
        try:
            with silenced(loop.policy):
                found = watch.look(f"step-{loop.step:06d}")
        finally:
            jury.close()
        failed = [alias for alias in self.config.watch if math.isnan(self.first[alias][0])]
        if failed:
            raise TrainingError(f"train.{self.folder.name}.watch: {failed[0]} failed on every image of the first look; see "
                                "what `prefkit score` says about it.")  # fmt: skip
        found.pop("reward_gain")
        del watch, sample, jury
        gc.collect()
        if loop.processes.device.type == "cuda":
            torch.cuda.empty_cache()
        return found

    def _sampler(self, loop: Any) -> Any:
        """A function (requests, seeds) -> samples of the policy as it is."""
        model, net = self.plan.recipe.model, loop.policy.net
        pipe = load_pipeline(
            model.base,
            revision=model.revision,
            device=str(loop.processes.device),
            dtype=self.plan.frozen_dtype,
            scheduler=self.settings.scheduler,
            parts={"vae", "text"},
            trust_remote_code=model.trust_remote_code,
            config=model.config,
        )
        setattr(pipe, loop.family.wiring.denoiser, net)
        sample = sampling(pipe, self.settings, Inputs(model.inputs, self.plan.store))
        dtype = AUTOCAST[self.config.precision]
        precise = partial(torch.autocast, loop.processes.device.type, dtype) if dtype else nullcontext

        def of(requests: Sequence[Request], seeds: Sequence[int]) -> list[Sampled]:
            with forward_as(net, precise):
                return sample(requests, seeds)

        return of

    def _judge(self, loop: Any, found: Mapping[str, Any], accuracy: float | None) -> bool:
        """Whether this look is an alarm. Keeps the best weights where they may be asked for, and decides to stop."""
        if found["gain"] > self.best:
            self.best, self.best_step = found["gain"], loop.step
            if self.config.stop_drop:
                stopping.keep(self.path, loop.policy.state())
        if loop.step == 0:
            self.diversity = found["diversity"]
            return False
        drop = self.config.stop_drop or DROP
        if math.isnan(found["gain"]):
            output.warn(f"train {self.folder.name}, step {loop.step}: no watched score could be computed, so nothing is known "
                        "of its rise or fall.")  # fmt: skip
        fallen = []
        if found["gain"] <= -drop:
            fallen.append(
                f"the watched scores ({', '.join(self.config.watch)}) by {-found['gain']:.2f} of their deviation"
            )
        if self.diversity and found["diversity"] < DIVERSITY * self.diversity:
            fallen.append(
                f"the diversity of a request's images to {found['diversity'] / self.diversity:.0%} of the start's"
            )
        alarm = bool(fallen) and (accuracy is None or accuracy > 0.5)
        self.below = self.below + 1 if alarm else 0
        if alarm:
            why = f"{' and '.join(fallen)} on requests that are not trained on"
            rising = (
                "" if accuracy is None else f", while the implicit accuracy on the training pairs is {accuracy:.2f}"
            )
            output.warn(f"train {self.folder.name}, step {loop.step}: alarm: down {'are' if len(fallen) > 1 else 'is'} {why}"
                        f"{rising}. What is learned now may please the pairs alone: look at {self.folder / 'watch'}, and try "
                        "fewer steps, a larger beta or a smaller learning_rate.")  # fmt: skip
            if self.config.stop_drop and self.below >= LOOKS:
                self.stopped = f"at {LOOKS} looks in a row, {why} had fallen"
        return alarm

    # -- checkpoints ----------------------------------------------------------------------------------------------
    def state(self) -> dict[str, Any]:
        best = None if self.best == -math.inf else self.best
        kept = {"first": self.first, "diversity": self.diversity, "best": best, "best_step": self.best_step}
        return kept | {"below": self.below, "stopped": self.stopped, "since": [self.right, self.steps]}

    def load(self, state: Mapping[str, Any]) -> None:
        self.first, self.diversity, self.best_step = state["first"], state["diversity"], state["best_step"]
        self.best = -math.inf if state["best"] is None else state["best"]
        self.below, self.stopped, (self.right, self.steps) = state["below"], state["stopped"], state["since"]


def looks_of(
    plan: Any, config: Train, data: PairData, training: Sequence[PairRow], held: Sequence[PairRow], folder: Path
) -> SampleEvaluation | None:
    """None where nothing is watched. Raises UsageError."""
    if not config.watch:
        return None
    where = f"train.{folder.name}.watch"
    if config.family != "diffusers":
        raise UsageError(f"{where}: looks are at images of a diffusers pipeline, and the family is {config.family}.")
    requests = not_trained_on(plan.store.requests(), data, training, held)[: config.watch_requests]
    if not requests:
        raise UsageError(f"{where}: there is no request that is not trained on. Keep pairs aside (validation above 0), or add "
                         "requests to the run that no pair is made of.")  # fmt: skip
    chose = set((trained_on(folder) or {}).get("scorers") or ()) & set(config.watch)
    if chose:
        output.warn(f"{where}: {', '.join(sorted(chose))} chose the pairs, so a fall of it says that training fails, and "
                    "nothing about over-optimisation. Watch another scorer beside it.")  # fmt: skip
    return SampleEvaluation(plan, config, requests, folder)


def not_trained_on(
    run: Sequence[Request], data: PairData, training: Sequence[PairRow], held: Sequence[PairRow]
) -> list[Request]:
    """By the hash of their prompt: requests of the pairs kept aside, and of the run's split `train` without a pair.

    Requests of other splits stay unseen, whatever pairs were made of them.
    """
    trained = {caption_key(pair.prompt) for pair in training}
    unseen = {caption_key(request.prompt) for request in run if request.split != "train"}
    found = {request.request_id: request for request in [*run, *(data.request(pair) for pair in held)]}
    own = [r for r in found.values() if caption_key(r.prompt) not in trained | unseen]
    return sorted(own, key=lambda request: digest("watch", request.prompt, request.request_id))


def _settings(generators: Mapping[str, Generate], name: str) -> Generate:
    """Of the recipe's first generator that samples the model itself. Raises UsageError."""
    for settings in generators.values():
        if settings.use == "diffusers" and settings.model is None:
            return settings
    raise UsageError(f"train.{name}.watch: the recipe has no diffusers generator of `model` itself; add an entry under "
                     "`generate:` that says with how many steps and which guidance to sample.")  # fmt: skip
