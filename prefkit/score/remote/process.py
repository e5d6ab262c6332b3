"""The transport of a scorer in another process, `use: "exec:python judge.py"`: lines on standard input and output."""

from __future__ import annotations

import atexit
import json
import queue
import shlex
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from prefkit import interrupts
from prefkit.errors import PluginError, UsageError
from prefkit.score.remote.protocol import Hello, RemoteScorer, decode_answer, decode_hello, encode_item, file_bytes
from prefkit.types import Candidate, Score, digest

LARGEST = 64 * 2**20  # characters of an answer
ENDING = 10.0  # seconds that a process may take to exit after it has closed its output
MOST_STARTS = 20  # allows for a process that dies of one item in a hundred, but not for one that dies of all


@dataclass(frozen=True)
class ProcessOptions:
    #: base64 (in the request) | path (a file on this machine)
    images: Literal["base64", "path"] = "base64"
    #: seconds for the answer to one batch
    timeout: float = 600.0
    #: seconds for the hello of a started process
    start_timeout: float = 600.0


class ProcessScorer(RemoteScorer):
    """`address` is exec: and a command line, which runs without a shell.

    A process that dies or does not answer in time is started again, and the batch is scored one by one, so that only the
    item at fault fails.
    """

    Options = ProcessOptions

    def __init__(self, options: ProcessOptions) -> None:
        self.options = options
        self.command = shlex.split(self.address.removeprefix("exec:"))
        if not self.command:
            raise UsageError("scorer exec: has no command; write it as exec:python judge.py.")
        self.process: subprocess.Popen[str] | None = None
        self.lines: queue.Queue[str | None] = queue.Queue()
        self.starts = self.requests = 0
        self.lock = threading.Lock()
        atexit.register(self.stop)

    def connect(self) -> Hello:
        """Start the process. Raises UsageError for an unknown command, PluginError for an invalid hello."""
        if self.starts == MOST_STARTS:
            raise PluginError(
                f"scorer {self.address} has died {self.starts} times; see its standard error for the reason."
            )
        self.starts += 1
        pipe = subprocess.PIPE
        try:
            self.process = subprocess.Popen(
                self.command, stdin=pipe, stdout=pipe, encoding="utf-8", errors="replace", bufsize=1
            )
            interrupts.track(self.process)
        except OSError as error:
            raise UsageError(f"scorer {self.address}: {self.command[0]} could not be started: {error}.") from error
        self.lines = queue.Queue()
        threading.Thread(target=_read, args=(self.process.stdout, self.lines), daemon=True).start()
        try:
            return decode_hello(self._receive(self.options.start_timeout), f"scorer {self.address}")
        except PluginError:
            self.stop()
            raise
        except (RuntimeError, TimeoutError) as error:
            raise PluginError(
                f"scorer {self.address}: {error} before its hello. Standard output is for the protocol only; print to "
                "standard error."
            ) from error

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        """Raises RuntimeError or TimeoutError if the process dies of the batch or does not answer."""
        with self.lock, tempfile.TemporaryDirectory(prefix="prefkit-") as folder:
            if self.process is None and self.connect() != self.hello:
                raise PluginError(f"scorer {self.address} sent another hello when it was started again.")
            items = [encode_item(c, self.requires, self._path(c, folder)) for c in batch]
            self.requests += 1
            self._send({"request": self.requests, "items": items})
            answer = self._receive(self.options.timeout)
            if not isinstance(answer, dict) or answer.get("request") != self.requests:
                self.stop()
                raise RuntimeError(f"the process did not answer request {self.requests}, but sent another message")
            return decode_answer(answer, len(batch), self.command[0])

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
        # a copy even of an image that is a file already, since the process may change it
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
            raise RuntimeError(f"the process ended, or did not read for {self.options.timeout:g} s") from error
        finally:
            watchdog.cancel()

    def _receive(self, timeout: float) -> Any:
        """Return the next line of the process, as JSON. Raises RuntimeError or TimeoutError and stops the process."""
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


def _read(pipe: IO[str], lines: queue.Queue[str | None]) -> None:
    """Put lines, then None, into the queue; runs in a thread, so that `_receive` can time out."""
    try:
        while line := pipe.readline(LARGEST):
            lines.put(line)  # a longer line arrives in pieces; the first piece is not valid JSON and is refused
    except ValueError:  # closed by stop()
        return
    finally:
        lines.put(None)


plugin = ProcessScorer
