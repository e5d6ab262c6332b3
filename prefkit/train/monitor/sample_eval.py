"""Over-optimisation alarm for offline training, based on samples for requests that are not trained on.

Before the first step and every `watch_every` steps, the policy generates samples at fixed seeds, with the settings of
the recipe's generator. The scorers in `train.watch` score the samples, and diversity is measured as in eval.
The scores have fallen if they are `stop_drop` stds below the first evaluation; the diversity has fallen if it is below
three quarters of its first value. If either has fallen, the alarm is raised, unless the implicit accuracy on the
training pairs since the last evaluation is at most 0.5. (Objectives without a reference have no implicit accuracy.)

Training keeps only the denoiser in memory. For an evaluation, rank 0 loads the VAE, the text encoders and the scorers,
and releases them afterwards. An evaluation does not touch the random state of training and changes no weight.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from prefkit import output
from prefkit.config import Generate, Train
from prefkit.errors import TrainingError, UsageError
from prefkit.generate.generators import sampling
from prefkit.generate.inputs import Inputs
from prefkit.models.load.pipeline import load_pipeline, model_arguments
from prefkit.models.load.trained import trained_on
from prefkit.models.memory import free_memory
from prefkit.models.predict import forward_as
from prefkit.models.sample import Sampled
from prefkit.score.scorer_set import ScorerSet
from prefkit.store.tensors import save_tensors
from prefkit.train import diagnose, precision
from prefkit.train.data.batches import PairData
from prefkit.train.data.pairs import PairRow
from prefkit.train.monitor.early_stop import BEST_SAMPLES, weights_path
from prefkit.train.monitor.sample_monitor import EVALUATIONS, SEEDS, SampleMonitor
from prefkit.train.policy import without_dropout
from prefkit.types import Candidate, Request, caption_key, digest

FIT = (
    "The evaluation loads the VAE, the text encoders and the scorers next to the denoiser: free the device, or remove "
    "train.NAME.watch."
)
DROP = 0.5  # fall of the scores, in stds, that raises the alarm if stop_drop is 0
DIVERSITY = 0.75  # the diversity has fallen if it is below this fraction of its first value


class SampleEvaluation:
    """Evaluates samples during offline training. plan: loads the models; folder: train/<name>.

    stopped: the reason to end training, or "" if there is none.
    """

    def __init__(self, plan: Any, config: Train, requests: Sequence[Request], folder: Path) -> None:
        self.plan, self.config, self.requests, self.folder = plan, config, list(requests), folder
        self.settings = _settings(plan.recipe.generate)
        self.first: dict[str, list[float]] = {}
        self.diversity: float | None = None
        self.best, self.best_step, self.below, self.stopped = -math.inf, 0, 0, ""
        self.accuracy, self.steps = 0.0, 0  # sum of the implicit accuracy since the last evaluation, number of steps
        first = self.requests[0]  # unknown scorers, missing keys and licences are reported before the first step
        self._scorers().check(Candidate("", first.request_id, 0, 0, prompt=first.prompt, image=b"", extra=first.extra))

    def _scorers(self) -> ScorerSet:
        return ScorerSet(self.plan.recipe, self.config.watch, f"train.{self.folder.name}.watch", self.plan.store)

    @property
    def path(self) -> Path:
        return weights_path(self.folder, BEST_SAMPLES, self.best_step)

    def due(self, step: int) -> bool:
        every = self.config.watch_every if self.config.watch else self.config.sample_every
        return step == self.config.steps or step % every == 0

    def observe(self, metrics: Mapping[str, float], objective: Any) -> None:
        """Add a step's implicit accuracy to the next evaluation. metrics: the same in all processes."""
        if objective.reference != "none" and "implicit_accuracy" in metrics:
            self.accuracy, self.steps = self.accuracy + metrics["implicit_accuracy"], self.steps + 1

    def evaluate(self, loop: Any, log: Any) -> None:
        """Evaluate on rank 0, then tell all processes whether to stop and which step was the best."""
        accuracy = self.accuracy / self.steps if self.steps else None
        self.accuracy, self.steps = 0.0, 0
        if loop.processes.main:
            begun = time.monotonic()
            with diagnose.explain_out_of_memory(
                self.folder.name, loop.processes.device, "in the sample evaluation", FIT
            ):
                report = self._report(loop)
            if self.config.watch:
                report |= {"implicit_accuracy": accuracy}
                report["alarm"] = self._alarm(loop, report, accuracy)
                log.write(loop.step, {"watch": report})
            log.image(loop.step, self.folder / "watch" / f"step-{loop.step:06d}.png")
            if loop.step == 0:
                output.note(
                    f"train {self.folder.name}: evaluating {len(self.requests)} requests, {SEEDS} images each, took "
                    f"{output.duration(time.monotonic() - begun)}; this is repeated every "
                    f"{self.config.watch_every if self.config.watch else self.config.sample_every} steps."
                )
        # all processes may have to load the weights of best_step
        self.stopped, self.best_step = loop.processes.group.broadcast([self.stopped, self.best_step])

    # -- one evaluation -------------------------------------------------------------------------------------------
    def _report(self, loop: Any) -> dict[str, Any]:
        config, scorer_set = self.config, self._scorers()
        scorer_set.load()
        sample, folder = self._sampler(loop), self.folder / "watch"
        monitor = SampleMonitor(
            self.requests, sample, scorer_set, config.watch, (), config.seed, config.batch_size, folder
        )
        monitor.first = self.first
        try:
            with without_dropout(loop.policy):
                report = monitor.evaluate(f"step-{loop.step:06d}")
        finally:
            scorer_set.close()
        failed = [alias for alias in config.watch if math.isnan(self.first[alias][0])]
        if failed:
            raise TrainingError(
                f"train.{self.folder.name}.watch: {failed[0]} failed on every image of the first evaluation; find out "
                "why with `prefkit score`."
            )
        report.pop("reward_gain")
        del monitor, sample, scorer_set
        free_memory()
        return report

    def _sampler(self, loop: Any) -> Callable[[Sequence[Request], Sequence[int]], list[Sampled]]:
        """Return a function that takes requests and seeds, and returns samples of the current policy."""
        model, net = self.plan.recipe.model, loop.policy.net
        pipe = load_pipeline(
            **model_arguments(replace(model, adapters={}, quantize=None)),  # the policy's network replaces the denoiser
            device=str(loop.processes.device),
            dtype=self.plan.frozen_dtype,
            scheduler=self.settings.scheduler,
            parts={"vae", "text"},
            offload=self.settings.offload,
            keep_denoiser=self.settings.offload != "none",
        )
        for name, component in {loop.family.wiring.denoiser: net, **loop.policy.text_encoders}.items():
            setattr(pipe, name, component)
        sample = sampling(pipe, self.settings, Inputs(model.inputs, self.plan.store))
        autocast = partial(precision.autocast, self.config, loop.processes.device)

        def autocast_sample(requests: Sequence[Request], seeds: Sequence[int]) -> list[Sampled]:
            with forward_as(net, autocast):
                return sample(requests, seeds)

        return autocast_sample

    def _alarm(self, loop: Any, report: Mapping[str, Any], accuracy: float | None) -> bool:
        """Save new best weights, decide whether to stop, and return True if this evaluation raises the alarm."""
        if report["gain"] > self.best:
            self.best, self.best_step = report["gain"], loop.step
            if self.config.stop_drop:
                save_tensors(self.path, loop.policy.state())
        if loop.step == 0:
            self.diversity = report["diversity"]
            return False
        where = f"train {self.folder.name}, step {loop.step}"
        if math.isnan(report["gain"]):
            output.warn(
                f"{where}: all watched scores failed, so over-optimisation cannot be detected. Find out "
                "why with `prefkit score`."
            )
        fallen = []
        if report["gain"] <= -(self.config.stop_drop or DROP):
            fallen.append(f"watched scores fell by {-report['gain']:.2f} std ({', '.join(self.config.watch)})")
        if self.diversity and report["diversity"] < DIVERSITY * self.diversity:
            fallen.append(
                f"the samples' diversity fell to {report['diversity'] / self.diversity:.0%} of its first value"
            )
        alarm = bool(fallen) and (accuracy is None or accuracy > 0.5)
        self.below = self.below + 1 if alarm else 0
        if alarm:
            reason = " and ".join(fallen)
            rising = "" if accuracy is None else f" while the implicit accuracy on the training pairs is {accuracy:.2f}"
            output.warn(
                f"{where}: over-optimisation: {reason}{rising}. The policy may now fit only the pairs. Look at the "
                f"images in {self.folder / 'watch'}, and try fewer steps, a larger beta or a smaller learning_rate."
            )
            if self.config.stop_drop and self.below >= EVALUATIONS:
                self.stopped = f"over-optimisation in {EVALUATIONS} evaluations in a row ({reason})"
        return alarm

    # -- checkpoints ----------------------------------------------------------------------------------------------
    def state(self) -> dict[str, Any]:
        best = None if self.best == -math.inf else self.best
        state = {"first": self.first, "diversity": self.diversity, "best": best, "best_step": self.best_step}
        return state | {"below": self.below, "stopped": self.stopped, "since": [self.accuracy, self.steps]}

    def load(self, state: Mapping[str, Any]) -> None:
        self.first, self.diversity, self.best_step = state["first"], state["diversity"], state["best_step"]
        self.best = -math.inf if state["best"] is None else state["best"]
        self.below, self.stopped, (self.accuracy, self.steps) = state["below"], state["stopped"], state["since"]


