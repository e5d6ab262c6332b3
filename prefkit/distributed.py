"""Processes and devices: the rank, barriers, work of the first process alone, shares of a list, sums of tensors.

`group()` is what a launcher started (`accelerate launch`, torchrun, or RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set
by hand), else this process alone. Its processes talk through the launch's key-value store, so a barrier takes no NCCL or
gloo and has no timeout: it ends when all have come, or when one of them is dead (prefkit.heartbeat). `Processes` adds the
collectives of training.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from prefkit import errors, output
from prefkit.errors import PrefkitError, ProcessError, UsageError
from prefkit.heartbeat import START, Heartbeat, store_lost

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

#: of one collective. Work of the first process alone has a barrier of the store behind it, which takes as long as it takes
TIMEOUT = timedelta(minutes=30)
BUCKET = 32 * 1024 * 1024  # elements that are summed in one call
T = TypeVar("T")


class Group:
    """Process `rank` of `count`. Without a store they share work, but cannot wait for each other.

    All processes must make the same calls in the same order. Values travel as JSON.
    """

    def __init__(self, rank: int = 0, count: int = 1, store: Any = None, hosting: bool = False) -> None:
        self._rank, self._count, self._store, self._hosting = rank, count, store, hosting
        self._leading = False  # inside `lead` the first process works as if it were alone
        self._calls = 0
        self._said: Counter[str] = Counter()
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
        """Whether there is nobody to wait for."""
        return self._store is None or self._leading

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of a list that all of them have."""
        return list(items[self.rank :: self.count])

    # -- meetings -------------------------------------------------------------------------------------------------
    def wait(self) -> None:
        """Until all processes have come here. Raises ProcessError where one of them has failed."""
        self.gather(None)

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank."""
        if self.alone:
            return [value]
        self._calls += 1
        keys = [f"{self._calls}/{rank}" for rank in range(self._count)]
        self._put(keys[self._rank], value)
        return self._take(keys)

    def broadcast(self, value: T) -> T:
        """The first process's value, in all processes."""
        if self.alone:
            return value
        self._calls += 1
        if self.main:
            self._put(f"{self._calls}/0", value)
            return value
        found: T = self._take([f"{self._calls}/0"])[0]
        return found

    def lead(self, work: Callable[[], T]) -> T:
        """`work` by the first process, while the others wait. All get what it returns, or its error."""
        if self.alone:
            return work()
        if not self.main:
            said: Any = self.broadcast(None)
            found: T = _result(said)
            return found
        self._leading = True
        try:
            value = work()
        except Exception as error:
            self._leading = False
            self.broadcast({"error": _described(error)})
            raise
        finally:
            self._leading = False
        self.broadcast({"value": value})
        return value

    def each(self, work: Callable[[], T]) -> list[T]:
        """`work` by every process. All get all results, by rank; where one raises an error, all do."""
        if self.alone:
            return [work()]
        try:
            said: dict[str, Any] = {"value": work()}
        except Exception as error:
            self.gather({"error": _described(error)})
            raise
        return [_result(found) for found in self.gather(said)]

    @contextmanager
    def held(self, *locks: AbstractContextManager[None]) -> Iterator[None]:
        """Hold locks for all processes: the first one takes them, and frees them when all have left."""
        with ExitStack() as stack:
            self.lead(lambda: [stack.enter_context(lock) for lock in locks] and None)
            yield
            self.wait()

    def first_to_say(self, text: str) -> bool:
        """Whether no other process has said this, as often as this one, before: then it is this one that prints it."""
        if self.alone:
            return True
        self._said[text] += 1
        key = f"said/{self._said[text]}/{text}"
        try:
            first: bytes = self._store.compare_set(key, "", str(self._rank))
        except RuntimeError:
            return True
        return first.decode() == str(self._rank)

    def failure(self) -> ProcessError | None:
        """What has ended another process, asked now. An error of a collective has its cause there."""
        if self.heart is None:
            return None
        self.heart.look()
        return self.heart.failure

    def end(self, code: int) -> None:
        """Tell the others that this process ends. An exit code other than 0 ends them too."""
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


def _described(error: Exception) -> dict[str, Any]:
    found = {"kind": type(error).__name__, "text": str(error), "code": getattr(error, "exit_code", 1)}
    return found | {"state": vars(error) if isinstance(error, PrefkitError) else {}}


def _result(said: dict[str, Any]) -> Any:
    """What another process returned. Raises its error, marked as told by that process."""
    if "error" not in said:
        return said["value"]
    given = said["error"]
    kind = getattr(errors, given["kind"], None)
    if isinstance(kind, type) and issubclass(kind, PrefkitError):
        error: PrefkitError = kind.__new__(kind, given["text"])  # what a kind asks of its maker is in its state
        vars(error).update(given["state"])
    else:
        error = ProcessError(f"{given['kind']}: {given['text']}")
    error.exit_code, error.elsewhere = given["code"], True
    raise error


# -- this process's group ---------------------------------------------------------------------------------------------
_connected: Group | None = None


