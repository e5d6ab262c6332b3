"""The offline loop: pairs in, trained weights in the policy's network. Exact resume, any number of processes.

Every global batch is a fixed set of (pair, visit), whatever the split into processes and micro-batches; each pair
weighs 1 / global batch, and gradients are summed. All randomness is a function of counters, so a checkpoint holds none.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prefkit import interrupts, output
from prefkit.config import Train
from prefkit.distributed import Processes
from prefkit.store.tensors import save_tensors
from prefkit.train import checkpoint, optimizers
from prefkit.train import diagnose as failures
from prefkit.train import fsdp as sharding
from prefkit.train.data.batches import Batch, PairData, order
from prefkit.train.data.prompt_cache import prefetch
from prefkit.train.data.reference_cache import ReferenceErrorCache
from prefkit.train.monitor.early_stop import EarlyStopping, check_weights, remove_stale
from prefkit.train.monitor.metrics import Log, WinnerRegressionWarning, finite
from prefkit.train.monitor.validation import Validation
from prefkit.train.objectives._contract import loss_of
from prefkit.train.policy import Policy, errors_of
from prefkit.types import Errors, digest

if TYPE_CHECKING:
    from prefkit.train.monitor.sample_eval import SampleEvaluation

AUTOCAST = {"no": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
SCHEDULES = ("constant", "cosine", "linear")
SKIPPED = 50  # steps in a row that fp16 may leave out: its scale halves at each, so this many are no overflow


@dataclass
class Trainer:
    """Everything that the loop works with. folder: train/<name>."""

    config: Train
    family: Any
    objective: Any
    policy: Policy
    data: PairData
    validation: Validation | None
    processes: Processes
    folder: Path
    kept: ReferenceErrorCache | None = None
    looks: SampleEvaluation | None = None
    #: how the steps are computed, for the start-up table
    computed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config = self.config
        self.optimizer = optimizers.make(config, self.policy.parameters(), self.processes.device.type)
        scaled = config.precision == "fp16"  # beta already makes gradients large: start low, the scaler grows by itself
        self.scaler = torch.amp.GradScaler(self.processes.device.type, init_scale=256.0, enabled=scaled)
        self.watch = WinnerRegressionWarning()
        self.stopping = EarlyStopping(config.patience, self.folder) if config.patience else None
        self.step = self.skipped = self.skipped_in_a_row = 0
        self.shown: dict[str, float] = {}  # of the last step
        self.seen: list[
            tuple[list[Any], Tensor]
        ] = []  # groups and losses of the step in hand, for the message of a failure

    @property
    def done(self) -> bool:
        ended = (self.stopping is not None and self.stopping.over) or (self.looks is not None and self.looks.stopped)
        return self.step >= self.config.steps or bool(ended)

    @property
    def global_batch(self) -> int:
        return self.config.batch_size * self.config.accumulation * self.processes.count

    # -- one step -------------------------------------------------------------------------------------------------
    def batch_indices(self, step: int) -> list[list[tuple[Any, int]]]:
        """(group, visit)s of this process's micro-batches of a step (0-based)."""
        size, groups = self.config.batch_size, self.data.pairs
        found = []
        for micro in range(self.config.accumulation):
            first = step * self.global_batch + (micro * self.processes.count + self.processes.rank) * size
            places = [order(len(groups), self.config.seed, first + i) for i in range(size)]
            found.append([(groups[index], visit) for index, visit in places])
        return found

    def micro_batches(self, step: int) -> list[list[Batch]]:
        """The same, each as batches of one signature."""
        found = [list(self.data.batches(self.family, own)) for own in self.batch_indices(step)]
        if self.kept is not None:
            for batch in (batch for batches in found for batch in batches):
                self.kept.look_up(batch, self.data)
        if self.processes.device.type == "cuda":
            found = [[batch.pinned() for batch in batches] for batches in found]
        return found

    def residuals(self, net: Any, batch: Batch) -> dict[str, Tensor]:
        dtype = AUTOCAST[self.config.precision]
        precise = torch.autocast(self.processes.device.type, dtype) if dtype else nullcontext()
        with precise:
            return self.family.residuals(net, batch.latents, batch.draw, batch.condition)

    def losses(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss [G] with gradients, all heads added, and metrics [G] each."""
        keep = self.objective.needs_residual
        reference = self.reference_errors(batch)
        policy = self.residuals(self.policy.net, batch)
        total: Tensor | None = None
        metrics: dict[str, Tensor] = {}
        for head, residual in policy.items():
            own = errors_of(residual.float(), keep, batch.weight)
            loss, shown = loss_of(self.objective, len(batch.members), own, reference.get(head), batch.groups)
            total = loss if total is None else total + loss
            prefix = f"{head}/" if len(policy) > 1 else ""
            metrics |= {prefix + name: value for name, value in shown.items()}
        assert total is not None
        return total, metrics

    def reference_errors(self, batch: Batch) -> dict[str, Errors]:
        """By head, without gradients; none where the objective has no reference."""
        if self.objective.reference == "none":
            return {}
        if batch.reference is not None:
            return {head: Errors(mean) for head, mean in batch.reference.items()}
        moving = self.objective.reference == "ema"
        with torch.no_grad(), self.policy.moving() if moving else self.policy.reference() as net:
            residuals = self.residuals(net, batch)
            keep = self.objective.needs_residual
            errors = {head: errors_of(r.float(), keep, batch.weight) for head, r in residuals.items()}
        if self.kept is not None:
            self.kept.add(batch, {head: own.mean for head, own in errors.items()})
        return errors

    def accumulate(self, micro_batches: list[list[Batch]]) -> dict[str, float]:
        """Gradients of a whole step, summed over processes; returns the step's means over the global batch."""
        sums: dict[str, Tensor] = {}
        self.seen = []
        for number, batches in enumerate(micro_batches):
            if self.policy.lora is not None and self.policy.lora.dropout:
                key = digest(self.config.seed, self.step, number, self.processes.rank)
                torch.manual_seed(int(key[:12], 16))
            for batch, counts in sharding.even(batches, self.policy, self.processes):
                loss, metrics = self.losses(batch.to(self.processes.device))
                self.seen.append((batch.members, loss.detach()))
                self.scaler.scale(counts * loss.sum() / self.global_batch).backward()
                for name, value in {"loss": loss.detach(), **metrics}.items():
                    sums[name] = sums.get(name, torch.zeros((), device=value.device)) + counts * value.sum()
        names = list(sums)
        means = self.processes.sum(torch.stack([sums[name] for name in names])) / self.global_batch
        if not self.policy.sharded:
            self.processes.sum_gradients(self.policy.parameters())
        return dict(zip(names, means.tolist(), strict=True))

    def update(self, shown: dict[str, float]) -> dict[str, float]:
        """Clip, step, and what to log about it. Raises TrainingError where loss or gradients are not finite.

        With fp16, a step whose gradients overflowed is left out and counted.
        """
        if not math.isfinite(shown["loss"]):
            raise failures.not_finite(self, "the loss")
        rate = self.config.learning_rate * rate_factor(self.config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.max_grad_norm)
        norm = sharding.whole(norm).item()
        left_out = not math.isfinite(norm)
        self.skipped += left_out
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if left_out else 0
        if left_out and (not self.scaler.is_enabled() or self.skipped_in_a_row == SKIPPED):
            raise failures.not_finite(self, "the gradient")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if not left_out:
            self.policy.follow()
        if hasattr(self.objective, "observe"):
            self.objective.observe(over_heads(shown))
        if self.looks is not None:
            self.looks.observe(over_heads(shown), self.objective)
        counted = {"skipped": self.skipped} if self.scaler.is_enabled() else {}
        return shown | {"grad_norm": norm, "lr": rate, **counted}

    # -- the held-out pairs ---------------------------------------------------------------------------------------
    def measure(self, reference: bool) -> Tensor:
        """Errors of the held-out pairs at their fixed draws."""
        assert self.validation is not None
        with self.measuring(reference) as errors:
            if self.policy.sharded:  # all make the same forwards, and the main one's numbers count
                return self.processes.sum(self.validation.errors(errors, (0, 1)) * self.processes.main)
            share = (self.processes.rank, self.processes.count)
            return self.processes.sum(self.validation.errors(errors, share))

    @contextmanager
    def measuring(self, reference: bool) -> Iterator[Callable[[Batch], Tensor]]:
        """A function from a batch to its samples' errors, all heads added, without gradients."""
        context = self.policy.reference() if reference else nullcontext(self.policy.net)

        def errors(batch: Batch) -> Tensor:
            batch = batch.to(self.processes.device)
            found = self.residuals(net, batch)
            return torch.stack([errors_of(r.float(), False, batch.weight).mean for r in found.values()]).sum(0)

        with torch.no_grad(), context as net, silenced(self.policy):
            yield errors
        sharding.rest(self.policy)

    # -- checkpoints ----------------------------------------------------------------------------------------------
    def save(self) -> None:
        if self.kept is not None:
            self.kept.flush()
        optimizer: dict[str, Any] = {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        optimizer["average"] = self.policy.average
        weights, optimizer = sharding.whole((self.policy.state(), optimizer), self.processes.main)
        if self.processes.main:
            state = {"watch": self.watch.state(), "skipped": [self.skipped, self.skipped_in_a_row]}
            state["last"] = finite(self.shown)
            if self.stopping is not None:
                state["stopping"] = self.stopping.state()
            if self.looks is not None:
                state["looks"] = self.looks.state()
            if hasattr(self.objective, "state"):
                state["objective"] = self.objective.state()
            checkpoint.save(self.folder / "checkpoints", self.step, weights, optimizer, state)
            remove_stale(self.folder)
        self.processes.wait()

    def resume(self) -> None:
        """Go to the last checkpoint, if there is one."""
        found = checkpoint.load_last(self.folder / "checkpoints", self.processes, partial(check_weights, self.folder))
        if found is None:
            return
        weights, optimizer, state = found
        self.policy.load_state(sharding.spread(weights, self.policy.state()))
        states = sharding.spread_optimizer(optimizer["optimizer"], self.policy.parameters())
        self.optimizer.load_state_dict(states)
        self.scaler.load_state_dict(optimizer["scaler"])
        self.watch.load(state["watch"])
        self.skipped, self.skipped_in_a_row = state.get("skipped", (0, 0))
        self.policy.load_average(optimizer.get("average", []))
        if self.stopping is not None:
            self.stopping.load(state["stopping"])
        if self.looks is not None:
            self.looks.load(state["looks"])
        if "objective" in state:
            self.objective.load(state["objective"])
        self.step, self.shown = state["step"], state.get("last", {})

    # -- the loop -------------------------------------------------------------------------------------------------
    def run(self, limit: int | None = None) -> dict[str, float]:
        """Train up to config.steps, or `limit` steps further. Returns what was last logged; saves at the end."""
        with failures.in_step(self):
            return self._run(limit)

    def _run(self, limit: int | None) -> dict[str, float]:
        if self.validation is not None:
            self.validation.reference = self.measure(reference=True)
        self.resume()
        end = self.config.steps if limit is None else min(self.config.steps, self.step + limit)
        end = self.step if self.done else end
        log = Log(self.folder / "metrics.jsonl", self.step, self.config.report_to) if self.processes.main else None
        try:
            if self.step == 0:
                self._validate(log)
                self._look(log)
            self._steps(end, log)
        finally:
            if log is not None:
                log.close()
        return self.shown

    def _steps(self, end: int, log: Log | None) -> None:
        first, started = self.step, time.monotonic()
        label = f"train {self.folder.name}"
        with interrupts.after_the_step() as interrupted, output.Progress(label, max(end - first, 1)) as progress:
            for micro_batches in prefetch(self, range(first, end)):
                begun = time.monotonic()
                self.shown = self.update(self.accumulate(micro_batches))
                self.step += 1
                self._log(log, progress, self.shown, time.monotonic() - begun)
                if self.step == first + 3 and self.processes.main:
                    expected = (time.monotonic() - started) / 3 * (end - first)
                    output.note(f"{label}: about {output.duration(expected)} for {end - first} steps.")
                stop = bool(self.processes.sum(torch.tensor(float(interrupted.is_set()))) > 0)
                # measured before it is saved: whatever is lost in between is done again
                if self.step == self.config.steps or self.step % self.config.validate_every == 0:
                    self._validate(log)
                self._look(log)
                if stop or self.done or self.step == end or self.step % self.config.checkpoint_every == 0:
                    self.save()
                if stop:
                    raise KeyboardInterrupt
                if self.done:
                    break

    def _log(self, log: Log | None, progress: Any, shown: dict[str, float], seconds: float) -> None:
        if log is None:
            return
        log.write(self.step, shown | {"seconds": seconds, "pairs_seen": self.step * self.global_batch})
        over = over_heads(shown)
        progress.update(loss=shown["loss"], **{k: over[k] for k in ("implicit_accuracy",) if k in over})
        if "win_advantage" in over:
            self.watch.update(self.step, over["win_advantage"])

    def _validate(self, log: Log | None) -> None:
        if self.validation is None:
            return
        report = self.validation.report(self.measure(reference=False))
        if log is not None:
            log.write_validation(self.step, report)
        accuracy = report["implicit_accuracy"]
        if self.stopping is not None and self.stopping.update(self.step, sum(accuracy) / len(accuracy)):
            best = sharding.whole(self.policy.state(), self.processes.main)
            if self.processes.main:
                save_tensors(self.stopping.path, best)

    def _look(self, log: Log | None) -> None:
        if self.looks is not None and self.looks.due(self.step):
            self.looks.evaluate(self, log)


def over_heads(shown: dict[str, float]) -> dict[str, float]:
    """Metrics of several heads (head/name) averaged to one per name."""
    found: dict[str, list[float]] = {}
    for name, value in shown.items():
        found.setdefault(name.rpartition("/")[2], []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}


def rate_factor(config: Train, step: int) -> float:
    """Learning rate at a step (0-based), as a share of the full one."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.schedule == "constant":
        return 1.0
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.5 * (1 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1 - done


@contextmanager
def silenced(policy: Policy) -> Iterator[None]:
    """Without dropout: measurements must repeat."""
    layers = [m for m in policy.net.modules() if isinstance(m, torch.nn.Dropout) and m.training]
    for layer in layers:
        layer.eval()
    try:
        yield
    finally:
        for layer in layers:
            layer.train()
