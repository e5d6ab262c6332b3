"""The online loop: sample a round, score it beside the sampling, learn from it; exact resume at every round's start.

All randomness is a function of (seed, round, request, sample), so a checkpoint holds none, and a round that a kill cut
short is done again with the same numbers. Every process samples whole groups and learns from its own samples; updates
are means over all processes' samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prefkit import interrupts, output
from prefkit.config import Online, Train
from prefkit.models.memory import AdaptiveBatchSize
from prefkit.models.sample import Sampled
from prefkit.score.scorer_set import ScorerSet, Scores, values_of
from prefkit.train import checkpoint
from prefkit.train import diagnose as failures
from prefkit.train.data.masks import box_mask
from prefkit.train.monitor.metrics import Log, finite
from prefkit.train.monitor.sample_monitor import OUT_OF_MEMORY, SampleMonitor, SampleSpec, StopRule, candidate_of
from prefkit.train.online import guards
from prefkit.train.online.advantages import Statistics, flat_groups
from prefkit.train.online.rewards import BackgroundWorker, rewards, unanswered
from prefkit.train.online.rollout import Chains, Rollout
from prefkit.train.online.rounds import Kept, Round, asked_in, shares
from prefkit.train.online.updates import Updates
from prefkit.train.online.weights import Average, Refreshed, inside, packed, unpacked
from prefkit.train.online.window import stochastic
from prefkit.types import Candidate, Request


@dataclass
class OnlineTrainer:
    """Everything that the loop works with. folder: train/<name>; export: writes the policy as it is to a folder."""

    config: Train
    online: Online
    policy: Refreshed
    rollout: Rollout
    learner: Any
    jury: ScorerSet
    kept: Kept
    updates: Updates
    watch: SampleMonitor | None
    requests: list[Request]
    spec: dict[str, Any]
    folder: Path
    export: Callable[[Path], Any]
    number: int = 0
    stopped: str = ""
    statistics: Statistics = field(init=False)
    average: Average | None = field(init=False)

    def __post_init__(self) -> None:
        online = self.online
        self.statistics = Statistics(online.statistics, online.buffer, online.minimum)
        self.average = Average(self.policy, online.ema) if online.ema else None
        self.rule = StopRule(online.stop_drop)
        self.beside = BackgroundWorker()
        self.room = AdaptiveBatchSize(None, f"train {self.folder.name}, sampling", remedy=OUT_OF_MEMORY)
        self.processes = self.updates.processes
        self.shown: dict[str, float] = {}  # of the last round

    def tuned(self) -> Any:
        """with loop.tuned(): the weights that are exported and looked at."""
        return inside(self.policy, self.average.weights) if self.average is not None else nullcontext()

    # -- one round ------------------------------------------------------------------------------------------------
    def round(self, number: int) -> dict[str, float]:
        """Sample, score and learn; returns what to log."""
        begun = time.monotonic()
        online = self.online
        if online.refresh and number and number % online.refresh == 0:
            self.policy.refresh()
        asked = asked_in(number, self.requests, online.requests, online.samples, self.config.seed)
        round_ = Round(number, asked, shares(asked, online.samples, self.processes.rank, self.processes.count))
        if self.processes.main:
            self.kept.fresh(number)
            self.kept.begin(round_, self.spec)
        self.processes.wait()
        waiting = self._sample(round_)
        sampled = time.monotonic()
        scores = self._collect(round_, waiting)
        shown = self._reward(round_, scores)
        scored = time.monotonic()
        self.kept.write(round_, scores)
        self.processes.wait()
        shown |= self.learner.learn(round_, self._after_update)
        if self.processes.main:
            self.kept.forget(number)
        seconds = {"sampling": sampled - begun, "waiting for rewards": scored - sampled}
        return shown | {f"seconds/{k}": v for k, v in seconds.items()} | {"seconds/learning": time.monotonic() - scored}

    def _after_update(self) -> None:
        if self.average is not None:
            self.average.update()

    def _sample(self, round_: Round) -> list[tuple[list[list[Candidate]], Any]]:
        """Sample this process's share, handing whole groups to the scorers as they are done."""
        chains: list[Chains] = []
        waiting: list[tuple[list[list[Candidate]], Any]] = []
        size, group = self.online.sample_batch or self.config.batch_size, self.online.samples
        open_: list[Candidate] = []
        for start in range(0, len(round_.own), size):
            part = [round_.asked[i] for i in round_.own[start : start + size]]
            images = self.room.each(part, partial(self._batch, round_.number, chains))
            made = [candidate_of(self.spec, a, s, not self.learner.records) for a, s in zip(part, images, strict=True)]
            if not round_.candidates:
                self.jury.check(replace(made[0], image=made[0].image or b""))
            round_.candidates += made
            open_ += made
            whole = len(open_) // group * group
            if whole:
                groups = [open_[i : i + group] for i in range(0, whole, group)]
                waiting.append((groups, self.beside.submit(partial(self.jury.score, groups))))
                open_ = open_[whole:]
        round_.chains = Chains.joined(chains) if chains else None
        return waiting

    def _batch(self, number: int, chains: list[Chains], part: Sequence[SampleSpec]) -> list[Sampled]:
        """Samples; their chains are added to `chains`."""
        prompts, seeds = [a.request.prompt for a in part], [a.seed for a in part]
        if not self.learner.records:
            return self.rollout.sampler.sample(prompts, seeds)
        steps = self.rollout.sampler.call["num_inference_steps"]
        online = self.online
        active = np.stack(
            [
                stochastic(steps, online.window, online.window_every, self.config.seed, number, a.request.request_id)
                for a in part
            ]
        )
        images, taped = self.rollout.sample(prompts, seeds, torch.from_numpy(active))
        chains.append(taped)
        return images

    def _collect(self, round_: Round, waiting: list[tuple[list[list[Candidate]], Any]]) -> Scores:
        found: Scores = {alias: [] for alias in self.jury.scorers}
        for groups, future in waiting:
            scores = self.beside.result(future, self.online.reward_timeout)
            if scores is None:
                count = sum(map(len, groups))
                scores = unanswered(count, list(found), self.jury.current, self.online.reward_timeout)
            for alias, values in scores.items():
                found[alias] += values
        if self.online.mask is not None and round_.chains is not None:
            like = round_.chains.states[0, 0]
            for place, (i, score) in enumerate(zip(round_.own, found[self.online.mask], strict=True)):
                if round_.candidates[place].error is not None:
                    continue
                size = round_.candidates[place].pil().size
                round_.masks[i] = box_mask(score.aspects or {}, self.rollout.wiring, like, size)
        return found

    def _reward(self, round_: Round, scores: Scores) -> dict[str, float]:
        """Rewards and advantages of the whole round, the same in every process; returns what to log of them."""
        online, total = self.online, len(round_.asked)
        columns = {}
        for alias in self.jury.scorers:
            columns[alias] = self._of_all(values_of(scores, alias), round_.own, total)
        round_.scores = columns
        weights = {alias: weight for alias, weight in online.rewards.items() if weight}
        round_.rewards = rewards(columns, self.jury.signs(), weights, round_.groups, online.normalise)
        errors = [f"{a}: {s.error}" for a in weights for s in scores[a] if s.error]
        failed = guards.check_failures(round_.rewards, online.max_failed, errors, round_.number)
        round_.advantages = self.statistics.advantages(round_.requests, round_.rewards)
        known = round_.rewards[~np.isnan(round_.rewards)]
        shown = {"reward": float(known.mean()), "reward_deviation": float(known.std()), "failed": float(failed)}
        for alias in columns:
            shown[f"score/{alias}"] = float(np.nanmean(columns[alias])) if np.isfinite(columns[alias]).any() else np.nan
        shown["flat_groups"] = float(flat_groups(round_.requests, round_.rewards))
        return shown | {"queries": float((round_.number + 1) * total)}

    def _of_all(self, values: np.ndarray, own: list[int], total: int) -> np.ndarray:
        """[N] of all processes, from those of this one."""
        found, there = torch.zeros(total, dtype=torch.float64), torch.zeros(total, dtype=torch.float64)
        found[own], there[own] = torch.from_numpy(np.nan_to_num(values)), torch.from_numpy((~np.isnan(values)) * 1.0)
        found, there = self.processes.sum(found), self.processes.sum(there)
        return torch.where(there > 0, found, torch.nan).numpy()

    # -- looks at what is not trained on --------------------------------------------------------------------------
    def look(self, log: Log | None) -> None:
        """Look at the watched requests; keep the best, and decide whether to stop."""
        if self.watch is None or not self.online.watch_every:
            return
        if self.number % self.online.watch_every and self.number != self.online.rounds:
            return
        if self.processes.main and log is not None:
            with self.tuned():
                found = self.watch.evaluate(f"round-{self.number:04d}")
                if self.number and self.watch.improved(found):
                    self.export(self.folder / "best")
            log.write(self.number, {"watch": found})
            if self.rule.update(found["gain"], found["reward_gain"]):
                self.stopped = (
                    f"the watched scores have fallen by {-found['gain']:.2f} of their deviation while the reward rose"
                )
        self.stopped = self.processes.group.broadcast(self.stopped)

    # -- checkpoints ----------------------------------------------------------------------------------------------
    def save(self) -> None:
        if self.processes.main:
            parts = {"policy": self.policy.state()}
            if self.online.refresh:
                parts["reference"] = self.policy.kept
            if self.average is not None:
                parts["average"] = self.average.weights
            state = {
                "statistics": self.statistics.state(),
                "updates": self.updates.count,
                "stopped": self.stopped,
                "below": self.rule.below,
                "last": finite(self.shown),
                "watch": [self.watch.first, self.watch.best] if self.watch is not None else None,
            }
            if hasattr(self.learner.objective, "state"):
                state["objective"] = self.learner.objective.state()
            checkpoint.save(self.folder / "checkpoints", self.number, packed(parts), self.updates.state(), state)
        self.processes.wait()

    def resume(self) -> None:
        """Go to the last checkpoint, if there is one."""
        found = checkpoint.load_last(self.folder / "checkpoints", self.processes)
        if found is None:
            return
        weights, optimizer, state = found
        self.policy.load_state(unpacked(weights, "policy"))
        device = self.processes.device
        if self.online.refresh:
            self.policy.kept = {k: v.to(device) for k, v in unpacked(weights, "reference").items()}
        if self.average is not None:
            self.average.weights = {k: v.to(device) for k, v in unpacked(weights, "average").items()}
        self.statistics.load(state["statistics"])
        self.updates.load(optimizer, state["updates"])
        self.number, self.stopped, self.rule.below = state["step"], state["stopped"], state["below"]
        self.shown = state.get("last", {})
        if "objective" in state:
            self.learner.objective.load(state["objective"])
        if self.watch is not None and state["watch"] is not None:
            self.watch.first, best = state["watch"]
            self.watch.best = -np.inf if best is None else best

    # -- the loop -------------------------------------------------------------------------------------------------
    def run(self, limit: int | None = None) -> dict[str, float]:
        """Go on up to online.rounds, or `limit` rounds further. Returns what was last logged."""
        self.resume()
        end = self.online.rounds if limit is None else min(self.online.rounds, self.number + limit)
        log = Log(self.folder / "metrics.jsonl", self.number, self.config.report_to) if self.processes.main else None
        try:
            with failures.in_step(self, lambda: f"round {self.number + 1}"):
                self._rounds(end, log)
        finally:
            self.beside.close()
            self.jury.close()
            if log is not None:
                log.close()
        if self.stopped:
            output.warn(
                f"train {self.folder.name}: stopped after round {self.number}: {self.stopped}. The best look is in best/."
            )
        return self.shown

    def _rounds(self, end: int, log: Log | None) -> None:
        if self.number == 0:
            self.look(log)
            self.save()
        with (
            interrupts.after_the_step() as interrupted,
            output.Progress(f"train {self.folder.name}", max(end - self.number, 1)) as progress,
        ):
            while self.number < end and not self.stopped:
                self.shown = self.round(self.number)
                self.number += 1
                if log is not None:
                    log.write(self.number, self.shown)
                progress.update(reward=self.shown["reward"], queries=self.shown["queries"])
                self.look(log)
                stop = bool(self.processes.sum(torch.tensor(float(interrupted.is_set()))) > 0)
                if stop or self.stopped or self.number == end or self.number % self.online.checkpoint_every == 0:
                    self.save()
                if stop:
                    raise KeyboardInterrupt
