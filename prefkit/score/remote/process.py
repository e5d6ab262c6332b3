"""A scorer in another process: `use: "exec:python judge.py"`. See prefkit/score/remote/protocol.py."""

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
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal

from prefkit import interrupts
from prefkit.errors import PluginError, UsageError
from prefkit.score.remote.protocol import Hello, file_bytes, item_of, read_hello, read_scores
from prefkit.types import Candidate, Score, ScorerSpec, digest

LARGEST = 64 * 2**20  # characters of an answer
ENDING = 10.0  # seconds that a process has to end, once its output is closed
MOST_STARTS = 20  # a process that dies of one item in a hundred is worth starting again; one that dies of all is not


@dataclass(frozen=True)
class ProcessOptions:
    #: base64 (in the request) | path (a file beside the process)
    images: Literal["base64", "path"] = "base64"
    #: seconds for the answer to one batch
    timeout: float = 600.0
    #: seconds until the process has said what it is
    start_timeout: float = 600.0


class ProcessScorer:
    """`address` is set by prefkit.registry, on a subclass of its own: exec: and a command line, run without a shell.

    A process that dies or does not answer in time is started anew; the batch is scored one by one, so that only what it
    dies of fails.
    """

    Options = ProcessOptions
    address = ""
    alone = True

    def __init__(self, options: ProcessOptions) -> None:
        self.options = options
        self.command = shlex.split(self.address.removeprefix("exec:"))
        if not self.command:
            raise UsageError("scorer exec: names no command, such as exec:python judge.py.")
        self.process: subprocess.Popen[str] | None = None
        self.lines: queue.Queue[str | None] = queue.Queue()
        self.starts = self.requests = 0
        self.lock = threading.Lock()
        atexit.register(self.stop)

    @cached_property
    def hello(self) -> Hello:
        """Starts the process. Raises UsageError for no such command, PluginError where it does not say what it is."""
        return self._start()

    @property
    def requires(self) -> frozenset[str]:
        return self.hello.requires

    @property
    def scope(self) -> str:
        return self.hello.scope

    def spec(self) -> ScorerSpec:
        return self.hello.spec

    def load(self, device: str, dtype: str) -> None:
        """The process has loaded what it needs."""

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        """Raises RuntimeError or TimeoutError where the process dies of the batch, or does not answer."""
        with self.lock, tempfile.TemporaryDirectory(prefix="prefkit-") as folder:
            if self.process is None:
                again = self._start()
                if again != self.hello:
                    raise PluginError(f"scorer {self.address} said it was something else when it was started anew.")
            items = [item_of(c, self.requires, self._path(c, folder)) for c in batch]
            self.requests += 1
            found = self._exchange({"request": self.requests, "items": items})
            return read_scores(found, len(batch), self.command[0])

    def close(self) -> None:
        """Ends the process; its exit need not be waited for then."""
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
        # a copy, also of a file that stays where it is: what the process does to it is its own business
        path = Path(folder) / (digest(candidate.id) + Path(candidate.path or "").suffix)
        path.write_bytes(file_bytes(candidate))
        return path

    def _start(self) -> Hello:
        if self.starts == MOST_STARTS:
            raise PluginError(f"scorer {self.address} has died {self.starts} times; its standard error says of what.")
        self.starts += 1
        try:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                bufsize=1,
            )
            interrupts.track(self.process)
        except OSError as error:
            raise UsageError(f"scorer {self.address}: {self.command[0]} could not be started: {error}.") from error
        self.lines = queue.Queue()
        threading.Thread(target=_read, args=(self.process.stdout, self.lines), daemon=True).start()
        try:
            line = self._line(self.options.start_timeout)
        except (RuntimeError, TimeoutError) as error:
            raise PluginError(f"scorer {self.address}: {error} before it said what it is.") from error
        try:
            return read_hello(json.loads(line), f"scorer {self.address}")
        except PluginError:
            self.stop()
            raise
        except (ValueError, RecursionError) as error:
            self.stop()
            raise PluginError(
                f"scorer {self.address}: its first line is no JSON: {line[:200]!r}. Standard output belongs to the "
                "protocol; print to standard error."
            ) from error

    def _exchange(self, request: dict[str, Any]) -> Any:
        assert self.process is not None and self.process.stdin is not None
        watch = threading.Timer(self.options.timeout, self.process.kill)  # one that stops reading blocks the write
        watch.start()
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except OSError as error:
            self.stop()
            raise RuntimeError(f"the process ended, or did not read for {self.options.timeout:g} s") from error
        finally:
            watch.cancel()
        line = self._line(self.options.timeout)
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            self.stop()  # what else is in the pipe cannot be told from the next answer
            raise RuntimeError(f"the process answered no JSON: {line[:200]!r}") from error
        if not isinstance(found, dict) or found.get("request") != request["request"]:
            self.stop()
            raise RuntimeError(f"the process answered something else than request {request['request']}")
        return found

    def _line(self, timeout: float) -> str:
        try:
            line = self.lines.get(timeout=timeout)
        except queue.Empty as error:
            self.stop()
            raise TimeoutError(f"the process did not answer within {timeout:g} s") from error
        if line is None:
            assert self.process is not None
            try:
                said = f"the process ended with code {self.process.wait(ENDING)}"
            except subprocess.TimeoutExpired:
                said = "the process closed its standard output"
            self.stop()
            raise RuntimeError(said)
        return line


def _read(pipe: IO[str], lines: queue.Queue[str | None]) -> None:
    """A thread of its own, so that waiting for a line can end."""
    try:
        while line := pipe.readline(LARGEST):
            lines.put(line)  # a longer line arrives in pieces; the first piece is not valid JSON and is refused
    except ValueError:  # closed by stop()
        return
    finally:
        lines.put(None)


plugin = ProcessScorer
