"""Guards around third-party plug-ins: handle their errors, and pass them copies of the data.

Built-in plug-ins are trusted and get the original images and dicts. Third-party plug-ins get copies.
"""

from __future__ import annotations

import copy
import dataclasses
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from prefkit.errors import PluginError, PrefkitError, out_of_memory
from prefkit.types import Candidate, Request

Row = TypeVar("Row", Candidate, Request)
HERE = Path(__file__).parent


def is_own(plugin: Any) -> bool:
    """True if the plug-in (an instance, a class or a function) comes with prefkit."""
    kind = plugin if hasattr(plugin, "__qualname__") else type(plugin)
    return str(getattr(kind, "__module__", "")).partition(".")[0] == "prefkit"


class guarded:
    """Raise PluginError if a plug-in's code tries to end the program: `with guarded("scorer s.py:f"): ...`.

    This covers sys.exit, GeneratorExit and the like; KeyboardInterrupt and subclasses of Exception pass. failing: text
    for the message ("could not be created"). If set, an Exception becomes a PluginError, unless it is prefkit's own
    or an out-of-memory error. The block must not yield: closing a generator raises GeneratorExit.
    """

    def __init__(self, who: str | Callable[[], str], failing: str = "") -> None:
        self.who, self.failing = who, failing

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, KeyboardInterrupt) or (isinstance(error, Exception) and not self.failing):
            return
        who = self.who if isinstance(self.who, str) else self.who()
        if isinstance(error, Exception):
            if isinstance(error, PrefkitError) or out_of_memory(error):
                return
            raise PluginError(f"{who} {self.failing}: {error_with_line(error)}.") from error
        raise PluginError(
            f"{who} tried to end the program: {error_with_line(error)}. A plug-in must return, or raise an Exception."
        ) from error


def error_with_line(error: BaseException) -> str:
    """Describe an error and where it occurred outside prefkit and frozen modules: `SystemExit: 3 (a.py, line 7)`."""
    text = error_summary(error)
    frames = traceback.extract_tb(error.__traceback__)
    outside = [f for f in frames if HERE not in Path(f.filename).parents and not f.filename.startswith("<")]
    return f"{text} ({outside[-1].filename}, line {outside[-1].lineno})" if outside else text


def error_summary(error: BaseException) -> str:
    """Return an error's type and message: `ValueError: no`."""
    return f"{type(error).__name__}: {error_text(error)}".removesuffix(": ")


def error_text(error: BaseException) -> str:
    """Return an exception's message, safe to store and print: str(error) may hold lone surrogates, or raise."""
    if type(error).__name__ == "UnidentifiedImageError":  # Pillow's message only shows an object's address
        return "not an image format that Pillow knows"
    try:
        return str(error).encode("utf-8", "replace").decode()
    except Exception:
        return "(its message cannot be shown)"


def described(value: Any) -> str:
    """Describe the type of an unexpected value: `a dict`, `an ndarray of shape (4, 2)`, `None`."""
    if value is None:
        return "None"
    name = type(value).__name__
    article = "an" if name[0].lower() in "aeio" or name == "ndarray" else "a"
    shape = getattr(value, "shape", None)
    return f"{article} {name}" + (f" of shape {tuple(shape)}" if isinstance(shape, tuple) else "")


def copies(rows: Sequence[Row]) -> list[Row]:
    """Return copies that a third-party plug-in may change; encoded bytes are immutable, so they are not copied."""
    return [_copied(row) for row in rows]


def _copied(row: Row) -> Row:
    extra = copy.deepcopy(dict(row.extra))
    if isinstance(row, Request) or row.decoded is None:
        return dataclasses.replace(row, extra=extra)
    return dataclasses.replace(row, extra=extra, decoded=picture(row.decoded))


def picture(image: Any) -> Any:
    """Copy a PIL image and its `info`; an image that cannot be decoded is returned unchanged."""
    try:
        copied = image.copy()
    except (OSError, ValueError, SyntaxError):
        return image
    copied.info = copy.deepcopy(copied.info)
    return copied
