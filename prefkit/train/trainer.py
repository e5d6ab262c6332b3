"""The training loop that offline and online training share, and the offline trainer, which learns from pairs.

A global batch contains the same (pair, visit) entries for any split into processes and micro-batches. Each pair's loss
is divided by the size of the global batch, and gradients are summed. Random draws depend only on seeds and counters, so
checkpoints hold no random state.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prefkit import interrupts, output
from prefkit.config import Train
from prefkit.distributed.collectives import Processes
from prefkit.store.tensors import save_tensors
from prefkit.train import checkpoint, diagnose, fsdp, precision
from prefkit.train.data.batches import Batch, order
from prefkit.train.data.prompt_cache import prefetch
from prefkit.train.data.text_encoding import encoded
from prefkit.train.monitor import early_stop
from prefkit.train.monitor.metrics import Log, WinnerRegressionWarning, finite
from prefkit.train.objectives._contract import loss_of
from prefkit.train.optimizers import GradientSum, PolicyOptimizer
from prefkit.train.policy import MovingAverage, Policy, errors_of, without_dropout
from prefkit.types import Errors, digest

if TYPE_CHECKING:
    from prefkit.train.setup import Setup


class TrainingLoop:
    """The training loop: logging, progress, interruption, checkpoints, exact resume.

    unit: "step" | "round"; step: number of finished units, out of `total`. metrics: metrics of the last unit; shown:
    names of the metrics on the progress bar.
    """

    unit: str
    shown: tuple[str, ...]
    total: int
    checkpoint_every: int
    config: Train
    folder: Path
    processes: Processes
    policy: Policy
    objective: Any
    optimizer: PolicyOptimizer
    step: int
    metrics: dict[str, float]

    @property
    def done(self) -> bool:
        raise NotImplementedError

    def prepare(self) -> None:
        """Do what must be done before the last checkpoint is loaded."""

    def work(self, end: int) -> Iterator[tuple[dict[str, float], dict[str, float]]]:
        """Train from `step` to `end`; yield (metrics, other values to log) for each step or round."""
        raise NotImplementedError

    def evaluate(self, log: Log | None) -> None:
        """Make the measurements that are due at `step`, and decide whether to stop."""
        raise NotImplementedError

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return (JSON values, tensors) that a checkpoint stores besides policy, optimizer and objective."""
        raise NotImplementedError

    def load_state(self, state: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
        raise NotImplementedError

    # -- the loop -------------------------------------------------------------------------------------------------
    def run(self, limit: int | None = None) -> dict[str, float]:
        """Train up to `total`, or for at most `limit` more units; save at the end and return the last metrics.

        Raises KeyboardInterrupt on SIGINT or SIGTERM, once the current step or round is done and saved.
        """
        with diagnose.explain_step_out_of_memory(self, lambda: f"{self.unit} {self.step + 1}"):
            self.prepare()
            self.resume()
            end = self.total if limit is None else min(self.total, self.step + limit)
            log = Log(self.folder / "metrics.jsonl", self.step, self.config) if self.processes.main else None
            try:
                if self.step == 0:
                    self.evaluate(log)
                if not self.done:
                    self._loop(end, log)
            finally:
                if log is not None:
                    log.close()
        return self.metrics

    def _loop(self, end: int, log: Log | None) -> None:
        bar = output.Progress(f"train {self.folder.name}", max(end - self.step, 1))
        with interrupts.after_the_step() as interrupted, bar as progress:
            for metrics, further in self.work(end):
                self.metrics, self.step = metrics, self.step + 1
                if log is not None:
                    log.write(self.step, metrics | further)
                    means: dict[str, Any] = over_heads(metrics)
                    progress.update(**{name: means[name] for name in self.shown if name in means})
                # evaluate before saving, so that after a crash in between, work and evaluation are both repeated
                self.evaluate(log)
                stop = bool(self.processes.sum(torch.tensor(float(interrupted.is_set()))) > 0)
                if stop or self.done or self.step == end or self.step % self.checkpoint_every == 0:
                    self.save()
                if stop:
                    raise KeyboardInterrupt
                if self.done:
                    break

    # -- checkpoints ----------------------------------------------------------------------------------------------
    def save(self) -> None:
        values, tensors = self.state()
        weights, tensors = fsdp.full((self.policy.state(), self.optimizer.state() | tensors), self.processes.main)
        if self.processes.main:
            values["last"] = finite(self.metrics)
            if hasattr(self.objective, "state"):
                values["objective"] = self.objective.state()
            checkpoint.save(self.folder / "checkpoints", self.step, weights, tensors, values)
        self.processes.wait()

    def resume(self) -> None:
        """Load the last checkpoint, if there is one."""
        check = partial(early_stop.check_weights, self.folder)
        loaded = checkpoint.load_last(self.folder / "checkpoints", self.processes, check)
        if loaded is None:
            return
        weights, tensors, values = loaded
        self.policy.load_state(fsdp.shard_state(weights, self.policy.state()))
        self.optimizer.load(tensors)
        if "objective" in values:
            self.objective.load(values["objective"])
        self.step, self.metrics = values["step"], values["last"]
        self.load_state(values, tensors)


class Trainer(TrainingLoop):
    """The offline trainer."""

    unit, shown = "step", ("loss", "implicit_accuracy")

    def __init__(self, setup: Setup) -> None:
        self.config, self.folder, self.processes = setup.config, setup.folder, setup.processes
        self.family, self.objective, self.policy = setup.family, setup.objective, setup.policy
        self.data, self.validation = setup.data, setup.validation
        self.reference_cache, self.sample_evaluation = setup.reference_cache, setup.sample_evaluation
        self.total, self.checkpoint_every = self.config.steps, self.config.checkpoint_every
        if self.objective.reference == "ema":
            self.policy.average = MovingAverage(self.policy.parameters(), self.objective.decay)
        self.optimizer = PolicyOptimizer(self.config, self.policy, self.processes)
        self.average = MovingAverage(self.policy.parameters(), self.config.ema) if self.config.ema else None
        overlapped = self.processes.count > 1 and self.policy.lora is None and not self.policy.sharded
        self.gradient_sum = GradientSum(self.policy.parameters(), self.processes) if overlapped else None
        self.winner_warning = WinnerRegressionWarning()
        patience = self.config.patience
        self.early_stopping = early_stop.EarlyStopping(patience, self.folder) if patience else None
        self.step, self.metrics = 0, {}
        self.step_losses: list[tuple[list[Any], Tensor]] = []  # groups and losses of this step, for error messages

    @property
    def done(self) -> bool:
        ended = self.early_stopping is not None and self.early_stopping.over
        stopped = self.sample_evaluation is not None and self.sample_evaluation.stopped
        return self.step >= self.total or ended or bool(stopped)

    @property
    def global_batch(self) -> int:
        return self.config.batch_size * self.config.accumulation * self.processes.count

    # -- one step -------------------------------------------------------------------------------------------------
    def batch_indices(self, step: int) -> list[list[tuple[Any, int]]]:
        """Return the (group, visit) entries of each of this process's micro-batches at a step (0-based)."""
        size, groups = self.config.batch_size, self.data.pairs
        batches = []
        for micro in range(self.config.accumulation):
            first = step * self.global_batch + (micro * self.processes.count + self.processes.rank) * size
            positions = [order(len(groups), self.config.seed, first + i) for i in range(size)]
            batches.append([(groups[index], visit) for index, visit in positions])
        return batches

    def micro_batches(self, step: int) -> list[list[Batch]]:
        """Return this process's micro-batches at a step, each split into batches of one condition signature."""
        micro_batches = [list(self.data.batches(self.family, indices)) for indices in self.batch_indices(step)]
        if self.reference_cache is not None:
            for batch in (batch for batches in micro_batches for batch in batches):
                self.reference_cache.look_up(batch, self.data)
        if self.processes.device.type == "cuda":
            micro_batches = [[batch.pinned() for batch in batches] for batches in micro_batches]
        return micro_batches

    def residuals(self, net: Any, batch: Batch) -> dict[str, Tensor]:
        condition = batch.condition
        if self.policy.changes_text():
            condition = encoded(self.family, self.data, batch)
        with precision.autocast(self.config, self.processes.device):
            return self.family.residuals(net, batch.latents, batch.draw, condition)

    def losses(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss [G], summed over heads and with gradients, and the metrics, each [G]."""
        reference = self.reference_errors(batch)
        residuals = self.residuals(self.policy.net, batch)
        total: Tensor | None = None
        metrics: dict[str, Tensor] = {}
        for head, residual in residuals.items():
            errors = errors_of(residual.float(), self.objective.needs_residual, batch.weight)
            if getattr(self.objective, "needs_clean", False):
                errors.clean = self.family.schedule.clean_factor(batch.draw.time)
            loss, values = loss_of(self.objective, len(batch.members), errors, reference.get(head), batch.groups)
            total = loss if total is None else total + loss
            prefix = f"{head}/" if len(residuals) > 1 else ""
            metrics |= {prefix + name: value for name, value in values.items()}
        assert total is not None
        return total, metrics

    def reference_errors(self, batch: Batch) -> dict[str, Errors]:
        """Return the reference's errors by head, without gradients; empty if the objective has no reference."""
        kind = self.objective.reference
        if kind == "none":
            return {}
        if batch.reference is not None:
            return {head: Errors(mean) for head, mean in batch.reference.items()}
        with torch.no_grad(), self.policy.moving_reference() if kind == "ema" else self.policy.reference() as net:
            residuals = self.residuals(net, batch)
            keep = self.objective.needs_residual
            errors = {head: errors_of(r.float(), keep, batch.weight) for head, r in residuals.items()}
        if self.reference_cache is not None:
            self.reference_cache.add(batch, {head: values.mean for head, values in errors.items()})
        return errors

    def accumulate(self, micro_batches: list[list[Batch]]) -> dict[str, float]:
        """Compute the gradients of a full step, summed over processes; return mean metrics of the global batch."""
        sums: dict[str, Tensor] = {}
        self.step_losses = []
        for number, batches in enumerate(micro_batches):
            if self.policy.lora is not None and self.policy.lora.dropout:
                key = digest(self.config.seed, self.step, number, self.processes.rank)
                torch.manual_seed(int(key[:12], 16))
            padded = list(fsdp.padded(batches, self.policy, self.processes))
            for place, (batch, counts) in enumerate(padded):
                loss, metrics = self.losses(batch.to(self.processes.device))
                self.step_losses.append((batch.members, loss.detach()))
                last = number + 1 == len(micro_batches) and place + 1 == len(padded)
                with self.gradient_sum.during() if self.gradient_sum and last else nullcontext():
                    self.optimizer.backward(counts * loss.sum() / self.global_batch)
                for name, value in {"loss": loss.detach(), **metrics}.items():
                    sums[name] = sums.get(name, torch.zeros((), device=value.device)) + counts * value.sum()
        if self.gradient_sum is not None:
            self.gradient_sum.finish()
        elif not self.policy.sharded:
            self.processes.sum_gradients(self.policy.parameters())
        means = self.processes.sum(torch.stack(list(sums.values()))) / self.global_batch
        return dict(zip(sums, means.tolist(), strict=True))

    def update(self, metrics: dict[str, float]) -> dict[str, float]:
        """Make the optimizer step and return all metrics. Raises TrainingError if loss or gradients are not finite.

        With fp16, a step whose gradients overflowed is skipped and counted.
        """
        if not math.isfinite(metrics["loss"]):
            raise diagnose.not_finite(self, "the loss")
        step = self.optimizer.step()
        if step is None:
            raise diagnose.not_finite(self, "the gradient")
        if self.average is not None:
            self.average.update()
        if hasattr(self.objective, "observe"):
            self.objective.observe(over_heads(metrics))
        if self.sample_evaluation is not None:
            self.sample_evaluation.observe(over_heads(metrics), self.objective)
        skipped = {"skipped": self.optimizer.skipped} if self.optimizer.scaler.is_enabled() else {}
        return metrics | step | skipped

    def work(self, end: int) -> Iterator[tuple[dict[str, float], dict[str, float]]]:
        first, started = self.step, time.monotonic()
        for micro_batches in prefetch(self, range(first, end)):
            begun = time.monotonic()
            metrics = self.update(self.accumulate(micro_batches))
            now = time.monotonic()
            done = self.step + 1
            if done == first + 3 and self.processes.main:
                expected = output.duration((now - started) / 3 * (end - first))
                output.note(f"train {self.folder.name}: about {expected} for {end - first} steps.")
            means = over_heads(metrics)
            if self.processes.main and "win_advantage" in means:
                self.winner_warning.update(done, means["win_advantage"])
            yield metrics, {"seconds": now - begun, "pairs_seen": done * self.global_batch}

    # -- held-out pairs and samples -------------------------------------------------------------------------------
    def prepare(self) -> None:
        if self.validation is not None:
            self.validation.reference = self.measure(reference=True)

    def measure(self, reference: bool) -> Tensor:
        """Return the errors of the policy, or of the reference, on the held-out pairs at fixed draws."""
        assert self.validation is not None
        with self.measuring(reference) as errors:
            if self.policy.sharded:  # all processes make the same passes, and rank 0's errors are used
                return self.processes.sum(self.validation.errors(errors, (0, 1)) * self.processes.main)
            return self.processes.sum(self.validation.errors(errors, (self.processes.rank, self.processes.count)))

    @contextmanager
    def measuring(self, reference: bool) -> Iterator[Callable[[Batch], Tensor]]:
        """Context that yields a function from a batch to its samples' errors, summed over heads."""
        context = self.policy.reference() if reference else nullcontext(self.policy.net)

        def errors(batch: Batch) -> Tensor:
            batch = batch.to(self.processes.device)
            residuals = self.residuals(net, batch).values()
            return torch.stack([errors_of(r.float(), False, batch.weight).mean for r in residuals]).sum(0)

        with torch.no_grad(), context as net, without_dropout(self.policy):
            yield errors
        fsdp.reshard(self.policy)

    def evaluate(self, log: Log | None) -> None:
        with self.exported_weights():
            self._evaluate(log)

    def exported_weights(self) -> AbstractContextManager[None]:
        """Return a context in which the network has the weights that are measured and exported (see train.ema)."""
        return self.policy.weights_replaced(self.average.weights) if self.average is not None else nullcontext()

    def _evaluate(self, log: Log | None) -> None:
        if self.validation is not None and (self.step == self.total or self.step % self.config.validate_every == 0):
            self._validate(log)
        if self.sample_evaluation is not None and self.sample_evaluation.due(self.step):
            self.sample_evaluation.evaluate(self, log)

    def _validate(self, log: Log | None) -> None:
        assert self.validation is not None
        report = self.validation.report(self.measure(reference=False))
        if log is not None:
            log.write_validation(self.step, report)
        accuracy = report["implicit_accuracy"]
        stopping = self.early_stopping
        if stopping is not None and stopping.update(self.step, sum(accuracy) / len(accuracy)):
            weights = fsdp.full(self.policy.state(), self.processes.main)
            if self.processes.main:
                save_tensors(stopping.path, weights)

    # -- checkpoints ----------------------------------------------------------------------------------------------
    def save(self) -> None:
        if self.reference_cache is not None:
            self.reference_cache.flush()
        super().save()
        if self.processes.main:
            early_stop.remove_stale(self.folder)

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        values: dict[str, Any] = {"watch": self.winner_warning.state()}
        if self.early_stopping is not None:
            values["stopping"] = self.early_stopping.state()
        if self.sample_evaluation is not None:
            values["looks"] = self.sample_evaluation.state()
        return values, {"ema": self.average.weights} if self.average is not None else {}

    def load_state(self, state: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
        self.winner_warning.load(state["watch"])
        if self.average is not None:
            self.average.load(tensors["ema"])
        if self.early_stopping is not None:
            self.early_stopping.load(state["stopping"])
        if self.sample_evaluation is not None and "looks" in state:
            self.sample_evaluation.load(state["looks"])


def over_heads(metrics: Mapping[str, float]) -> dict[str, float]:
    """Average metrics with keys head/name over the heads, and return them by name."""
    values: dict[str, list[float]] = {}
    for name, value in metrics.items():
        values.setdefault(name.rpartition("/")[2], []).append(value)
    return {name: sum(each) / len(each) for name, each in values.items()}
