"""What is about to be trained, in numbers, before the first step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefkit import output
from prefkit.config import Train
from prefkit.train.policy import Policy


def show(
    config: Train,
    name: str,
    policy: Policy,
    objective: Any,
    pairs: int,
    validation: int,
    elements: int,
    processes: int,
    computed: Mapping[str, str],
) -> dict[str, Any]:
    """Print the start-up table to stderr and return its numbers. elements: latent elements of one image."""
    batch = config.batch_size * config.accumulation * processes
    count = sum(parameter.numel() for parameter in policy.parameters())
    beta = getattr(objective.options, "beta", None)
    rows: dict[str, Any] = {
        "training": name,
        "objective": config.objective.use,
        f"{objective.shape}s": pairs,
        "validation pairs": validation,
        "batch": f"{batch} = {config.batch_size} x {config.accumulation} accumulated x {processes} processes",
        "steps": f"{config.steps} = {config.steps * batch / pairs:.3g} epochs",
        "trainable parameters": f"{count:,} ({'LoRA' if policy.lora is not None else 'full weights'})",
        "learning rate": f"{config.learning_rate:g}, {config.schedule}, {config.warmup} steps of warm-up",
        "optimizer": config.optimizer,
        "precision": config.precision,
        **computed,
        "reference": _reference(policy, objective),
    }
    if beta is not None:
        rows["beta"] = (
            f"{beta:g} on mean errors = {beta / elements:.3g} on summed errors ({elements:,} latent elements)"
        )
    rows["expected time"] = "told after the third step"
    output.note(output.table([{"": key, " ": value} for key, value in rows.items()]))
    return rows


def _reference(policy: Policy, objective: Any) -> str:
    if objective.reference == "none":
        return "none"
    if objective.reference == "ema":
        return f"a moving average of what is trained, {objective.decay:g} of it kept at each step"
    if policy.lora is None:
        return "a frozen copy of the start"
    return f"the same network with {', '.join(policy.start)} alone" if policy.start else "the same network, adapter off"
