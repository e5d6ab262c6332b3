"""The engine `ray`: a pool of actors on a Ray cluster. A worker that ends is replaced, and its units are done again.

Actors are plain: Ray restarts nothing, because its restarts lose which units a worker had and have no useful limit. Rows
have ids, so a unit that was done twice does no harm. Only units, counts, warnings and errors travel through Ray.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any

import prefkit
from prefkit import distributed, interrupts, output
from prefkit.engines import Keep, Lost, Work
from prefkit.errors import ProcessError, UsageError

TRIES = 3  # workers that may end with a unit before it is lost; also, per worker of the pool, failed starts in a row
LOST_IN_A_ROW = 5  # lost units, with none done in between, after which the work ends
ANSWER = 10.0  # seconds within which the cluster at RAY_ADDRESS must accept a connection
CALL = 20.0  # seconds that the units of one call shall take together
PATIENCE = 60.0  # seconds without a finished call before the first message; the time doubles after each message
LOGS = "/tmp/ray/session_latest/logs on the worker's machine"
Units = Sequence[Any]


class Ray:
    """A pool of at most `workers` actors; None: one per GPU of the cluster, or per CPU if the work needs no GPU."""

    remote, width = True, 1

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers
        self.connected = False  # True if this object, not the calling program, has connected to the cluster

    def checking(self) -> AbstractContextManager[None]:
        return distributed.devices_elsewhere()

    def spread(self, work: Work, units: Units, keep: Keep) -> None:
        self.connected |= connect()
        pool = Pool(work, units, self.workers)
        self.width = pool.size
        workers = "1 Ray worker," if pool.size == 1 else f"{pool.size} Ray workers, each"
        output.note(f"{work.label}: {workers} with a {pool.resource}")
        with output.Progress(work.label, sum(map(len, units))) as progress:
            try:
                pool.start()
                for done, result in pool.results():
                    keep(done, result)
                    progress.update(sum(map(len, done)))
            finally:
                pool.close()

    def close(self) -> None:
        """Disconnect, after which Ray prints no more messages; a cluster that `connect` has started ends."""
        if self.connected:
            import ray

            ray.shutdown()
            self.connected = False


def connect() -> bool:
    """Connect to the cluster of RAY_ADDRESS or of this machine, or start one on this machine. Raises ProcessError.

    Returns False if this process is connected already.

    Ray's handler of SIGTERM is replaced by the previous one, which lets the command end the workers.
    """
    import ray

    if ray.is_initialized():
        return False
    check_address(os.environ.get("RAY_ADDRESS", ""))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    handlers = {number: signal.getsignal(number) for number in interrupts.SIGNALS}
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        where = os.environ.get("RAY_ADDRESS")
        cluster = f"the Ray cluster at RAY_ADDRESS={where}" if where else "a Ray cluster on this machine"
        raise ProcessError(
            f"could not connect to {cluster}: {output.message(str(error), 300)} Start one with `ray start --head`, or "
            "unset RAY_ADDRESS to use this machine alone."
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return True


def check_address(address: str) -> None:
    """Raise ProcessError if nothing answers at `address`, HOST:PORT: Ray would try again for minutes."""
    host, _, port = address.rpartition(":")
    if not port.isdigit() or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), ANSWER).close()
    except (OSError, OverflowError) as error:
        raise ProcessError(
            f"no Ray cluster answers at RAY_ADDRESS={address} ({error}). Correct the address, or unset it to use this "
            "machine alone."
        ) from error


class Actor:
    """A worker process. It returns warnings and errors, so that the command prints them."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.worker: Any = None

    def load(self, work: Work, folder: str, version: str) -> dict[str, Any]:
        """Load the model. folder: the working directory of the command. version: the command's version of prefkit."""
        distributed.use_shard((0, 1))  # without locks, which the command holds
        output.main, output.first_to_say = False, self._collect

        def load() -> None:
            if version != prefkit.__version__:
                raise UsageError(
                    f"the worker on {os.uname().nodename} has prefkit {prefkit.__version__}, and this command has "
                    f"{version}. Install the same version on all machines of the cluster."
                )
            try:
                os.chdir(folder)
            except OSError as error:
                raise UsageError(
                    f"the worker on {os.uname().nodename} cannot open {folder} ({error.strerror}). All machines of the "
                    "cluster must share the working directory of this command and the run folder."
                ) from error
            self.worker = work.worker(*work.arguments)

        return self._answer(load)

    def do(self, units: Units) -> dict[str, Any]:
        return self._answer(lambda: self.worker.do(units))

    def _answer(self, act: Callable[[], Any]) -> dict[str, Any]:
        """Return {"value" or "error", "warnings"}."""
        self.warnings.clear()
        try:
            message = {"value": act()}
        except Exception as error:
            message = {"error": distributed.described(error)}
        return message | {"warnings": list(self.warnings)}

    def _collect(self, text: str) -> bool:
        self.warnings.append(text)
        return False


