"""The errors that prefkit raises. Every message says what happened, where, and how to fix it.

PrefkitError                 exit code 1
├── UsageError               exit code 2: an invalid flag, recipe key or file
│   ├── RecipeError          the same, with file:line
│   └── NotYet               the result of an earlier stage is missing
├── StoreError               a run folder cannot be read or written
│   ├── DamagedError         a file's content differs from what was written
│   └── FingerprintError     the table on disk was made with other settings
├── CaptureError             the wiring of a pipeline could not be proven
├── ProcessError             another process of the launch failed or was killed
├── PluginError              a plug-in (scorer, strategy, objective, family, generator) broke its contract
├── TrainingError            a loss that is not finite, nothing to train, and the like
└── TooManyFailures          exit code 3: the stage is done, but more items failed than `max_failed` allows
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

#: texts of torch's RuntimeErrors on a CPU and on MPS
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class PrefkitError(Exception):
    exit_code = 1
    #: True if another process of the launch raised it first, and reports it
    elsewhere = False


class UsageError(PrefkitError):
    exit_code = 2


class RecipeError(UsageError):
    pass


class NotYet(UsageError):
    """The result of an earlier stage is missing. verb: that stage; names: its entries that would make the result."""

    def __init__(self, text: str, verb: str, names: Iterable[str] = ()) -> None:
        super().__init__(text)
        self.verb, self.names = verb, tuple(names)


class StoreError(PrefkitError):
    pass


class DamagedError(StoreError):
    """A stored file is missing, cannot be decoded, or does not match its checksum. path: of the file."""

    def __init__(self, path: Any, text: str) -> None:
        super().__init__(text)
        self.path = path


class FingerprintError(StoreError):
    pass


class CaptureError(PrefkitError):
    pass


class ProcessError(PrefkitError):
    pass


class PluginError(PrefkitError):
    pass


class TrainingError(PrefkitError):
    pass


class TooManyFailures(PrefkitError):
    """More items failed than `max_failed` allows. counts: the result of the stage, which is done."""

    exit_code = 3

    def __init__(self, text: str, counts: dict[str, Any] | None = None) -> None:
        super().__init__(text)
        self.counts = counts or {}


def out_of_memory(error: BaseException) -> bool:
    """True for torch.OutOfMemoryError (CUDA), its RuntimeErrors on CPU and MPS, and Python's MemoryError."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in OUT_OF_MEMORY)
