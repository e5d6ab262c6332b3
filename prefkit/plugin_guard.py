"""Plug-ins that are not prefkit's own: whose code it is, what they raise, and what is lent to them.

A built-in plug-in is trusted: it sees the very images and dicts that the others see. A guest gets copies.
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
    """Whether the class of this instance (or this class, or this function) comes with prefkit."""
    kind = plugin if hasattr(plugin, "__qualname__") else type(plugin)
    return str(getattr(kind, "__module__", "")).partition(".")[0] == "prefkit"


class guarded:
    """`with guarded("scorer s.py:f"): ...` around a plug-in's code: PluginError where it tries to end the program.

    sys.exit, GeneratorExit and every other BaseException count; KeyboardInterrupt and plain exceptions pass. failing: what
    failed, where no caller handles plain exceptions ("could not be created"): they become PluginErrors too, except
    prefkit's own and out of memory. Nothing may be yielded inside, since closing the generator would look like the
    plug-in's own GeneratorExit.
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
    """`SystemExit: 3 (taste.py, line 7)`: what was raised, and the last line outside of prefkit and of Python's library."""
    text = error_summary(error)
    frames = traceback.extract_tb(error.__traceback__)
    outside = [f for f in frames if HERE not in Path(f.filename).parents and not f.filename.startswith("<")]
    return f"{text} ({outside[-1].filename}, line {outside[-1].lineno})" if outside else text


def error_summary(error: BaseException) -> str:
    """`ValueError: no`"""
    return f"{type(error).__name__}: {error_text(error)}".removesuffix(": ")


def error_text(error: BaseException) -> str:
    """The message of an exception as it can be stored and printed: a foreign one may hold half characters, and may raise
    when it is made."""
    if type(error).__name__ == "UnidentifiedImageError":  # Pillow's text names an object in memory
        return "not an image format that Pillow knows"
    try:
        return str(error).encode("utf-8", "replace").decode()
    except Exception:
        return "(its message cannot be shown)"


def described(found: Any) -> str:
    """What came instead of what is needed: `a dict`, `an ndarray of shape (4, 2)`, `None`."""
    if found is None:
        return "None"
    name = type(found).__name__
    article = "an" if name[0].lower() in "aeio" or name == "ndarray" else "a"
    shape = getattr(found, "shape", None)
    return f"{article} {name}" + (f" of shape {tuple(shape)}" if isinstance(shape, tuple) else "")


def copies(rows: Sequence[Row]) -> list[Row]:
    """Copies that a guest may paint on, resize, sort and fill as it likes; encoded bytes are immutable and shared."""
    return [_copied(row) for row in rows]


def _copied(row: Row) -> Row:
    extra = copy.deepcopy(dict(row.extra))
    if isinstance(row, Request) or row.decoded is None:
        return dataclasses.replace(row, extra=extra)
    return dataclasses.replace(row, extra=extra, decoded=picture(row.decoded))


def picture(image: Any) -> Any:
    """A copy of a PIL image with its `info`; one that cannot be decoded is shared by nobody, and stays as it is."""
    try:
        found = image.copy()
    except (OSError, ValueError, SyntaxError):
        return image
    found.info = copy.deepcopy(found.info)
    return found