def sample_evaluation(
    plan: Any, config: Train, data: PairData, training: Sequence[PairRow], held: Sequence[PairRow], folder: Path
) -> SampleEvaluation | None:
    """Return the evaluation of samples by the scorers in train.watch, or without scorers if only sample_every is set.

    Returns None if neither is set. Raises UsageError.
    """
    if not config.watch and not config.sample_every:
        return None
    where = f"train.{folder.name}.watch"
    requests = not_trained_on(plan.store.requests(), data, training, held)[: config.watch_requests]
    if not requests and not config.watch:  # pictures of training prompts are better than none
        requests = list({(r := data.request(pair)).request_id: r for pair in training}.values())[
            : config.watch_requests
        ]
    if not requests:
        raise UsageError(
            f"{where}: every request is trained on. Hold out pairs (train.NAME.validation above 0), or add requests "
            "without pairs to the run."
        )
    chose = set((trained_on(folder) or {}).get("scorers") or ()) & set(config.watch)
    if chose:
        output.warn(
            f"{where}: {', '.join(sorted(chose))} chose the pairs, so a fall of this score would mean failed "
            "training, not over-optimisation. Watch another scorer too."
        )
    return SampleEvaluation(plan, config, requests, folder)


def not_trained_on(
    run: Sequence[Request], data: PairData, training: Sequence[PairRow], held: Sequence[PairRow]
) -> list[Request]:
    """Return the requests of held-out pairs, and the run's `train` requests without pairs, in the order of a hash.

    Requests of splits other than `train` are excluded, even if pairs were made from them.
    """
    excluded = {caption_key(pair.prompt) for pair in training}
    excluded |= {caption_key(request.prompt) for request in run if request.split != "train"}
    requests = {request.request_id: request for request in [*run, *(data.request(pair) for pair in held)]}
    allowed = [request for request in requests.values() if caption_key(request.prompt) not in excluded]
    return sorted(allowed, key=lambda request: digest("watch", request.prompt, request.request_id))


def _settings(generators: Mapping[str, Generate]) -> Generate:
    """Return the recipe's first diffusers generator that uses the recipe's model; without one, the default settings."""
    fits = (settings for settings in generators.values() if settings.use == "diffusers" and settings.model is None)
    return next(fits, Generate())
