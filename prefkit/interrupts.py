"""Handle Ctrl-C and SIGTERM (which job schedulers send before they kill) in the same way in every command.

The first signal raises KeyboardInterrupt in the main thread, so that `finally` blocks can save finished work; training
completes the current step first. A later signal ends the program and its child processes at once.
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
TOGETHER = 0.5  # seconds; signals this close count as one: launchers signal a process and its group
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _State:
    first: float | None = None  # time of the first signal
    step: threading.Event | None = None  # while a step runs, the first signal sets this event instead of raising
    at_once: bool = False  # a second signal ends the program
    depth: int = 0  # number of nested handlers


_state = _State()
_children: set[subprocess.Popen[Any]] = set()


@contextmanager
def handled(at_once: bool = False) -> Iterator[None]:
    """Handle both signals. at_once: a later signal ends the program; otherwise, it raises KeyboardInterrupt again.

    Has no effect outside the main thread. A signal that is ignored (as in a shell's background job) stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if not _state.depth:
        _state.first, _state.at_once = None, at_once
    before = {n: handler for n in SIGNALS if (handler := signal.getsignal(n)) != signal.SIG_IGN}
    _state.depth += 1
    try:
        for number in before:
            signal.signal(number, _handle)
        yield
    finally:
        _state.depth -= 1
        for number, handler in before.items():
            if handler is not None:  # None: installed by C code, so Python cannot restore it
                signal.signal(number, handler)


def _handle(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if _state.first is not None and now - _state.first < TOGETHER:
        return
    if _state.first is not None and _state.at_once:
        end_now()
    is_first, _state.first = _state.first is None, now
    if is_first and _state.step is not None:
        _state.step.set()
        return
    raise KeyboardInterrupt


def end_now() -> None:
    """Exit without cleaning up. No half-written file remains: a file gets its final name only when complete."""
    for process in list(_children):
        with suppress(OSError):
            kill_tree(process)
    with suppress(OSError):
        os.write(2, b"Interrupted again: ended at once.\n")
    os._exit(CODE)


@contextmanager
def after_the_step() -> Iterator[threading.Event]:
    """Yield an event that the first signal sets, so that the current step can complete; a later signal interrupts it.

    If a signal arrives after the event was last checked, KeyboardInterrupt is raised at the end of the block.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    with handled():
        _state.step = event
        try:
            yield event
        finally:
            _state.step = None
        check()


def check() -> None:
    """Raise KeyboardInterrupt again if a plug-in's `except:` has swallowed it."""
    waiting = _state.first is not None and _state.step is None and _state.depth
    if waiting and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt


def track(process: subprocess.Popen[Any]) -> None:
    """Register a child process that `end_now` must kill."""
    _children.add(process)


def kill_tree(process: subprocess.Popen[Any]) -> None:
    """Kill a process and its descendants (such as those of `conda run`), and wait until the process has ended."""
    import psutil

    _children.discard(process)
    with suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
    process.kill()
    process.wait()