def group() -> Group:
    """All processes of the launch that this one belongs to, or this one alone."""
    global _connected
    if _connected is not None:
        return _connected
    rank, count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or "MASTER_ADDR" not in os.environ:
        return Group(rank, count)
    _connected = _connect(rank, count)
    output.main, output.first_to_say = rank == 0, _connected.first_to_say
    atexit.register(_at_exit)
    return _connected


def _connect(rank: int, count: int) -> Group:
    from torch.distributed import PrefixStore, rendezvous

    try:
        store, *_ = next(rendezvous("env://", rank, count, timeout=timedelta(seconds=START)))
    except (RuntimeError, ValueError) as error:
        raise ProcessError(f"process {rank} of {count} does not reach the others at {os.environ['MASTER_ADDR']}: "
                           f"{' '.join(str(error).split())[:200]}") from error  # fmt: skip
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # the launcher's store outlives a failed attempt
    hosting = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    return Group(rank, count, PrefixStore(f"prefkit/{attempt}", store), hosting)


def end(code: int) -> None:
    """Leave the group, if there is one, with the exit code of this process."""
    if _connected is not None:
        _connected.end(code)


def _at_exit() -> None:
    end(1 if hasattr(sys, "last_value") else 0)  # set by an exception that nobody caught


# -- devices ----------------------------------------------------------------------------------------------------------
def check_device(wanted: str) -> None:
    """Raises UsageError for a device that torch does not know, or that is not there."""
    import torch

    kind, _, index = wanted.partition(":")
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind not in there or (index and not index.isdigit()):
        raise UsageError(f"device {wanted!r} is not known; choose cpu, cuda or mps.")
    if not there[kind]:
        raise UsageError(f"device {wanted!r}: this machine, or its torch, has no {kind}; leave device out or give cpu.")
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise UsageError(
            f"device {wanted!r}: this process sees {torch.cuda.device_count()} GPUs, counted from 0. Give cuda."
        )


def device_of(wanted: str | None) -> str:
    """The device asked for, else the best there is. Without an index, `cuda` is this process's own GPU under a launcher."""
    import torch

    if wanted:
        check_device(wanted)
    kind = wanted or ("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    return f"cuda:{_own_gpu()}" if kind == "cuda" else kind


def _own_gpu() -> int:
    """By LOCAL_RANK, else RANK, of the GPUs that this process sees: a launcher may show each process its own one alone."""
    import torch

    rank = os.environ.get("LOCAL_RANK", os.environ.get("RANK"))
    index = int(rank or "0") % max(1, torch.cuda.device_count())
    if rank is not None:
        torch.cuda.set_device(index)  # what names no device goes there too, and not to the first GPU
    return index


# -- training ---------------------------------------------------------------------------------------------------------
class Processes:
    """rank of `count` processes, on `device`, with collectives for tensors."""

    def __init__(self, device: str | None = None) -> None:
        import torch
        from accelerate import PartialState

        # without a GPU, accelerate must be told that it is the CPU: else every process is alone
        state = PartialState(cpu=device_of(device).startswith("cpu"), timeout=TIMEOUT)
        self.group = group()
        self.rank, self.count, self.main = state.process_index, state.num_processes, state.is_main_process
        if self.count != self.group.count:
            raise ProcessError(f"the launch has {self.group.count} processes, and accelerate, which was set up before, knows "
                               f"{self.count}. Start the training with a command of its own.")  # fmt: skip
        own = torch.device(device_of(device)) if device and self.count == 1 else state.device
        assert own is not None
        self.device: torch.device = own

    def wait(self) -> None:
        self.group.wait()

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, on the tensor's own device."""
        import torch

        if self.count == 1:
            return tensor
        moved = tensor.to(self.device)
        self._reduce(moved, torch.distributed.ReduceOp.SUM)
        return moved.to(tensor.device)

    def most(self, number: int) -> int:
        """The largest of all processes' numbers."""
        import torch

        if self.count == 1:
            return number
        found = torch.tensor(number, device=self.device)
        self._reduce(found, torch.distributed.ReduceOp.MAX)
        return int(found)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over all processes; a missing one counts as zero."""
        import torch

        if self.count == 1:
            return
        bucket: list[Tensor] = []
        elements = 0
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if bucket and (elements > BUCKET or bucket[0].dtype != parameter.grad.dtype):
                self._sum_bucket(bucket)
                bucket, elements = [], 0
            bucket.append(parameter.grad)
            elements += parameter.grad.numel()
        self._sum_bucket(bucket)

    def _sum_bucket(self, gradients: list[Tensor]) -> None:
        import torch

        if not gradients:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        self._reduce(flat, torch.distributed.ReduceOp.SUM)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def _reduce(self, tensor: Tensor, how: Any) -> None:
        """In place. Raises ProcessError where another process is gone."""
        import torch

        try:
            torch.distributed.all_reduce(tensor, how)
        except RuntimeError as error:
            raise self.group.failure() or ProcessError(
                f"another process has ended in the middle of a step ({' '.join(str(error).split())[:160]}). What was done "
                "is kept; the same command continues."
            ) from error
