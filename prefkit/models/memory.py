"""Recover from out-of-memory errors: free memory and continue with half the batch size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from prefkit.errors import TrainingError
from prefkit.errors import out_of_memory as out_of_memory  # re-exported for callers that import it from this module
from prefkit.output import warn

A = TypeVar("A")
B = TypeVar("B")


def free_memory() -> None:
    """Free unused CPU and GPU memory. Do not call this inside `except`, where the traceback keeps tensors alive."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


class AdaptiveBatchSize:
    """A batch size that is halved whenever the device runs out of memory. Warns once.

    most: initial size (None: all items). who: the program part that runs the batch, for messages. hint: end of the
    warning. remedy: advice if even a single item does not fit; without advice, the original error is raised.
    """

    def __init__(self, most: int | None = None, who: str = "the scorer", hint: str = "", remedy: str = "") -> None:
        self.most, self.who, self.remedy, self.warned = most, who, remedy, False
        self.hint = hint or "; a smaller batch_size avoids the failed attempts"

    def halve(self, size: int) -> None:
        self.most = size // 2
        if not self.warned:
            warn(
                f"{self.who}: out of memory with {size} images at once. Continuing with {self.most}, and fewer if "
                f"necessary{self.hint}."
            )
        self.warned = True

    def each(self, items: Sequence[A], work: Callable[[Sequence[A]], Sequence[B]]) -> list[B]:
        """Return one result per item, from batches of at most `most`. Raises TrainingError if one item does not fit."""
        results: list[B] = []
        while len(results) < len(items):
            size = min(self.most or len(items), len(items) - len(results))
            batch = self._try(items[len(results) : len(results) + size], work)
            if batch is not None:
                results += batch
                continue
            self.halve(size)
            free_memory()
        return results

    def _try(self, items: Sequence[A], work: Callable[[Sequence[A]], Sequence[B]]) -> Sequence[B] | None:
        try:
            return work(items)
        except Exception as error:
            if not out_of_memory(error) or (len(items) == 1 and not self.remedy):
                raise
            if len(items) == 1:
                reason = " ".join(str(error).split())[:200]
                raise TrainingError(
                    f"{self.who}: out of memory even with a single image ({reason}). {self.remedy}"
                ) from error
        return None
