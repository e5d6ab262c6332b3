"""Transport for a scorer in another process (`use: "exec:python judge.py"`): lines on standard input and output."""

from __future__ import annotations

import atexit
import json
import os
import queue
import shlex
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from prefkit import interrupts
from prefkit.errors import PluginError, UsageError
from prefkit.score.remote.protocol import Hello, RemoteScorer, decode_answer, decode_hello, encode_item, file_bytes
from prefkit.score.remote.waiting import note_if_slow
from prefkit.types import Candidate, Score, digest

LARGEST = 64 * 2**20  # characters of an answer
ENDING = 10.0  # seconds that a process may take to exit after it has closed its output
MOST_STARTS = 20  # enough for a process that crashes on one item in a hundred, but not on all
FIRST_STARTS = 3  # limit until the first answer: one start for the first batch, two for its single items
HELLO = (  # description of the hello in messages
    'a first line such as {"protocol": 1, "spec": {"name": "mine", "version": "1"}, "requires": ["image", "prompt"]}'
)


@dataclass(frozen=True)
class ProcessOptions:
    #: how images are sent: base64 (in the request) | path (of a file on this machine)
    images: Literal["base64", "path"] = "base64"
    #: time limit for the answer to a batch in seconds
    timeout: float = 600.0
    #: time limit in seconds for the process to start and send its hello
    start_timeout: float = 600.0


