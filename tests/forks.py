"""Processes that start at once: forked from a template that has torch, diffusers and the rest imported.

The template is forked from pytest before the first test, when the modules are loaded and nothing has computed (no CUDA, no
threads of autograd). A child has its own standard streams, environment, folder and signals, like a new process.
"""

from __future__ import annotations

import atexit
import faulthandler
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn


def preload() -> None:
    """Everything that the verbs import."""
    import accelerate
    import datasets
    import diffusers
    import pandas
    import peft
    import torch
    import transformers

    import prefkit.cli.main
    import prefkit.evaluate.run
    import prefkit.pair.run
    import prefkit.report.page
    import prefkit.score.run
    import prefkit.train.online.run
    import prefkit.train.run

    for name in ("StableDiffusionPipeline", "UNet2DConditionModel", "AutoencoderKL", "DDIMScheduler"):
        getattr(diffusers, name)
    assert all((accelerate, datasets, pandas, peft, transformers, prefkit))
    torch.set_num_threads(1)


class Child:
    """A child of the template, with the methods of subprocess.Popen."""

    def __init__(self, forks: Forks, pid: int, out: Path, err: Path) -> None:
        self.forks, self.pid, self.out, self.err = forks, pid, out, err
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.forks.ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float = 600) -> int:
        """Exit code; a child that is still running after `timeout` seconds is killed: TimeoutExpired."""
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                self.send_signal(signal.SIGKILL)
                raise subprocess.TimeoutExpired(f"child {self.pid}", timeout, stderr=self.err.read_bytes())
            time.sleep(0.01)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self, timeout: float = 600) -> tuple[str, str]:
        self.wait(timeout)
        out, err = (path.read_text("utf-8", "replace") for path in (self.out, self.err))
        return out, err


class Forks:
    """The template, as seen from the tests."""

    def __init__(self) -> None:
        self.scratch = tempfile.TemporaryDirectory(prefix="forks-")
        preload()
        self.channel, theirs = socket.socketpair()
        self.template = os.fork()
        if not self.template:
            os._exit(_serve(theirs))
        theirs.close()
        self.answers = self.channel.makefile("r")
        self.count = 0

    def ask(self, job: dict[str, Any]) -> Any:
        self.channel.sendall(json.dumps(job).encode() + b"\n")
        return json.loads(self.answers.readline())

    def start(self, *argv: Any, code: str = "", cwd: Any = None, env: dict[str, str] | None = None) -> Child:
        """The command line `argv`, or the script `code` with these arguments."""
        self.count += 1
        out, err = (Path(self.scratch.name) / f"{self.count}.{stream}" for stream in ("out", "err"))
        job = {"argv": [str(a) for a in argv], "code": code, "cwd": str(cwd or Path.cwd()), "out": str(out)}
        job |= {"err": str(err), "env": dict(os.environ if env is None else env)}
        return Child(self, self.ask(job), out, err)

    def run(self, *argv: Any, timeout: float = 600, **how: Any) -> subprocess.CompletedProcess[str]:
        child = self.start(*argv, **how)
        out, err = child.communicate(timeout)
        assert child.returncode is not None
        return subprocess.CompletedProcess(argv, child.returncode, out, err)

    def ranks(self, *argv: Any, count: int = 2, **how: Any) -> list[Child]:
        """One launch of `count` processes, with the environment that torch's launcher gives them."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        shared = os.environ | {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        own = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
        return [self.start(*argv, env=each, **how) for each in own]

    def close(self) -> None:
        self.channel.close()
        self.answers.close()
        os.waitpid(self.template, 0)
        self.scratch.cleanup()


def _serve(channel: socket.socket) -> int:
    """Start and look after children until the tests close the channel; end those that are left."""
    faulthandler.disable()
    atexit._clear()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches pytest, which closes the channel
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    kept = channel.fileno()
    os.closerange(3, kept)
    os.closerange(kept + 1, 4096)
    running: set[int] = set()
    with channel.makefile("r") as jobs:
        for line in jobs:
            answer, job = None, json.loads(line)
            if "poll" not in job:
                answer = os.fork()
                if not answer:
                    channel.close()
                    _child(**job)
                running.add(answer)
            elif job["poll"] in running:
                ended, status = os.waitpid(job["poll"], os.WNOHANG)
                if ended:
                    running.remove(ended)
                    answer = os.waitstatus_to_exitcode(status)
            channel.sendall(json.dumps(answer).encode() + b"\n")
    for pid in running:
        os.kill(pid, signal.SIGKILL)
    return 0


def _child(argv: list[str], code: str, cwd: str, out: str, err: str, env: dict[str, str]) -> NoReturn:
    result = 1
    try:
        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(env)
        random.seed()
        result = _done(argv, code)
    except BaseException:
        traceback.print_exc()
    with suppress(BaseException):
        atexit._run_exitfuncs()
        sys.stdout.flush()
    os._exit(result)


def _done(argv: list[str], code: str) -> int:
    """The exit code of the script or the command line."""
    try:
        if code:
            sys.argv = ["-c", *argv]
            exec(code, {"__name__": "__main__"})
        else:
            from prefkit.cli.main import main

            sys.argv = ["prefkit", *argv]
            main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0
