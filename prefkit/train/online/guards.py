"""What is checked before and while an online training runs: settings, batch arithmetic, drift."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prefkit import output
from prefkit.config import Online, Train
from prefkit.errors import TrainingError, UsageError
from prefkit.pair.normalise import NORMALISATIONS
from prefkit.train.online.advantages import KINDS, RELATIVE

STEADY = 12  # groups below this collapsed in Flow-GRPO's ablation (arXiv 2505.05470)
MOST_SAMPLES = 1_000_000  # a round's images are kept until it is learned from
LEAST = {
    0: ("window", "window_every", "refresh", "watch_requests", "watch_every", "keep_rounds", "stop_drop"),
    1: ("rounds", "requests", "samples", "updates", "epochs", "buffer", "minimum", "checkpoint_every"),
}


#: settings of a training on pairs that are there, and what stands for them online
OFFLINE = {
    "steps": "online.rounds says how long it trains",
    "validation": "there are no pairs to hold out; online.watch measures on requests that are not trained on",
    "validate_every": "there are no held-out pairs; online.watch_every is the one online",
    "checkpoint_every": "online.checkpoint_every counts rounds",
    "watch_requests": "online.watch_requests is the one online",
    "watch_every": "online.watch_every counts rounds",
    "stop_drop": "online.stop_drop is the one online",
}
#: and what an objective on the steps of a chain does not read beside
ON_PAIRS = {
    "time_sampling": "it learns from the steps that were sampled",
    "guidance": "it trains at the guidance of its generator",
}


def check(name: str, config: Train, online: Online, objective: Any) -> None:
    """Raises UsageError, before anything is loaded; warns of small groups, and of a warm-up that never ends."""
    where = f"train.{name}.online"
    _check_unread(name, config, objective)
    if not online.rewards or not any(online.rewards.values()):
        raise UsageError(f"{where}.rewards is empty: give score aliases and their weights, as in rewards: {{size: 1}}.")
    for least, keys in LEAST.items():
        for key in keys:
            if getattr(online, key) < least:
                raise UsageError(f"{where}.{key} is {getattr(online, key)}: it must be at least {least}.")
    for key, known in (("statistics", KINDS), ("normalise", ("batch", *NORMALISATIONS))):
        if getattr(online, key) not in known:
            raise UsageError(f"{where}.{key}: {getattr(online, key)!r} is not known; choose {', '.join(known)}.")
    for key, low, high in (("timestep_fraction", 0, 1), ("ema", -1, 1), ("advantage_clip", 0, math.inf)):
        if not low < getattr(online, key) <= high or (key == "ema" and not 0 <= online.ema < 1):
            raise UsageError(f"{where}.{key} is {getattr(online, key):g}: that is out of its range.")
    if config.lora is not None and config.lora.dropout:
        raise UsageError(f"train.{name}.lora.dropout: sampling and training must see the same network; set it to 0.")
    if config.compile:
        raise UsageError(f"train.{name}.compile is for pairs that are there: online, sampling and training must round alike "
                         "(online.max_drift), and whether they do compiled was not tried. Leave it out.")  # fmt: skip
    if online.noise == "cps" and getattr(objective.options, "trust", None) == "guard":
        raise UsageError(f"{where}.noise: cps leaves the normaliser out of its log-probability, and trust: guard corrects "
                         "ratios of whole ones. Take another noise, or trust: clip or dppo.")  # fmt: skip
    _check_groups(where, config, online, objective)
    updates = online.rounds * online.updates * online.epochs
    if updates < config.warmup:
        output.warn(f"train.{name}.warmup is {config.warmup} updates and the training has {updates} ({online.rounds} rounds x "
                    f"{online.updates * online.epochs}), so it never reaches its learning_rate. Lower warmup.")  # fmt: skip


def _check_unread(name: str, config: Train, objective: Any) -> None:
    """Raises UsageError for a setting that would change nothing."""
    fresh = Train()
    unread = OFFLINE | (ON_PAIRS if objective.shape in ("step", "step_pair") else {})
    for key, why in unread.items():
        value = getattr(config, key)
        if value != getattr(fresh, key) and not (key == "validation" and value == 0):
            raise UsageError(
                f"train.{name}.{key} is {value}, and an online training does not read it: {why}. Leave it out."
            )
    if config.pairs:
        output.warn(f"train.{name}.pairs ({config.pairs}) is not read: an online training makes its own pairs.")


def _check_groups(where: str, config: Train, online: Online, objective: Any) -> None:
    paired = objective.shape != "step"
    relative = paired or online.statistics in RELATIVE or getattr(objective, "group_relative", False)
    if relative and online.samples < 2:
        raise UsageError(f"{where}.samples is {online.samples}: a group of one has nothing to be compared with; give 2 or "
                         f"more ({STEADY} or more is steady).")  # fmt: skip
    if relative and not paired and online.samples < STEADY:
        output.warn(f"{where}.samples is {online.samples}: groups below {STEADY} are noisy, and training may collapse.")
    total = online.requests * online.samples
    if total > MOST_SAMPLES:
        raise UsageError(f"{where}: {online.requests} requests x {online.samples} samples are {total:,} samples a round, and "
                         f"{MOST_SAMPLES:,} are the most. Lower one of them.")  # fmt: skip
    if objective.shape in ("step", "step_pair") and config.accumulation > 1:
        raise UsageError(f"{where.removesuffix('.online')}.accumulation is {config.accumulation}: here an update is a round's "
                         "samples divided by online.updates, whatever the micro-batch. Leave it out.")  # fmt: skip
    if not paired and online.updates > total:
        raise UsageError(f"{where}.updates is {online.updates}, but a round has {total} samples. Lower it.")


def table(
    name: str, config: Train, online: Online, objective: Any, facts: Mapping[str, Any], processes: int
) -> dict[str, Any]:
    """Print the whole batch arithmetic to stderr and return its rows. facts: what is known after loading."""
    total = online.requests * online.samples
    size = config.batch_size
    each = {
        "step": f"about {total / online.updates:g} samples each",
        "step_pair": "the round's pairs dealt out evenly",
    }.get(
        objective.shape,
        f"{size * config.accumulation * processes} of the round's pairs each "
        f"({size} x {config.accumulation} accumulated x {processes} processes)",
    )
    micro = {
        "step": f"{size} samples at one step each",
        "step_pair": f"{size} pairs at one step each",
    }.get(objective.shape, f"{size} pairs")
    rows: dict[str, Any] = {
        "training": name,
        "objective": config.objective.use,
        "rewards": ", ".join(f"{weight:g} {alias}" for alias, weight in online.rewards.items()),
        "samples per round": f"{total} = {online.requests} requests x {online.samples} each, on {processes} processes",
        "samples in all": f"{total * online.rounds:,} = {online.rounds} rounds",
        "updates per round": f"{online.updates * online.epochs} = {online.updates} x {online.epochs} passes, {each}",
        "micro-batch": f"{micro} (sampling: {facts['sample_batch']} samples)",
        **{key: value for key, value in facts.items() if key != "sample_batch"},
        **(
            {"advantages": f"{online.statistics}, held within {online.advantage_clip:g}"}
            if objective.shape == "step"
            else {}
        ),
        "learning rate": f"{config.learning_rate:g}, {config.schedule}, {config.warmup} updates of warm-up",
        "precision": config.precision,
    }
    output.note(output.table([{"": key, " ": value} for key, value in rows.items()]))
    if config.precision != "no" and facts["sample_batch"] != config.batch_size:
        output.warn(
            f"sampling takes {facts['sample_batch']} samples at once and training {config.batch_size}: in {config.precision} "
            "the two may round differently. Set online.sample_batch to train.batch_size if log-probabilities drift."
        )
    return rows


def check_drift(drift: float, limit: float, number: int, config: Train) -> None:
    """Raises TrainingError where training does not see what sampling saw, although nothing has been learned yet."""
    if not drift <= limit:
        raise TrainingError(
            f"round {number}: before the first update the log-probabilities of training differ from those of sampling by "
            f"{drift:.2g} (mean over elements), more than online.max_drift {limit:g}, so ratios would be wrong. The usual "
            f"causes: precision ({config.precision}; try no, or fp16 instead of bf16), another batch shape (set "
            "online.sample_batch to train.batch_size), or a guidance or dropout that differs between the passes."
        )


def check_failures(values: np.ndarray, limit: float, errors: Sequence[str], number: int) -> int:
    """How many rewards are missing. Raises TrainingError where that is more than the share `limit`, or all."""
    failed = int(np.isnan(values).sum())
    if failed > limit * len(values) or failed == len(values):
        raise TrainingError(
            f"round {number}: {failed} of {len(values)} rewards are missing, more than online.max_failed {limit:g} allows. "
            f"The first: {errors[0] if errors else 'no reason given'}. Fix this and run it again: it goes on at the "
            "round's start."
        )
    return failed
