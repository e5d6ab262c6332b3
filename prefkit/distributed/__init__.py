"""Processes and devices: barriers, work that only rank 0 does, shards of lists.

`group()` returns the group of processes that were launched together, or this process alone. A launch is made by
`accelerate launch` or torchrun, or has RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set. Its processes communicate
through the launcher's key-value store, so a barrier needs neither NCCL nor gloo and has no timeout. A barrier ends when
all processes have arrived or one has died (prefkit.heartbeat). prefkit.distributed.collectives adds what training needs.
Workers of `--shard` are groups of their own: they share work by its ids alone, and neither communicate nor lock.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from hashlib import sha256
from typing import Any, TypeVar

from prefkit import errors, output
from prefkit.errors import PrefkitError, ProcessError, UsageError
from prefkit.heartbeat import START, Heartbeat, store_lost

T = TypeVar("T")


class Group:
    """The group of launched processes, as process `rank` of `count` sees it. Without a store, it cannot communicate.

    All processes must make the same calls in the same order. Values are sent as JSON.
    """

    def __init__(
        self, rank: int = 0, count: int = 1, store: Any = None, hosting: bool = False, sharded: bool = False
    ) -> None:
        self._rank, self._count, self._store, self._hosting = rank, count, store, hosting
        #: True for a worker of --shard: other workers may write to the same tables at any time
        self.sharded = sharded
        self._leading = False  # inside `lead`, rank 0 works as if it were alone
        self._calls = 0
        self._printed: Counter[str] = Counter()
        self.heart: Heartbeat | None = None
        if store is not None:
            self.heart = Heartbeat(store, rank, count)
            self.heart.meet()

    @property
    def rank(self) -> int:
        return 0 if self._leading else self._rank

    @property
    def count(self) -> int:
        return 1 if self._leading else self._count

    @property
    def main(self) -> bool:
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """True if this process has no other process to wait for."""
        return self._store is None or self._leading

    def share(self, items: Sequence[T]) -> list[T]:
        """Return this process's shard of `items`, which must be equal in all processes."""
        return list(items[self.rank :: self.count])

    def owns(self, key: str) -> bool:
        """Return True in one process, chosen by a hash of `key`: processes that know different keys never disagree."""
        return owner(key, self.count) == self.rank

    # -- communication --------------------------------------------------------------------------------------------
    def wait(self) -> None:
        """Wait for all processes. Raises ProcessError if one of them has failed."""
        self.gather(None)

    def gather(self, value: Any) -> list[Any]:
        """Return a list of the values of all processes, ordered by rank."""
        if self.alone:
            return [value]
        self._calls += 1
        keys = [f"{self._calls}/{rank}" for rank in range(self._count)]
        self._put(keys[self._rank], value)
        return self._take(keys)

    def broadcast(self, value: T) -> T:
        """Return rank 0's value in all processes."""
        if self.alone:
            return value
        self._calls += 1
        if self.main:
            self._put(f"{self._calls}/0", value)
            return value
        result: T = self._take([f"{self._calls}/0"])[0]
        return result

    def lead(self, work: Callable[[], T]) -> T:
        """Run `work` in rank 0 while the other processes wait. All return the result or raise the error."""
        if self.alone:
            return work()
        if not self.main:
            message: Any = self.broadcast(None)
            result: T = _result(message)
            return result
        self._leading = True
        try:
            value = work()
        except Exception as error:
            self._leading = False
            self.broadcast({"error": described(error)})
            raise
        finally:
            self._leading = False
        self.broadcast({"value": value})
        return value

    def each(self, work: Callable[[], T]) -> list[T]:
        """Run `work` in every process and return all results, ordered by rank. An error in one is raised in all."""
        if self.alone:
            return [work()]
        try:
            message: dict[str, Any] = {"value": work()}
        except Exception as error:
            self.gather({"error": described(error)})
            raise
        return [_result(each) for each in self.gather(message)]

    @contextmanager
    def held(self, *locks: AbstractContextManager[None]) -> Iterator[None]:
        """Hold `locks` for all processes: rank 0 acquires them, and releases them when all have left the block.

        Workers of --shard hold none.
        """
        if self.sharded:
            yield
            return
        with ExitStack() as stack:
            self.lead(lambda: [stack.enter_context(lock) for lock in locks] and None)
            yield
            self.wait()

    def first_to_say(self, text: str) -> bool:
        """True in the process that asks first about `text`. Of the n-th calls of all processes, one returns True."""
        if self.alone:
            return True
        self._printed[text] += 1
        key = f"printed/{self._printed[text]}/{text}"
        try:
            first: bytes = self._store.compare_set(key, "", str(self._rank))
        except RuntimeError:
            return True
        return first.decode() == str(self._rank)

    def failure(self) -> ProcessError | None:
        """Check now for a failed process. Returns its error (the likely cause of a collective's error), or None."""
        if self.heart is None:
            return None
        self.heart.look()
        return self.heart.failure

    def end(self, code: int) -> None:
        """Announce the end of this process; an exit code other than 0 ends the other processes too."""
        if self.heart is not None:
            self.heart.end(code, self._hosting)
            self.heart = self._store = None

    def _put(self, key: str, value: Any) -> None:
        try:
            self._store.set(key, json.dumps(value, default=str))
        except RuntimeError as error:
            raise store_lost(error) from error

    def _take(self, keys: list[str]) -> list[Any]:
        assert self.heart is not None
        pause = 0.002
        try:
            while not self._store.check(keys):
                self.heart.check()
                time.sleep(pause)
                pause = min(1.5 * pause, 0.2)
            return [json.loads(text) for text in self._store.multi_get(keys)]
        except RuntimeError as error:
            raise store_lost(error) from error


