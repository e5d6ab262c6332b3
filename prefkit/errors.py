"""The errors that prefkit raises. Every message says what happened, where, and how to fix it.

PrefkitError                 exit code 1
├── UsageError               exit code 2: an invalid flag, recipe key or file
│   ├── RecipeError          a mistake in a recipe, with file:line
│   └── NotYet               the result of an earlier stage is missing
├── StoreError               a run folder cannot be read or written
│   ├── DamagedError         a file's content differs from what was written
│   └── FingerprintError     a stored table was made with settings that differ from the current ones
├── CaptureError             a pipeline works in a way that prefkit does not support or could not verify
├── ProcessError             another process of the launch failed or was killed
├── PluginError              a plug-in (scorer, strategy, objective, family, generator) broke its contract
├── TrainingError            training cannot continue: a loss is not finite, nothing is trainable, ...
└── TooManyFailures          exit code 3: the stage is done, but more items failed than `max_failed` allows
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

#: phrases in torch's out-of-memory errors on CPU and MPS, which are plain RuntimeErrors
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class PrefkitError(Exception):
    exit_code = 1
    #: True if another process of the launch raised this error and reports it
    elsewhere = False


class UsageError(PrefkitError):
    exit_code = 2


class RecipeError(UsageError):
    pass


class NotYet(UsageError):
    """The result of an earlier stage is missing. verb: that stage; names: the recipe entries to run it on."""

    def __init__(self, text: str, verb: str, names: Iterable[str] = ()) -> None:
        super().__init__(text)
        self.verb, self.names = verb, tuple(names)


class StoreError(PrefkitError):
    pass


class DamagedError(StoreError):
    """A stored file is missing, cannot be decoded, or does not match its checksum. path: the file."""

    def __init__(self, path: Any, text: str) -> None:
        super().__init__(text)
        self.path = path


class FingerprintError(StoreError):
    """Stored settings differ. folder: the folder of the table or result; keys: the keys of the settings that differ."""

    def __init__(self, text: str, folder: Any = None, keys: Iterable[str] = ()) -> None:
        super().__init__(text)
        self.folder, self.keys = folder and str(folder), list(keys)


class CaptureError(PrefkitError):
    pass


class ProcessError(PrefkitError):
    pass


class PluginError(PrefkitError):
    pass


class TrainingError(PrefkitError):
    pass


class TooManyFailures(PrefkitError):
    """More items failed than `max_failed` allows. The stage is done; counts: the stage's result."""

    exit_code = 3

    def __init__(self, text: str, counts: dict[str, Any] | None = None) -> None:
        super().__init__(text)
        self.counts = counts or {}


def out_of_memory(error: BaseException) -> bool:
    """True for torch.OutOfMemoryError (CUDA), torch's RuntimeErrors for lack of memory, and Python's MemoryError."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in OUT_OF_MEMORY)
