"""Ctrl-C and SIGTERM, which schedulers send before they kill: one meaning for both, in every verb.

The first raises KeyboardInterrupt in the main thread, so that every `finally` writes what is done; training lets the
step in hand end first. A later one ends the program at once, and the processes that it started.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

CODE = 130  # the exit code of an interrupted command
TOGETHER = 0.5  # seconds: launchers and `timeout` send a signal to the group and to each process, which is one wish
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _State:
    """asked: when the first signal came. step: set instead of raising, by work that ends in order itself."""

    asked: float | None = None
    step: threading.Event | None = None
    at_once: bool = False
    depth: int = 0


_state = _State()
_children: set[subprocess.Popen[Any]] = set()


@contextmanager
def handled(at_once: bool = False) -> Iterator[None]:
    """Both signals as the module says. at_once: what a second one may do (the command line); else it raises again.

    Outside of the main thread nothing changes; a signal that was ignored (a shell's background job) stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if not _state.depth:
        _state.asked, _state.at_once = None, at_once
    with _installed():
        yield


@contextmanager
def _installed() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    _state.depth += 1
    try:
        for number in before:
            signal.signal(number, _handle)
        yield
    finally:
        _state.depth -= 1
        for number, handler in before.items():
            if handler is not None:  # it was set by something else than Python, which cannot set it again
                signal.signal(number, handler)


def _handle(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if _state.asked is not None and now - _state.asked < TOGETHER:
        return
    if _state.asked is not None and _state.at_once:
        end_now()
    first, _state.asked = _state.asked is None, now
    if first and _state.step is not None:
        _state.step.set()
        return
    raise KeyboardInterrupt


def end_now() -> None:
    """No cleaning up: whatever is on disk is whole, since tables and files appear under their names when they are."""
    for process in list(_children):
        with suppress(OSError):
            end_tree(process)
    with suppress(OSError):
        os.write(2, b"Interrupted again: ended at once.\n")
    os._exit(CODE)


@contextmanager
def after_the_step() -> Iterator[threading.Event]:
    """The first signal sets the event, so that the step in hand can end; a later one interrupts.

    A signal that comes after the last step has looked at the event raises KeyboardInterrupt at the end.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    if not _state.depth:
        _state.asked, _state.at_once = None, False
    with _installed():
        _state.step = event
        try:
            yield event
        finally:
            _state.step = None
        check()


def check() -> None:
    """Raises KeyboardInterrupt where one was asked for and a plug-in's `except:` has swallowed it."""
    waiting = _state.asked is not None and _state.step is None and _state.depth
    if waiting and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt


def started(process: subprocess.Popen[Any]) -> None:
    """A process of ours, to be ended with this one."""
    _children.add(process)


def end_tree(process: subprocess.Popen[Any]) -> None:
    """Kill a process and those that it started (`conda run`, `uv run`), and wait for it."""
    import psutil

    _children.discard(process)
    with suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
    process.kill()
    process.wait()
