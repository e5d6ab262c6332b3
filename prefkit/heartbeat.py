"""Heartbeats between the processes of a launch: if one process dies or ends with an error, the others end too.

Every process increments its own number in the launcher's key-value store and reads the other processes' numbers. If a
number does not change for SILENCE seconds, its process was killed. The heartbeat has its own thread, so it can end a
process whose main thread waits in a collective that no other process will join.
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
START = 600.0  # seconds within which all processes must start
ENDED = "ended "  # a process that ends writes this and its exit code instead of the number


class Heartbeat(threading.Thread):
    """Sends the beats of process `rank` of `count` until `end`. failure: the error to end the process with, if any."""

    def __init__(self, store: Any, rank: int, count: int) -> None:
        super().__init__(daemon=True, name="heartbeat")
        self.store, self.rank, self.count = store, rank, count
        self.failure: ProcessError | None = None
        self.stopping = threading.Event()
        self.last = {other: ("", time.monotonic()) for other in range(count) if other != rank}
        self.beats = 0

    def meet(self) -> None:
        """Send the first beat and wait for the first beat of every process. Raises ProcessError after START seconds."""
        self.store.set(f"beat/{self.rank}", "0")
        deadline = time.monotonic() + START
        while not self.store.check([f"beat/{other}" for other in self.last]):
            if time.monotonic() > deadline:
                raise ProcessError(
                    f"process {self.rank} waited for {START:.0f} s, but not all of the {self.count} processes have "
                    "started. The launcher's output may show why the others did not."
                )
            time.sleep(0.05)
        self.start()

    def run(self) -> None:
        while not self.stopping.wait(EVERY):
            self.look()
            if self.failure is not None and not self.stopping.wait(GRACE):
                self._abort(self.failure)

    def look(self) -> None:
        """Send a beat and read the other processes' beats. Sets `failure` if a process has failed or is silent."""
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
                    f"process {other} of {self.count} was killed, or its machine failed: it sent no heartbeat for "
                    f"{SILENCE:.0f} s. Finished work is kept; run the same command again to continue."
                )

    def _read(self) -> None:
        """Update `last`, which maps each other process to (value, time when the value last changed)."""
        values = self.store.multi_get([f"beat/{other}" for other in self.last])
        for other, value in zip(list(self.last), (text.decode() for text in values), strict=True):
            if value != self.last[other][0]:
                self.last[other] = (value, time.monotonic())

    def check(self) -> None:
        """Raise `failure` if set, or ProcessError if another process has ended while this process waits for it."""
        if self.failure is not None:
            raise self.failure
        for other, (value, _) in self.last.items():
            if value.startswith(ENDED):
                raise ProcessError(
                    f"process {other} of {self.count} has ended, but process {self.rank} still waits for it."
                )

    def end(self, code: int, hosting: bool) -> None:
        """Tell the other processes that this one ends. hosting: this process holds the store, so it must end last."""
        self.stopping.set()
        if self.is_alive() and threading.current_thread() is not self:
            self.join(EVERY)
        try:
            self.store.set(f"beat/{self.rank}", f"{ENDED}{code}")
            deadline = time.monotonic() + SILENCE + GRACE
            while hosting and time.monotonic() < deadline and not self._all_ended():
                time.sleep(0.05)
        except RuntimeError:
            return  # the process that held the store has ended

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
        "Finished work is kept; run the same command again to continue."
    )
