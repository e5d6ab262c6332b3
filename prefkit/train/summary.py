"""Start-up tables: the settings and sizes of a training run, printed to stderr before the first step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefkit import output
from prefkit.config import Online, Train
from prefkit.train import precision
from prefkit.train.policy import Policy
from prefkit.train.setup import Setup


def show(setup: Setup, name: str, validation: int, elements: int) -> dict[str, Any]:
    """Print the table of an offline training run and return the rows.

    validation: number of held-out pairs; elements: number of latent elements of one image.
    """
    config, objective, pairs, processes = setup.config, setup.objective, len(setup.data.pairs), setup.processes.count
    batch = config.batch_size * config.accumulation * processes
    # the beta of nft does not scale errors
    beta = None if hasattr(objective, "kept") else getattr(objective.options, "beta", None)
    rows: dict[str, Any] = {
        "training": name,
        "objective": config.objective.use,
        f"{objective.shape}s": pairs,
        "validation pairs": validation,
        "batch": f"{batch} = {config.batch_size} x {config.accumulation} accumulated x {processes} processes",
        "steps": f"{config.steps} = {config.steps * batch / pairs:.3g} epochs",
        "trainable parameters": _trainable(setup.policy),
        "learning rate": f"{config.learning_rate:g}, {config.schedule}, {config.warmup} steps of warm-up",
        "optimizer": config.optimizer,
        "precision": precision.SHOWN.get(config.precision, config.precision),
        **text_encoder_rows(config, setup),
        **setup.network,
        "reference": _reference(setup.policy, objective),
    }
    if beta is not None:
        rows["beta"] = (
            f"{beta:g} on mean errors = {beta / elements:.3g} on summed errors ({elements:,} latent elements)"
        )
    rows["expected time"] = "measured after step 3"
    return _print(rows)


def text_encoder_rows(config: Train, setup: Setup) -> dict[str, str]:
    """Return the row about text encoders that are trained, and about those that are not; {} if none is trained."""
    trained, lora = setup.policy.text_encoders, config.lora
    if not trained or lora is None:
        return {}
    rate = lora.text_encoder_learning_rate
    text = f"{' and '.join(trained)}, learning rate {config.learning_rate if rate is None else rate:g}"
    names = [name for name in setup.family.pipe.components if name.startswith("text_encoder") and name not in trained]
    others = [name for name in names if getattr(setup.family.pipe, name) is not None]
    return {"text encoders trained": f"{text}; frozen: {', '.join(others)}" if others else text}


def show_online(
    name: str, config: Train, online: Online, objective: Any, model: Mapping[str, Any], processes: int
) -> dict[str, Any]:
    """Print the table of an online training run, with the batch arithmetic, and return the rows.

    model: rows about the loaded model (see `online_model_rows`), including `sample_batch`.
    """
    total, size, sampled = online.requests * online.samples, config.batch_size, model["sample_batch"]
    if objective.shape == "step":
        update, micro = f"about {total / online.updates:g} samples each", f"{size} samples at one step each"
    elif objective.shape == "step_pair":
        update, micro = "the round's pairs divided evenly", f"{size} pairs at one step each"
    else:
        count, scored = size * config.accumulation * processes, getattr(objective, "needs_advantage", False)
        units = "pairs" if not scored else "samples" if objective.shape == "single" else "groups"
        arithmetic = f"{size} x {config.accumulation} accumulated x {processes} processes"
        update, micro = f"{count} of the round's {units} each ({arithmetic})", f"{size} {units}"
    rows: dict[str, Any] = {
        "training": name,
        "objective": config.objective.use,
        "rewards": ", ".join(f"{weight:g} {alias}" for alias, weight in online.rewards.items()),
        "samples per round": f"{total} = {online.requests} requests x {online.samples} each, on {processes} processes",
        "samples in all": f"{total * online.rounds:,} = {online.rounds} rounds",
        "updates per round": f"{online.updates * online.epochs} = {online.updates} x {online.epochs} passes, {update}",
        "micro-batch": f"{micro} (sampling: {sampled} samples)",
        **{key: value for key, value in model.items() if key != "sample_batch"},
    }
    if objective.shape == "step" or getattr(objective, "needs_advantage", False):
        rows["advantages"] = f"{online.statistics}, clipped at {online.advantage_clip:g}"
    rows["learning rate"] = f"{config.learning_rate:g}, {config.schedule}, {config.warmup} updates of warm-up"
    rows["precision"] = precision.SHOWN.get(config.precision, config.precision)
    _print(rows)
    if config.precision != "no" and sampled != size:
        output.warn(
            f"sampling uses batches of {sampled}, but training uses batches of {size}; in {config.precision}, rounding "
            "may depend on the size. Set online.sample_batch to train.batch_size if log-probabilities drift."
        )
    return rows


def online_model_rows(
    config: Train, objective: Any, policy: Policy, steps: int, noise: str, requests: tuple[int, int]
) -> dict[str, Any]:
    """Return the rows about the loaded model for `show_online`.

    steps: number of sampling steps; requests: number of requests (trained on, watched).
    """
    online = config.online or Online()
    rows: dict[str, Any] = {"sample_batch": online.sample_batch or config.batch_size}
    if objective.shape.startswith("step"):
        window = min(online.window or steps, steps)
        trained = max(1, int(window * online.timestep_fraction))
        rows["steps"] = f"{steps}, {window} of them stochastic, at most {trained} used for learning"
        rows["noise"] = noise
    else:
        rows["steps"] = f"{steps}, with the generator's own sampler"
    rows["trainable parameters"] = _trainable(policy)
    reference = f"refreshed every {online.refresh} rounds" if online.refresh else "the initial model"
    if hasattr(objective, "kept"):
        reference = "the sampling policy, which follows the trained one"
    rows["reference"] = "none" if objective.reference == "none" else reference
    rows["requests"] = f"{requests[0]} trained on, {requests[1]} watched"
    return rows


def _print(rows: dict[str, Any]) -> dict[str, Any]:
    output.note(output.table([{"": key, " ": value} for key, value in rows.items()]))
    return rows


def _trainable(policy: Policy) -> str:
    count = sum(parameter.numel() for parameter in policy.parameters())
    return f"{count:,} ({'LoRA' if policy.lora is not None else 'full weights'})"


def _reference(policy: Policy, objective: Any) -> str:
    if objective.reference == "none":
        return "none"
    if objective.reference == "ema":
        return f"a moving average of the policy with decay {objective.decay:g}"
    if policy.lora is None:
        return "a frozen copy of the initial weights"
    return f"the same network with only {', '.join(policy.start)}" if policy.start else "the same network, adapter off"
