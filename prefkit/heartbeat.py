"""Heartbeats of the processes of one launch: a process that dies, or ends with an error, ends the others.

Every process increments a number in the launch's key-value store and reads those of the others. A number that does not
change for SILENCE seconds belongs to a process that was killed. This works while the main thread waits in a collective
that no other process will join: the heartbeat's thread then ends the process.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

from prefkit.errors import ProcessError

EVERY = 5.0  # seconds between two beats
SILENCE = 60.0  # seconds without a beat after which a process counts as dead
GRACE = 15.0  # seconds for the main thread to end by itself after another process has failed
START = 600.0  # seconds until all processes must have started
ENDED = "ended "  # replaces the number, followed by the exit code


class Heartbeat(threading.Thread):
    """Beats for process `rank` of `count` until `end`. `failure` is the reason to end, None as long as all is well."""

    def __init__(self, store: Any, rank: int, count: int) -> None:
        super().__init__(daemon=True, name="heartbeat")
        self.store, self.rank, self.count = store, rank, count
        self.failure: ProcessError | None = None
        self.stopping = threading.Event()
        self.last = {other: ("", time.monotonic()) for other in range(count) if other != rank}
        self.beats = 0

    def meet(self) -> None:
        """Beat for the first time, and wait for the first beat of all processes. Raises ProcessError."""
        self.store.set(f"beat/{self.rank}", "0")
        deadline = time.monotonic() + START
        while not self.store.check([f"beat/{other}" for other in self.last]):
            if time.monotonic() > deadline:
                raise ProcessError(
                    f"process {self.rank} waited for {START:.0f} s, and not all of the {self.count} processes have "
                    "started. Look at the launcher's output for the others."
                )
            time.sleep(0.05)
        self.start()

    def run(self) -> None:
        while not self.stopping.wait(EVERY):
            self.look()
            if self.failure is not None and not self.stopping.wait(GRACE):
                self._abort(self.failure)

    def look(self) -> None:
        """Beat, and read the beats of the others."""
        if self.failure is not None:
            return
        try:
            self.beats += 1
            self.store.set(f"beat/{self.rank}", str(self.beats))
            self._read()
        except RuntimeError as error:
            self.failure = store_lost(error)
            return
        for other, (value, when) in self.last.items():
            if self.failure is not None:
                return
            if value.startswith(ENDED) and (code := int(value.removeprefix(ENDED))):
                self.failure = ProcessError(f"process {other} of {self.count} ended with exit code {code}.")
                self.failure.exit_code, self.failure.elsewhere = code, True
            elif not value.startswith(ENDED) and time.monotonic() - when > SILENCE:
                self.failure = ProcessError(
                    f"process {other} of {self.count} was killed, or its machine is gone: no heartbeat for "
                    f"{SILENCE:.0f} s. Finished work is kept; the same command continues."
                )

    def _read(self) -> None:
        """Update `last`: value and time of the last change, by process."""
        values = self.store.multi_get([f"beat/{other}" for other in self.last])
        for other, value in zip(list(self.last), (text.decode() for text in values), strict=True):
            if value != self.last[other][0]:
                self.last[other] = (value, time.monotonic())

    def check(self) -> None:
        """Raise the failure, if any, or ProcessError if another process has ended while this one waits for it."""
        if self.failure is not None:
            raise self.failure
        for other, (value, _) in self.last.items():
            if value.startswith(ENDED):
                raise ProcessError(
                    f"process {other} of {self.count} has ended, and process {self.rank} still waits for it."
                )

    def end(self, code: int, hosting: bool) -> None:
        """Publish that this process ends. hosting: it holds the store, so wait for the others to end first."""
        self.stopping.set()
        if self.is_alive() and threading.current_thread() is not self:
            self.join(EVERY)
        try:
            self.store.set(f"beat/{self.rank}", f"{ENDED}{code}")
            deadline = time.monotonic() + SILENCE + GRACE
            while hosting and time.monotonic() < deadline and not self._all_ended():
                time.sleep(0.05)
        except RuntimeError:
            return  # the store is gone, and with it the process that held it

    def _all_ended(self) -> bool:
        self._read()
        return all(v.startswith(ENDED) or time.monotonic() - when > SILENCE for v, when in self.last.values())

    def _abort(self, failure: ProcessError) -> None:
        if not failure.elsewhere:
            print(f"Error: {failure}", file=sys.stderr)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self.end(failure.exit_code, hosting=False)
        os._exit(failure.exit_code)


def store_lost(error: Exception) -> ProcessError:
    reason = " ".join(str(error).split())[:120]
    return ProcessError(
        f"the launch is over: its key-value store, which the launcher or process 0 holds, is gone ({reason}). "
        "Finished work is kept; the same command continues."
    )
