"""Heartbeats of the processes of one launch: a process that dies, or ends with an error, ends the others.

Every process counts up a number of its own in the launch's key-value store and reads the numbers of the others. A number
that stands still for SILENCE seconds belongs to a process that was killed. This works while the main thread waits in a
collective that nobody else will join: the thread here then ends the process.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

from prefkit.errors import ProcessError

EVERY = 5.0  # seconds between two beats
SILENCE = 60.0  # without a beat for so many seconds, a process is dead
GRACE = 15.0  # seconds that the main thread has to end by itself once another process has failed
START = 600.0  # seconds until all processes must have come
ENDED = "ended "  # what takes the place of the number, followed by the exit code


class Heartbeat(threading.Thread):
    """Beats for process `rank` of `count` until `end`. `failure` is the reason to end, once there is one."""

    def __init__(self, store: Any, rank: int, count: int) -> None:
        super().__init__(daemon=True, name="heartbeat")
        self.store, self.rank, self.count = store, rank, count
        self.failure: ProcessError | None = None
        self.stopping = threading.Event()
        self.last = {other: ("", time.monotonic()) for other in range(count) if other != rank}
        self.beats = 0

    def meet(self) -> None:
        """Beat for the first time, and wait until all processes have. Raises ProcessError."""
        self.store.set(f"beat/{self.rank}", "0")
        deadline = time.monotonic() + START
        while not self.store.check([f"beat/{other}" for other in self.last]):
            if time.monotonic() > deadline:
                raise ProcessError(f"process {self.rank} has waited for {START:.0f} s, and not all of the {self.count} processes "
                                   "have started. Look at the launcher's output for the others.")  # fmt: skip
            time.sleep(0.05)
        self.start()

    def run(self) -> None:
        while not self.stopping.wait(EVERY):
            self.look()
            if self.failure is not None and not self.stopping.wait(GRACE):
                self._abort(self.failure)

    def look(self) -> None:
        """Beat, and look at the others."""
        if self.failure is not None:
            return
        try:
            self.beats += 1
            self.store.set(f"beat/{self.rank}", str(self.beats))
            others = list(self.last)
            found = self.store.multi_get([f"beat/{other}" for other in others])
        except RuntimeError as error:
            self.failure = store_lost(error)
            return
        for other, value in zip(others, (text.decode() for text in found), strict=True):
            self._judge(other, value)

    def _judge(self, other: int, value: str) -> None:
        before, when = self.last[other]
        if value != before:
            self.last[other] = (value, time.monotonic())
        if value.startswith(ENDED):
            code = int(value.removeprefix(ENDED))
            if code and self.failure is None:
                self.failure = ProcessError(f"process {other} of {self.count} ended with exit code {code}.")
                self.failure.exit_code, self.failure.elsewhere = code, True
        elif value == before and time.monotonic() - when > SILENCE and self.failure is None:
            self.failure = ProcessError(
                f"process {other} of {self.count} was killed, or its machine is gone: no heartbeat for {SILENCE:.0f} s. "
                "What was done is kept; the same command continues."
            )

    def check(self) -> None:
        """Raises the failure, if there is one; and where another process has ended, for which this one must not wait."""
        gone = [other for other, (value, _) in self.last.items() if value.startswith(ENDED)]
        if self.failure is None and gone:
            raise ProcessError(
                f"process {gone[0]} of {self.count} has ended, and process {self.rank} still waits for it."
            )
        if self.failure is not None:
            raise self.failure

    def end(self, code: int, hosting: bool) -> None:
        """Say that this process ends. hosting: the store goes with this process, so that the others end first."""
        self.stopping.set()
        if self.is_alive() and threading.current_thread() is not self:
            self.join(EVERY)
        try:
            self.store.set(f"beat/{self.rank}", f"{ENDED}{code}")
            deadline = time.monotonic() + SILENCE + GRACE
            while hosting and time.monotonic() < deadline and not self._all_ended():
                time.sleep(0.05)
        except RuntimeError:
            return  # the store is gone, and whoever held it knows

    def _all_ended(self) -> bool:
        values = [text.decode() for text in self.store.multi_get([f"beat/{other}" for other in self.last])]
        for other, value in zip(self.last, values, strict=True):
            if value != self.last[other][0]:
                self.last[other] = (value, time.monotonic())
        return all(v.startswith(ENDED) or time.monotonic() - when > SILENCE for v, when in self.last.values())

    def _abort(self, failure: ProcessError) -> None:
        if not failure.elsewhere:
            print(f"Error: {failure}", file=sys.stderr)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self.end(failure.exit_code, hosting=False)
        os._exit(failure.exit_code)


def store_lost(error: Exception) -> ProcessError:
    return ProcessError(
        f"the launch is over: its key-value store, which the launcher or process 0 holds, is gone ({' '.join(str(error).split())[:120]}). "
        "What was done is kept; the same command continues."
    )