class Pool:
    """The actors of one `spread`. A unit is waiting, or an actor has it, or its result was returned by `results`."""

    def __init__(self, work: Work, units: Units, workers: int | None) -> None:
        import ray

        cluster = ray.cluster_resources()
        kind = (work.device or ("cuda" if cluster.get("GPU") else "cpu")).partition(":")[0]
        self.resource = "GPU" if kind == "cuda" else "CPU"
        self.work, self.units = work, units
        self.size = min(len(units), workers or max(1, int(cluster.get(self.resource, 1))))
        self.remote = ray.remote(
            num_cpus=1, num_gpus=int(kind == "cuda"), max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD"
        )(Actor)
        self.waiting = deque(range(len(units)))  # indices of units
        self.ends: Counter[int] = Counter()  # how many workers ended with the unit
        self.starting: dict[Any, Any] = {}  # call of `load` -> actor
        self.idle: list[Any] = []
        self.busy: dict[Any, tuple[Any, list[int], float]] = {}  # call of `do` -> actor, units, start
        self.failed_starts = self.lost_in_a_row = self.done = 0
        self.seconds = 0.0  # of all finished calls
        self.last, self.patience = time.monotonic(), PATIENCE  # of the message that nothing has finished

    def start(self) -> None:
        for _ in range(self.size):
            self._start()

    def _start(self) -> None:
        actor = self.remote.remote()
        self.starting[actor.load.remote(self.work, os.getcwd(), prefkit.__version__)] = actor

    def results(self) -> Iterator[tuple[Units, Any]]:
        """Yield (units, result or Lost) until all units are done. Raises the error of a worker."""
        import ray

        while self.waiting or self.busy:
            while self.idle and self.waiting:
                actor, numbers = self.idle.pop(), self._take()
                call = actor.do.remote([self.units[n] for n in numbers])
                self.busy[call] = (actor, numbers, time.monotonic())
            timeout = max(0.1, self.last + self.patience - time.monotonic())
            ready, _ = ray.wait([*self.starting, *self.busy], num_returns=1, timeout=timeout)
            for call in ready:
                if call in self.starting:
                    self._started(call)
                else:
                    yield from self._finished(call)
            if time.monotonic() - self.last > self.patience:
                self._tell()

    def _take(self) -> list[int]:
        """Take the units of the next call from those that wait: a unit that ended a worker is alone in its call."""
        numbers = [self.waiting.popleft()]
        if self.ends[numbers[0]] or not self.done:
            return numbers
        most = min(CALL * self.done / max(self.seconds, 1e-9), len(self.waiting) / self.size)
        while self.waiting and len(numbers) < most and not self.ends[self.waiting[0]]:
            numbers.append(self.waiting.popleft())
        return numbers

    def _started(self, call: Any) -> None:
        actor = self.starting.pop(call)
        try:
            self._value(call)
        except end_errors() as error:
            self.failed_starts += 1
            if self.failed_starts >= TRIES * self.size:
                raise ProcessError(
                    f"{self.work.label}: {self.failed_starts} workers in a row ended before their model was loaded, the "
                    f"last with: {reason(error)}. Ray's logs show more ({LOGS})."
                ) from error
            self._replace(actor)
            return
        self.failed_starts = 0
        self.idle.append(actor)

    def _finished(self, call: Any) -> Iterator[tuple[Units, Any]]:
        actor, numbers, since = self.busy.pop(call)
        try:
            value = self._value(call)
        except end_errors() as error:
            self._replace(actor)
            yield from self._put_back(numbers, reason(error))
            return
        self.idle.append(actor)
        self.done += len(numbers)
        self.seconds += time.monotonic() - since
        self.lost_in_a_row, self.last, self.patience = 0, time.monotonic(), PATIENCE
        yield [self.units[n] for n in numbers], value

    def _put_back(self, numbers: list[int], why: str) -> Iterator[tuple[Units, Any]]:
        """Let the units of a worker that has ended wait again, behind all others, and yield those that are lost."""
        self.ends.update(numbers)
        self.waiting.extend(n for n in numbers if self.ends[n] < TRIES)
        for n in numbers:
            if self.ends[n] >= TRIES:
                self.lost_in_a_row += 1
                yield [self.units[n]], Lost(f"the worker process ended {TRIES} times during this batch: {why}")
        if self.lost_in_a_row >= LOST_IN_A_ROW:
            raise ProcessError(
                f"{self.work.label}: workers end again and again, the last one with: {why}. Ray's logs show more "
                f"({LOGS}). Finished work is kept."
            )

    def _value(self, call: Any) -> Any:
        """Return the value of a finished call. Raises the worker's error, or an error of `end_errors`."""
        import ray

        answer = ray.get(call)
        for text in answer["warnings"]:
            output.warn(text)
        if "error" in answer:
            raise distributed.revived(answer["error"])
        return answer["value"]

    def _replace(self, actor: Any) -> None:
        kill(actor)  # it may live on, if only the connection was lost
        self._start()

    def _tell(self) -> None:
        """Say that no call has finished for a while, and why."""
        import ray

        free, total = (
            int(resources.get(self.resource, 0)) for resources in (ray.available_resources(), ray.cluster_resources())
        )
        text = (
            f"{self.work.label}: no batch has finished for {time.monotonic() - self.last:.0f} s. {free} of {total} "
            f"{self.resource}s are free; {len(self.busy)} of {self.size} workers are at work, {len(self.starting)} load "
            f"their model or wait for a {self.resource}."
        )
        if self.busy:
            output.note(text)
        else:
            output.warn(f"{text} Add a machine to the cluster, or interrupt this command: finished work is kept.")
        self.patience *= 2

    def close(self) -> None:
        for actor in [*self.starting.values(), *self.idle, *(actor for actor, _, _ in self.busy.values())]:
            kill(actor)


def kill(actor: Any) -> None:
    import ray

    with suppress(Exception):  # the actor or the cluster is gone
        ray.kill(actor)


def end_errors() -> tuple[type[Exception], ...]:
    """Return the errors that mean that the worker has ended. All other errors would occur again."""
    from ray.exceptions import OutOfMemoryError, RayActorError

    return RayActorError, OutOfMemoryError


def reason(error: Exception) -> str:
    """Return the cause of a worker's end, without the lines about the actor's ids."""
    lines = [line.strip() for line in str(error).splitlines() if not line.startswith("\t")]
    return output.message(" ".join(lines), 300).rstrip(".")
