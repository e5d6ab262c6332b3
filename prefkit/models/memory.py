"""Out of memory: told apart from other errors, freed, and answered with half of the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from prefkit.errors import TrainingError
from prefkit.errors import out_of_memory as out_of_memory  # for those who answer it with this module
from prefkit.output import warn

A = TypeVar("A")
B = TypeVar("B")


def free_memory() -> None:
    """Give back what broken tensors and torch's own store hold. Outside of `except`, whose traceback keeps tensors."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


class AdaptiveBatchSize:
    """How many items are worked on at once: halved for good, and said once, where the device has no room for them.

    most: to begin with (None: all); who: whose batch it is. hint: ends the warning. remedy: what helps where one item
    alone does not fit; without one, the error of that item is raised as it is.
    """

    def __init__(
        self, most: int | None = None, who: str = "the scorer", hint: str = "", remedy: str = "", what: str = "images"
    ) -> None:
        self.most, self.who, self.hint, self.remedy, self.what, self.said = most, who, hint, remedy, what, False

    def halve(self, size: int) -> None:
        self.most = size // 2
        if not self.said:
            self.said = True
            hint = self.hint or "; a smaller batch_size saves the tries"
            warn(
                f"{self.who}: out of memory with {size} {self.what} at once. Going on with {self.most}, and fewer if need be{hint}."
            )

    def each(self, items: Sequence[A], work: Callable[[Sequence[A]], Sequence[B]]) -> list[B]:
        """One result an item, from batches of at most `most`. Raises TrainingError where one item alone does not fit."""
        found: list[B] = []
        while len(found) < len(items):
            size = min(self.most or len(items), len(items) - len(found))
            part = items[len(found) : len(found) + size]
            done = self._tried(part, work)
            if done is None:
                self.halve(size)
                free_memory()
            else:
                found += done
        return found

    def _tried(self, part: Sequence[A], work: Callable[[Sequence[A]], Sequence[B]]) -> Sequence[B] | None:
        """None where there is no room and the batch can be halved."""
        try:
            return work(part)
        except Exception as error:
            if not out_of_memory(error):
                raise
            if len(part) == 1 and self.remedy:
                reason = " ".join(str(error).split())[:200]
                raise TrainingError(
                    f"{self.who}: out of memory with one of the {self.what} alone ({reason}). {self.remedy}"
                ) from error
            if len(part) == 1:
                raise
        return None


@contextmanager
def decoding(vae: Any, room: AdaptiveBatchSize) -> Iterator[None]:
    """Let `vae.decode` split its batch where there is no room for it: what led to the latents is not done again."""
    import torch

    from prefkit.models.capture.record import replaced

    decode = vae.decode

    def split(z: Any, *args: Any, **kwargs: Any) -> Any:
        if len(z) == 1 or kwargs.get("return_dict", True):
            return decode(z, *args, **kwargs)
        rows = room.each(z.split(1), lambda part: decode(torch.cat(list(part)), *args, **kwargs)[0].split(1))
        return (torch.cat(rows),)

    with replaced(vae, "decode", split):
        yield
