"""Sums of tensors over the processes of a training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from prefkit.distributed import device_of, group
from prefkit.errors import ProcessError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

#: limit for one collective on tensors; waiting through the key-value store has no limit
TIMEOUT = timedelta(minutes=30)
BUCKET = 32 * 1024 * 1024  # gradient elements that one all-reduce sums (approximately)


class Processes:
    """Collectives on tensors for training in several processes. This one is process `rank` of `count`, on `device`."""

    def __init__(self, device: str | None = None) -> None:
        import torch
        from accelerate import PartialState

        # on a machine without a GPU, accelerate would treat every process as alone unless cpu=True
        state = PartialState(cpu=device_of(device).startswith("cpu"), timeout=TIMEOUT)
        self.group = group()
        self.rank, self.count, self.main = state.process_index, state.num_processes, state.is_main_process
        if self.count != self.group.count:
            raise ProcessError(
                f"the launch has {self.group.count} processes, but accelerate was already set up for {self.count}. "
                "Start the training with a separate command."
            )
        chosen = torch.device(device_of(device)) if device and self.count == 1 else state.device
        assert chosen is not None
        self.device: torch.device = chosen

    def wait(self) -> None:
        self.group.wait()

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of `tensor` over all processes, on the tensor's device."""
        import torch

        if self.count == 1:
            return tensor
        moved = tensor.to(self.device)
        self._reduce(moved, torch.distributed.ReduceOp.SUM)
        return moved.to(tensor.device)

    def max(self, number: int) -> int:
        """Return the maximum of `number` over all processes."""
        import torch

        if self.count == 1:
            return number
        largest = torch.tensor(number, device=self.device)
        self._reduce(largest, torch.distributed.ReduceOp.MAX)
        return int(largest)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over all processes; a missing gradient counts as zero."""
        import torch

        given = list(parameters)
        for parameter in given:  # in a single process too, so that weight decay is the same
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.count == 1:
            return
        bucket: list[Tensor] = []
        elements = 0
        for parameter in given:
            assert parameter.grad is not None
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
        """All-reduce `tensor` in place. Raises ProcessError if another process has ended."""
        import torch

        with self._explained():
            torch.distributed.all_reduce(tensor, how)

    def start_sum(self, tensor: Tensor) -> Callable[[], None]:
        """Start to sum `tensor` over all processes in place; the returned function waits for the end.

        All processes must start their sums, and make their other calls, in the same order. Raises ProcessError.
        """
        import torch

        with self._explained():
            handle = torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.SUM, async_op=True)

        def wait() -> None:
            with self._explained():
                handle.wait()

        return wait

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Context that turns the error of a collective into a ProcessError that names the process that has ended."""
        try:
            yield
        except RuntimeError as error:
            raise self.group.failure() or ProcessError(
                f"another process has ended during a step ({' '.join(str(error).split())[:160]}). Finished work is "
                "kept; run the same command again to continue."
            ) from error
