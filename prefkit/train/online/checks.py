"""Checks of an online training: its settings before anything is loaded, drift and missing rewards while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from prefkit import output
from prefkit.config import Online, Train, bounds
from prefkit.errors import TrainingError, UsageError
from prefkit.pair.normalise import NORMALISATIONS
from prefkit.train.online.advantages import KINDS, RELATIVE

STEADY = 12  # smaller groups collapsed in Flow-GRPO's ablation (arXiv 2505.05470)
MOST_SAMPLES = 1_000_000  # a round's images stay in memory until the round is learned from
#: settings of offline training -> the reason why online training does not read them
OFFLINE = {
    "steps": "online.rounds sets its length",
    "validation": "no pairs exist to hold out; online.watch measures on requests that are not trained on",
    "validate_every": "no pairs are held out; use online.watch_every",
    "checkpoint_every": "online.checkpoint_every counts rounds",
    "watch_requests": "use online.watch_requests",
    "watch_every": "online.watch_every counts rounds",
    "stop_drop": "use online.stop_drop",
}
#: the same for objectives on the steps of a chain
ON_PAIRS = {
    "time_sampling": "it learns from the steps that were sampled",
    "guidance": "it trains at the guidance of its generator",
}


def check_settings(name: str, config: Train, online: Online, objective: Any) -> None:
    """Raises UsageError, before anything is loaded; warns of small groups and of a warm-up that is too long."""
    where = f"train.{name}.online"
    _check_unread(name, config, objective)
    if not any(online.rewards.values()):
        raise UsageError(f"{where}.rewards is empty: give score names and their weights, as in rewards: {{size: 1}}.")
    bounds.check(online, where)
    for key, known in (("statistics", KINDS), ("normalise", ("batch", *NORMALISATIONS))):
        if getattr(online, key) not in known:
            raise UsageError(f"{where}.{key}: {getattr(online, key)!r} is unknown; choose {', '.join(known)}.")
    if online.timestep_fraction == 0 or online.ema == 1:
        raise UsageError(f"{where}: timestep_fraction must be above 0, and ema below 1.")
    if config.lora is not None and config.lora.dropout:
        raise UsageError(f"train.{name}.lora.dropout: sampling and training must see the same network; set it to 0.")
    if config.compile:
        raise UsageError(
            f"train.{name}.compile is for offline training: online, sampling and training must round alike "
            "(online.max_drift), which is untested for compiled networks. Remove it."
        )
    if online.noise == "cps" and getattr(objective.options, "trust", None) == "guard":
        raise UsageError(
            f"{where}.noise: the log-probability of cps has no normaliser, but trust: guard corrects ratios that have "
            "one. Use another noise, or trust: clip or dppo."
        )
    _check_groups(where, config, online, objective)
    updates = online.rounds * online.updates * online.epochs
    if updates < config.warmup:
        output.warn(
            f"train.{name}.warmup is {config.warmup} updates and the training has {updates} ({online.rounds} rounds x "
            f"{online.updates * online.epochs}), so it never reaches its learning_rate. Lower warmup."
        )


def _check_unread(name: str, config: Train, objective: Any) -> None:
    """Raises UsageError for a setting that would have no effect."""
    defaults = Train()
    unread = OFFLINE | (ON_PAIRS if objective.shape in ("step", "step_pair") else {})
    for key, reason in unread.items():
        value = getattr(config, key)
        if value != getattr(defaults, key) and not (key == "validation" and value == 0):
            raise UsageError(
                f"train.{name}.{key} is {value}, and an online training does not read it: {reason}. Remove the key."
            )
    if config.pairs:
        output.warn(f"train.{name}.pairs ({config.pairs}) has no effect: an online training makes its own pairs.")


def _check_groups(where: str, config: Train, online: Online, objective: Any) -> None:
    paired = objective.shape != "step"
    relative = paired or online.statistics in RELATIVE or getattr(objective, "group_relative", False)
    if relative and online.samples < 2:
        raise UsageError(
            f"{where}.samples is {online.samples}, but a group needs at least 2 samples to compare; set 2 or more "
            f"({STEADY} or more is steady)."
        )
    if relative and not paired and online.samples < STEADY:
        output.warn(f"{where}.samples is {online.samples}: groups below {STEADY} are noisy, and training may collapse.")
    total = online.requests * online.samples
    if total > MOST_SAMPLES:
        raise UsageError(
            f"{where}: {online.requests} requests x {online.samples} samples are {total:,} samples per round, more "
            f"than the limit of {MOST_SAMPLES:,}. Lower one of the two."
        )
    if objective.shape in ("step", "step_pair") and config.accumulation > 1:
        raise UsageError(
            f"{where.removesuffix('.online')}.accumulation is {config.accumulation}, but here an update has a round's "
            "samples divided by online.updates, whatever the micro-batch. Remove the key."
        )
    if not paired and online.updates > total:
        raise UsageError(f"{where}.updates is {online.updates}, but a round has {total} samples. Lower it.")


def check_drift(drift: float, limit: float, number: int, config: Train) -> None:
    """Raises TrainingError if log-probabilities differ between sampling and training before the first update."""
    if not drift <= limit:
        raise TrainingError(
            f"round {number}: before the first update the log-probabilities of training differ from those of sampling "
            f"by {drift:.2g} (mean over elements), more than online.max_drift {limit:g}, so ratios would be wrong. The "
            f"usual causes: precision ({config.precision}; try no, or fp16 instead of bf16), another batch shape (set "
            "online.sample_batch to train.batch_size), or a guidance or dropout that differs between the passes."
        )


def count_missing(values: np.ndarray, limit: float, errors: Sequence[str], number: int) -> int:
    """Count missing rewards. Raises TrainingError if more than the fraction `limit`, or all, are missing."""
    missing = int(np.isnan(values).sum())
    if missing > limit * len(values) or missing == len(values):
        raise TrainingError(
            f"round {number}: {missing} of {len(values)} rewards are missing, more than online.max_failed {limit:g} "
            f"allows. The first: {errors[0] if errors else 'no reason given'}. Fix the cause and run the same command: "
            "it resumes at the start of the round."
        )
    return missing
