"""What a step that failed says: what went wrong, what is kept, and what to change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from prefkit.errors import TrainingError, out_of_memory
from prefkit.train import checkpoint


def not_finite(loop: Any, what: str) -> TrainingError:
    kept = checkpoint.last_step(loop.folder / "checkpoints")
    place = loop.folder / "checkpoints"
    last = f"The checkpoint of step {kept} is kept, in {place}" if kept else "There is no checkpoint yet"
    return TrainingError(
        f"train {loop.folder.name}: {what} of step {loop.step + 1} is not finite (NaN or infinity), so training has "
        f"stopped. {_blamed(loop)}{last}. Try a smaller learning_rate, more warmup, a smaller beta, or precision bf16 or no instead of "
        f"fp16{', under a new name' if kept else ''}; or look at the pairs for broken latents."
    )


def _blamed(loop: Any) -> str:
    """The rows of the pair dataset whose loss was not finite; without any, all those of the step."""
    rows = [(group.row, bad) for groups, loss in loop.seen
            for group, bad in zip(groups, (~loss.isfinite()).tolist(), strict=True)]  # fmt: skip
    broken = [str(row) for row, bad in rows if bad]
    named = broken or [str(row) for row, _ in rows]
    if not named:
        return ""
    more = f" and {len(named) - 10} more" if len(named) > 10 else ""
    which = f"pair row{'s' * (len(named) > 1)} {', '.join(named[:10])}{more}"
    return f"The loss is not finite for {which}. " if broken else f"The step was made of {which}. "


@contextmanager
def _answered(say: Callable[[], TrainingError]) -> Iterator[None]:
    """Raise what `say` returns where memory ran out, on any device."""
    try:
        yield
    except Exception as error:
        if out_of_memory(error):
            raise say() from error
        raise


def explained(name: str, device: Any, doing: str, remedy: str) -> AbstractContextManager[None]:
    """Say what ran out of memory, where nothing can be halved. Raises TrainingError."""
    return _answered(lambda: TrainingError(f"train {name}: {device} ran out of memory {doing}. {remedy}"))


def in_step(loop: Any, where: Callable[[], str] | None = None) -> AbstractContextManager[None]:
    """Say which settings of the training to change where memory ran out. where: what the loop was in, by default its step.

    Raises TrainingError.
    """
    return _answered(lambda: _too_large(loop, where() if where is not None else f"step {loop.step + 1}"))


def _too_large(loop: Any, where: str) -> TrainingError:
    """What to change, the cheapest first. With the batch split further the result stays the same."""
    config, ways = loop.config, []
    if config.batch_size > 1:
        least = next(n for n in range(2, config.batch_size + 1) if config.batch_size % n == 0)
        smaller, more = config.batch_size // least, least * config.accumulation
        ways.append(f"batch_size {smaller} with accumulation {more} (1/{least} of the activations, the same result)")
    if not getattr(loop.policy.net, "is_gradient_checkpointing", False):
        ways.append("gradient_checkpointing: true (activations of one block at a time, about a third slower)")
    if config.precision == "no":
        ways.append("precision: bf16 (half the activations and, with LoRA, half the frozen weights)")
    if config.lora is None:
        ways.append("lora: {rank: 16} (no gradients, optimizer states and second network of full weights)")
    kept = checkpoint.last_step(loop.folder / "checkpoints")
    return TrainingError(
        f"train {loop.folder.name}: {loop.processes.device} ran out of memory in {where}. "
        f"{'Try, in this order: ' + '; '.join(ways) if ways else 'Try smaller images or a smaller lora.rank'}. "
        f"{f'The checkpoint of step {kept} is kept.' if kept else 'There is no checkpoint yet.'}"
    )