def owner(key: str, count: int) -> int:
    """Return which of `count` processes owns `key`."""
    return int.from_bytes(sha256(key.encode("utf-8", "surrogatepass")).digest()[:8], "big") % count


def described(error: Exception) -> dict[str, Any]:
    """Return an error as a dict, from which `revived` makes an error in another process."""
    state = vars(error) if isinstance(error, PrefkitError) else {}
    return {"kind": type(error).__name__, "text": str(error), "code": getattr(error, "exit_code", 1), "state": state}


def _result(message: dict[str, Any]) -> Any:
    """Return the value in another process's message, or raise the error in it, marked as reported elsewhere."""
    if "error" not in message:
        return message["value"]
    error = revived(message["error"])
    error.elsewhere = True
    raise error


def revived(error: dict[str, Any]) -> PrefkitError:
    """Return the error that `described` has described: of the same class, or a ProcessError."""
    name, text, code, state = (error[key] for key in ("kind", "text", "code", "state"))
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, PrefkitError):
        same: PrefkitError = kind.__new__(kind, text)  # without __init__: `state` holds all attributes
        vars(same).update(state)
    else:
        same = ProcessError(f"{name}: {text}")
    same.exit_code = code
    return same


# -- this process's group ---------------------------------------------------------------------------------------------
_connected: Group | None = None
_worker: Group | None = None


def use_shard(shard: tuple[int, int] | None) -> None:
    """Make this process worker `shard[0]` of `shard[1]` that share work without communication; None ends this."""
    global _worker
    _worker = None if shard is None else Group(*shard, sharded=True)


def group() -> Group:
    """Return the group of all processes in this launch, or of this process alone. Raises ProcessError, UsageError."""
    global _connected
    if _worker is not None:
        return _worker
    if _connected is not None:
        return _connected
    rank, count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Group()
    if "MASTER_ADDR" not in os.environ:
        raise UsageError(
            f"RANK={rank} and WORLD_SIZE={count} are set, but MASTER_ADDR is not, so the processes cannot communicate. "
            "Start them with accelerate launch or torchrun, unset both variables, or add --shard auto (generate, "
            "score, eval), which needs no communication."
        )
    _connected = _connect(rank, count)
    output.main, output.first_to_say = rank == 0, _connected.first_to_say
    atexit.register(_at_exit)
    return _connected


def _connect(rank: int, count: int) -> Group:
    from torch.distributed import PrefixStore, rendezvous

    try:
        store, *_ = next(rendezvous("env://", rank, count, timeout=timedelta(seconds=START)))
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        text = f"process {rank} of {count} cannot reach MASTER_ADDR {os.environ['MASTER_ADDR']}: {reason}"
        raise ProcessError(text) from error
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # a restarted launch gets the store of the failed one
    hosting = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    return Group(rank, count, PrefixStore(f"prefkit/{attempt}", store), hosting)


def end(code: int) -> None:
    """Announce to the group, if there is one, that this process ends with exit code `code`."""
    if _connected is not None:
        _connected.end(code)


def _at_exit() -> None:
    end(1 if hasattr(sys, "last_value") else 0)  # an uncaught exception sets sys.last_value


# -- devices ----------------------------------------------------------------------------------------------------------
_elsewhere = False


@contextmanager
def devices_elsewhere() -> Iterator[None]:
    """Context in which a GPU counts as present: other machines, which check it again, will do the work."""
    global _elsewhere
    before, _elsewhere = _elsewhere, True
    try:
        yield
    finally:
        _elsewhere = before


def check_device(wanted: str) -> None:
    """Raise UsageError for a device that torch does not know or this machine does not have."""
    import torch

    kind, _, index = wanted.partition(":")
    available = {"cpu": True, "cuda": _elsewhere or torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind not in available or (index and not index.isdigit()):
        raise UsageError(f"unknown device {wanted!r}; choose cpu, cuda or mps.")
    if not available[kind]:
        raise UsageError(f"device {wanted!r}: torch finds no {kind} here. Remove `device`, or set it to cpu.")
    if kind == "cuda" and index and not _elsewhere and int(index) >= torch.cuda.device_count():
        raise UsageError(
            f"device {wanted!r}: this process has {torch.cuda.device_count()} GPUs, numbered from 0. Use cuda."
        )


def device_of(wanted: str | None) -> str:
    """Return the requested device, or the best available one. `cuda` without an index becomes this process's GPU."""
    import torch

    if wanted:
        check_device(wanted)
    cuda = _elsewhere or torch.cuda.is_available()
    kind = wanted or ("cuda" if cuda else "mps" if torch.backends.mps.is_available() else "cpu")
    return f"cuda:{_local_gpu()}" if kind == "cuda" else kind


def _local_gpu() -> int:
    """Return this process's GPU index: LOCAL_RANK or RANK, modulo the number of GPUs that the process can see."""
    import torch

    rank = os.environ.get("LOCAL_RANK", os.environ.get("RANK"))
    index = int(rank or "0") % max(1, torch.cuda.device_count())
    if rank is not None:
        torch.cuda.set_device(index)  # for code that names no device
    return index
