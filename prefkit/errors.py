"""What prefkit raises on purpose. Every message says what, where, and how to mend it.

PrefkitError                 exit code 1
├── UsageError               exit code 2: a flag, a recipe key, a file that the user named
│   ├── RecipeError          the same, with file:line
│   └── NotYet               what an earlier stage makes is not there yet
├── StoreError               a run folder that cannot be read or written
│   ├── DamagedError         a file whose content is not what was written
│   └── FingerprintError     the table on disk means something else than what was asked for
├── CaptureError             a pipeline whose wiring could not be proven
├── ProcessError             another process of the launch has failed or was killed
├── PluginError              a scorer, strategy, objective, family or generator that broke its contract
└── TrainingError            a loss that is not finite, nothing to train, and the like

`TooManyFailures` is not an error of the program: the stage ended, but more items failed than
`max_failed` allows (exit code 3).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

#: what the RuntimeErrors of torch say of a CPU and of MPS
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class PrefkitError(Exception):
    exit_code = 1
    #: another process of the launch raised it first, and tells the user
    elsewhere = False


class UsageError(PrefkitError):
    exit_code = 2


class RecipeError(UsageError):
    pass


class NotYet(UsageError):
    """What a stage needs is not there yet. verb: the stage that makes it, if it is in the recipe under `name`."""

    def __init__(self, text: str, verb: str, names: Iterable[str] = ()) -> None:
        super().__init__(text)
        self.verb, self.names = verb, tuple(names)


class StoreError(PrefkitError):
    pass


class DamagedError(StoreError):
    """A stored file that is missing, cannot be decoded, or does not match its checksum. `path` names it."""

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
    """counts: the result of the stage, which is done."""

    exit_code = 3

    def __init__(self, text: str, counts: dict[str, Any] | None = None) -> None:
        super().__init__(text)
        self.counts = counts or {}


def out_of_memory(error: BaseException) -> bool:
    """torch.OutOfMemoryError (CUDA), its RuntimeError on CPU and MPS, and Python's MemoryError."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in OUT_OF_MEMORY)
