"""Online trainer: in each round, it generates samples, scores them in parallel and learns from them.

Random numbers depend only on (seed, round, request, sample), so checkpoints hold no random state, and an interrupted
round is repeated exactly. Every process generates whole groups and learns from the samples that it generated; updates
are means over all processes' samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prefkit import output
from prefkit.config import Online, Train
from prefkit.errors import TrainingError
from prefkit.models.memory import AdaptiveBatchSize
from prefkit.models.sample import Sampled
from prefkit.score.scorer_set import ScorerSet, Scores, values_of
from prefkit.train.data.masks import box_mask
from prefkit.train.monitor.metrics import Log
from prefkit.train.monitor.sample_monitor import OUT_OF_MEMORY, SampleMonitor, SampleSpec, StopRule, candidate_of
from prefkit.train.online.advantages import AdvantageStatistics, count_flat_groups
from prefkit.train.online.checks import count_missing
from prefkit.train.online.rewards import BackgroundWorker, rewards, timed_out
from prefkit.train.online.rollout import Chains, Rollout, stochastic_steps
from prefkit.train.online.rounds import Round, RoundWriter, local_samples, samples_of_round
from prefkit.train.policy import MovingAverage
from prefkit.train.trainer import TrainingLoop
from prefkit.types import Candidate, Request

Waiting = list[tuple[list[list[Candidate]], Future[Any]]]  # groups of candidates, and the future of their scores


class OnlineTrainer(TrainingLoop):
    """Online trainer. spec: sampling settings, hashed into the candidate ids. export: writes the policy to a folder."""

    unit, shown = "round", ("reward", "queries")

    def __init__(
        self,
        config: Train,
        rollout: Rollout,
        learner: Any,
        scorer_set: ScorerSet,
        writer: RoundWriter,
        monitor: SampleMonitor | None,
        requests: list[Request],
        spec: dict[str, Any],
        folder: Path,
        export: Callable[[Path], Any],
    ) -> None:
        self.config, self.online = config, config.online or Online()
        self.rollout, self.learner = rollout, learner
        self.objective, self.optimizer = learner.objective, learner.optimizer
        self.policy, self.processes = self.optimizer.policy, self.optimizer.processes
        self.scorer_set, self.writer, self.monitor = scorer_set, writer, monitor
        self.requests, self.spec, self.folder, self.export = requests, spec, folder, export
        online = self.online
        self.total, self.checkpoint_every = online.rounds, online.checkpoint_every
        self.statistics = AdvantageStatistics(online.statistics, online.buffer, online.minimum)
        self.average = MovingAverage(self.policy.parameters(), online.ema) if online.ema else None
        self.stop_rule = StopRule(online.stop_drop)
        self.worker = BackgroundWorker()
        self.sampling_batch = AdaptiveBatchSize(None, f"train {folder.name}, sampling", remedy=OUT_OF_MEMORY)
        self.step, self.metrics, self.stopped = 0, {}, ""

    @property
    def done(self) -> bool:
        return bool(self.stopped) or self.step >= self.total

    def exported_weights(self) -> Any:
        """Return a context in which the network has the weights that are exported and evaluated (see online.ema)."""
        return self.policy.weights_replaced(self.average.weights) if self.average is not None else nullcontext()

    # -- one round ------------------------------------------------------------------------------------------------
    def work(self, end: int) -> Iterator[tuple[dict[str, float], dict[str, float]]]:
        if self.step == 0:
            self.save()
        while self.step < end:
            yield self.round(self.step), {}

    def round(self, number: int) -> dict[str, float]:
        """Run round `number`: sample, score and learn; return the metrics."""
        begun = time.monotonic()
        online, processes = self.online, self.processes
        if online.refresh and number and number % online.refresh == 0:
            self.policy.refresh_reference()
        samples = samples_of_round(number, self.requests, online.requests, online.samples, self.config.seed)
        local = local_samples(len(samples), online.samples, processes.rank, processes.count)
        round_ = Round(number, samples, local)
        if processes.main:
            self.writer.create(round_, self.spec)
        processes.wait()
        follows = hasattr(self.objective, "kept")  # the reference samples, and follows the policy
        with self.policy.reference() if follows else nullcontext():
            waiting = self._sample(round_)
        sampled = time.monotonic()
        scores = self._collect(round_, waiting)
        metrics = self._reward(round_, scores)
        scored = time.monotonic()
        self.writer.write(round_, scores)
        processes.wait()
        metrics |= self.learner.learn(round_, self._update)
        if follows:
            self.policy.follow(self.objective.kept(number))
        if processes.main:
            self.writer.prune(number)
        seconds = {"sampling": sampled - begun, "waiting for rewards": scored - sampled}
        seconds["learning"] = time.monotonic() - scored
        return metrics | {f"seconds/{part}": value for part, value in seconds.items()}

    def _update(self) -> dict[str, float]:
        """Make an optimizer step. Raises TrainingError if the gradient is not finite or, at the first step, 0."""
        name, number = self.folder.name, self.optimizer.count + 1
        metrics = self.optimizer.step()
        if metrics is None:
            raise TrainingError(
                f"train {name}: the gradient of update {number} is not finite, so training has stopped; it can resume "
                "at the start of the round. Try a smaller learning_rate, or precision `bf16` or `no` instead of `fp16`."
            )
        if number == 1 and metrics["grad_norm"] == 0.0:
            raise TrainingError(
                f"train {name}: the first update has no gradient, so nothing would be learned. Either the reward is "
                "the same for all samples, so that every advantage is 0, or the denoiser does not run the layers in "
                "lora.targets. Change the reward or lora.targets."
            )
        if self.average is not None:
            self.average.update()
        return metrics

    def _sample(self, round_: Round) -> Waiting:
        """Generate this process's samples, and pass each full group to the scorers as soon as it is complete."""
        chains: list[Chains] = []
        waiting: Waiting = []
        size, group = self.online.sample_batch or self.config.batch_size, self.online.samples
        incomplete: list[Candidate] = []
        for start in range(0, len(round_.local), size):
            part = [round_.samples[i] for i in round_.local[start : start + size]]
            images = self.sampling_batch.each(part, partial(self._sample_batch, round_.number, chains))
            latents = not self.learner.records
            made = [candidate_of(self.spec, a, s, latents) for a, s in zip(part, images, strict=True)]
            if not round_.candidates:
                self.scorer_set.check(replace(made[0], image=made[0].image or b""))
            round_.candidates += made
            incomplete += made
            complete = len(incomplete) // group * group
            if complete:
                groups = [incomplete[i : i + group] for i in range(0, complete, group)]
                waiting.append((groups, self.worker.submit(partial(self.scorer_set.score, groups))))
                incomplete = incomplete[complete:]
        round_.chains = Chains.joined(chains) if chains else None
        return waiting

    def _sample_batch(self, number: int, chains: list[Chains], part: Sequence[SampleSpec]) -> list[Sampled]:
        """Generate one batch of samples and append its recorded chains, if any, to `chains`."""
        prompts, seeds = [sample.request.prompt for sample in part], [sample.seed for sample in part]
        if not self.learner.records:
            return self.rollout.sampler.sample(prompts, seeds)
        online, steps = self.online, self.rollout.sampler.call["num_inference_steps"]
        place = partial(stochastic_steps, steps, online.window, online.window_every, self.config.seed, number)
        active = np.stack([place(sample.request.request_id) for sample in part])
        images, recorded = self.rollout.sample(prompts, seeds, torch.from_numpy(active))
        chains.append(recorded)
        return images

    def _collect(self, round_: Round, waiting: Waiting) -> Scores:
        """Wait for the scores of this process's samples, and make the samples' masks if online.mask is set."""
        scores: Scores = {name: [] for name in self.scorer_set.scorers}
        limit = self.online.reward_timeout
        for groups, future in waiting:
            answer = self.worker.result(future, limit)
            if answer is None:
                answer = timed_out(sum(map(len, groups)), list(scores), self.scorer_set.current, limit)
            for name, values in answer.items():
                scores[name] += values
        if self.online.mask is not None and round_.chains is not None:
            like = round_.chains.states[0, 0]
            masked = zip(round_.local, round_.candidates, scores[self.online.mask], strict=True)
            for index, candidate, score in masked:
                if candidate.error is None:
                    size = candidate.pil().size
                    round_.masks[index] = box_mask(score.aspects or {}, self.rollout.wiring, like, size)
        return scores

    def _reward(self, round_: Round, scores: Scores) -> dict[str, float]:
        """Compute rewards and advantages of the full round, identically in every process; return their metrics."""
        online, total = self.online, len(round_.samples)
        columns = {name: self._of_all(values_of(scores, name), round_.local, total) for name in self.scorer_set.scorers}
        round_.scores = columns
        weights = {name: weight for name, weight in online.rewards.items() if weight}
        round_.rewards = rewards(columns, self.scorer_set.signs(), weights, round_.groups, online.normalise)
        errors = [f"{name}: {score.error}" for name in weights for score in scores[name] if score.error]
        missing = count_missing(round_.rewards, online.max_failed, errors, round_.number)
        round_.advantages = self.statistics.advantages(round_.request_ids, round_.rewards)
        known = round_.rewards[~np.isnan(round_.rewards)]
        metrics = {"reward": float(known.mean()), "reward_std": float(known.std()), "failed": float(missing)}
        for name, column in columns.items():
            metrics[f"score/{name}"] = float(np.nanmean(column)) if np.isfinite(column).any() else np.nan
        metrics["flat_groups"] = float(count_flat_groups(round_.request_ids, round_.rewards))
        return metrics | {"queries": float((round_.number + 1) * total)}

    def _of_all(self, values: np.ndarray, local: list[int], total: int) -> np.ndarray:
        """Return the values [total] of all processes' samples, NaN where missing. values: one per sample in `local`."""
        sums, known = torch.zeros(total, dtype=torch.float64), torch.zeros(total, dtype=torch.float64)
        sums[local], known[local] = torch.from_numpy(np.nan_to_num(values)), torch.from_numpy((~np.isnan(values)) * 1.0)
        sums, known = self.processes.sum(sums), self.processes.sum(known)
        return torch.where(known > 0, sums, torch.nan).numpy()

    # -- watched requests -----------------------------------------------------------------------------------------
    def evaluate(self, log: Log | None) -> None:
        """Evaluate the watched requests; export the best policy so far, and decide whether to stop."""
        if self.monitor is None or not self.online.watch_every:
            return
        if self.step % self.online.watch_every and self.step != self.total:
            return
        if self.processes.main and log is not None:
            with self.exported_weights():
                report = self.monitor.evaluate(f"round-{self.step:04d}")
                if self.step and self.monitor.improved(report):
                    self.export(self.folder / "best")
            log.write(self.step, {"watch": report})
            log.image(self.step, self.folder / "watch" / f"round-{self.step:04d}.png")
            if self.stop_rule.update(report["gain"], report["reward_gain"]):
                self.stopped = f"the watched scores have fallen by {-report['gain']:.2f} std while the reward rose"
        self.stopped = self.processes.group.broadcast(self.stopped)

    # -- checkpoints ----------------------------------------------------------------------------------------------
    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        values = {"statistics": self.statistics.state(), "stopped": self.stopped, "below": self.stop_rule.below}
        values["watch"] = [self.monitor.first, self.monitor.best] if self.monitor is not None else None
        moves = self.online.refresh or hasattr(self.objective, "kept")
        reference = self.policy.snapshot if moves else None
        return values, {"reference": reference, "ema": self.average.weights if self.average is not None else None}

    def load_state(self, state: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
        if tensors["reference"] is not None:
            self.policy.snapshot = [tensor.to(self.processes.device) for tensor in tensors["reference"]]
        if self.average is not None:
            self.average.load(tensors["ema"])
        self.statistics.load(state["statistics"])
        self.stopped, self.stop_rule.below = state["stopped"], state["below"]
        if self.monitor is not None and state["watch"] is not None:
            self.monitor.first, best = state["watch"]
            self.monitor.best = -np.inf if best is None else best

    def run(self, limit: int | None = None) -> dict[str, float]:
        try:
            super().run(limit)
        finally:
            self.worker.close()
            self.scorer_set.close()
        if self.stopped:
            output.warn(
                f"train {self.folder.name}: stopped after round {self.step}: {self.stopped}. The best policy is in "
                "best/."
            )
        return self.metrics
