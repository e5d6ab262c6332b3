"""Errors raised when a training step fails. They name the cause, the last checkpoint and the settings to change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from prefkit.errors import TrainingError, out_of_memory
from prefkit.train import checkpoint


def not_finite(trainer: Any, quantity: str) -> TrainingError:
    """Return the error for a loss or gradient that is NaN or infinite. quantity: "the loss" | "the gradient"."""
    folder = trainer.folder / "checkpoints"
    step = checkpoint.last_step(folder)
    last = f"The checkpoint of step {step} is kept, in {folder}" if step else "No checkpoint exists yet"
    return TrainingError(
        f"train {trainer.folder.name}: {quantity} of step {trainer.step + 1} is not finite (NaN or infinity), so "
        f"training has stopped. {_pair_rows(trainer)}{last}. Try a smaller learning_rate, more warmup, a smaller beta, "
        f"or precision `bf16` or `no` instead of `fp16`{', under a new name in the recipe' if step else ''}; or check "
        "the pairs for broken latents."
    )


def _pair_rows(trainer: Any) -> str:
    """Return a sentence that lists the pair rows with a non-finite loss or, if there are none, all rows of the step."""
    rows: list[tuple[int, bool]] = []
    for groups, losses in trainer.step_losses:
        rows += zip((group.row for group in groups), losses.isfinite().tolist(), strict=True)
    broken = [str(row) for row, finite in rows if not finite]
    named = broken or [str(row) for row, _ in rows]
    if not named:
        return ""
    more = f" and {len(named) - 10} more" if len(named) > 10 else ""
    listed = f"pair row{'s' * (len(named) > 1)} {', '.join(named[:10])}{more}"
    return f"The loss is not finite for {listed}. " if broken else f"The step consisted of {listed}. "


@contextmanager
def _on_out_of_memory(make_error: Callable[[], TrainingError]) -> Iterator[None]:
    """Context that turns the out-of-memory error of any device into the error that `make_error` returns."""
    try:
        yield
    except Exception as error:
        if out_of_memory(error):
            raise make_error() from error
        raise


def explain_out_of_memory(name: str, device: Any, doing: str, remedy: str) -> AbstractContextManager[None]:
    """Return a context that turns out-of-memory errors into a TrainingError with what ran (`doing`) and the remedy."""
    return _on_out_of_memory(lambda: TrainingError(f"train {name}: {device} ran out of memory {doing}. {remedy}"))


def explain_step_out_of_memory(trainer: Any, where: Callable[[], str]) -> AbstractContextManager[None]:
    """Return a context that turns out-of-memory errors into a TrainingError that names the settings to change.

    where: function that returns the name of the running part of training, such as "step 7".
    """
    return _on_out_of_memory(lambda: _too_large(trainer, where()))


def _too_large(trainer: Any, where: str) -> TrainingError:
    """Return the out-of-memory error, which lists the settings to change, cheapest first."""
    config, ways = trainer.config, []
    if config.batch_size > 1:
        divisor = next(n for n in range(2, config.batch_size + 1) if config.batch_size % n == 0)
        smaller, more = config.batch_size // divisor, divisor * config.accumulation
        # objectives on denoising steps ignore accumulation: an update uses a fraction of the round
        on_steps = trainer.objective.shape.startswith("step")
        split = f"batch_size {smaller}" + ("" if on_steps else f" with accumulation {more}")
        ways.append(f"{split} (1/{divisor} of the activation memory, same result)")
    if not getattr(trainer.policy.net, "is_gradient_checkpointing", False):
        ways.append("gradient_checkpointing: true (keeps activations of one block at a time; about a third slower)")
    if config.precision == "no":
        ways.append("precision: bf16 (halves the memory of activations and, with LoRA, of frozen weights)")
    if config.lora is None:
        ways.append("lora: {rank: 16} (no gradients or optimizer states for the full weights, and no second network)")
    step = checkpoint.last_step(trainer.folder / "checkpoints")
    return TrainingError(
        f"train {trainer.folder.name}: {trainer.processes.device} ran out of memory in {where}. "
        f"{'Try, in this order: ' + '; '.join(ways) if ways else 'Try smaller images or a smaller lora.rank'}. "
        f"{f'The checkpoint of step {step} is kept.' if step else 'No checkpoint exists yet.'}"
    )