class ProcessScorer(RemoteScorer):
    """Scorer in another process. `address` is `exec:` and a command line, which runs without a shell.

    If the process crashes or times out, it is restarted and the batch is scored item by item.
    """

    Options = ProcessOptions

    def __init__(self, options: ProcessOptions) -> None:
        self.options = options
        self.command = shlex.split(self.address.removeprefix("exec:"))
        if not self.command:
            raise UsageError("scorer `exec:` has no command. Write it as, for example, `exec:python judge.py`.")
        self.process: subprocess.Popen[str] | None = None
        self.lines: queue.Queue[str | None] = queue.Queue()
        self.starts = self.requests = self.answers = 0
        self.failure = ""
        self.lock = threading.Lock()
        atexit.register(self.stop)

    def connect(self) -> Hello:
        """Start the process. Raises UsageError for an unknown command, PluginError for an invalid hello."""
        if self.starts == (MOST_STARTS if self.answers else FIRST_STARTS):
            without = "" if self.answers else " without an answer"
            reason = f" Last failure: {self.failure}." if self.failure else ""
            raise PluginError(
                f"scorer {self.address} was started {self.starts} times and failed{without} each time.{reason} See its "
                "standard error."
            )
        self.starts += 1
        pipe = subprocess.PIPE
        try:
            self.process = subprocess.Popen(
                self.command, stdin=pipe, stdout=pipe, encoding="utf-8", errors="replace", bufsize=1, env=_environment()
            )
            interrupts.track(self.process)
        except OSError as error:
            raise UsageError(f"scorer {self.address}: {self.command[0]} could not be started: {error}.") from error
        self.lines = queue.Queue()
        threading.Thread(target=_read, args=(self.process.stdout, self.lines), daemon=True).start()
        limit, who = self.options.start_timeout, f"scorer {self.address}"
        try:
            with note_if_slow(
                f"{who} has not sent its hello yet. prefkit expects {HELLO}, and waits up to {limit:g} s (start_timeout)."
            ):
                return decode_hello(self._receive(limit), who)
        except PluginError:
            self.stop()
            raise
        except (RuntimeError, TimeoutError) as error:
            raise PluginError(
                f"{who}: {error} before its hello. prefkit sends nothing until it has received {HELLO}. Standard output "
                "is for the protocol only; print everything else to standard error."
            ) from error

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        """Raises RuntimeError if the process fails on the batch, TimeoutError if it does not answer in time."""
        with self.lock, tempfile.TemporaryDirectory(prefix="prefkit-") as folder:
            if self.process is None and self.connect() != self.hello:
                raise PluginError(f"scorer {self.address} sent a different hello when it was started again.")
            items = [encode_item(c, self.hello.requires, self._path(c, folder)) for c in batch]
            self.requests += 1
            message, self.failure = {"request": self.requests, "items": items}, ""
            try:
                answer = self._answer(message)
            except (RuntimeError, TimeoutError) as error:
                self.failure = str(error)
                raise
            self.answers += 1
            return decode_answer(answer, len(batch), self.command[0])

    def _answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a request and return the answer. On failure, stop the process; raise RuntimeError or TimeoutError."""
        number, limit = message["request"], self.options.timeout
        expected = f'a line {{"request": {number}, "scores": [...]}} with {len(message["items"])} scores'
        slow = f"scorer {self.address} has not answered yet. prefkit expects {expected}, and waits up to {limit:g} s (timeout)."
        with nullcontext() if self.answers else note_if_slow(slow):  # no note after the first answer
            self._send(message)
            try:
                answer = self._receive(limit)
            except (RuntimeError, TimeoutError) as error:
                raise type(error)(f"{error}; prefkit expects {expected}") from error
        if not isinstance(answer, dict) or answer.get("request") != number:
            self.stop()
            raise RuntimeError(
                f"the process wrote {json.dumps(answer)[:80]}, which does not answer request {number}; prefkit expects "
                f"{expected}"
            )
        return answer

    def close(self) -> None:
        """End the process."""
        atexit.unregister(self.stop)
        self.stop()

    def stop(self) -> None:
        if self.process is not None:
            interrupts.kill_tree(self.process)
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    pipe.close()
            self.process = None

    def _path(self, candidate: Candidate, folder: str) -> Path | None:
        if self.options.images == "base64" or "image" not in self.requires:
            return None
        # always a copy, since the process may modify the file
        path = Path(folder) / (digest(candidate.id) + Path(candidate.path or "").suffix)
        path.write_bytes(file_bytes(candidate))
        return path

    def _send(self, message: dict[str, Any]) -> None:
        assert self.process is not None and self.process.stdin is not None
        watchdog = threading.Timer(
            self.options.timeout, self.process.kill
        )  # a process that does not read blocks the write
        watchdog.start()
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        except OSError as error:
            self.stop()
            raise RuntimeError(
                f"the process ended, or did not read its standard input for {self.options.timeout:g} s"
            ) from error
        finally:
            watchdog.cancel()

    def _receive(self, timeout: float) -> Any:
        """Return the process's next line, parsed. If that fails, stop it and raise RuntimeError or TimeoutError."""
        error: Exception
        try:
            line = self.lines.get(timeout=timeout)
            if line is not None:
                return json.loads(line)
            error = RuntimeError(self._ending())
        except queue.Empty:
            error = TimeoutError(f"the process did not answer within {timeout:g} s")
        except (ValueError, RecursionError):
            error = RuntimeError(f"the process wrote a line that is not JSON: {str(line)[:200]!r}")
        self.stop()
        raise error

    def _ending(self) -> str:
        assert self.process is not None
        try:
            return f"the process ended with code {self.process.wait(ENDING)}"
        except subprocess.TimeoutExpired:
            return "the process closed its standard output"


def _environment() -> dict[str, str]:
    """Return the environment of the process, which makes Python write each printed line to the pipe immediately."""
    return os.environ | {"PYTHONUNBUFFERED": "1"}


def _read(pipe: IO[str], lines: queue.Queue[str | None]) -> None:
    """Put each line into the queue, and None at the end. Runs in a thread, so that `_receive` can time out."""
    try:
        while line := pipe.readline(LARGEST):
            lines.put(line)  # a longer line arrives in pieces; the first piece is not valid JSON and is refused
    except ValueError:  # closed by stop()
        return
    finally:
        lines.put(None)


plugin = ProcessScorer
