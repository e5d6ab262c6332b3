"""Devices and processes, by accelerate: what a launcher started, or this process alone."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

import torch
from torch import Tensor, nn

from prefkit.models.place import check_device

PATIENCE = timedelta(hours=24)  # others wait while one process computes a cache
BUCKET = 32 * 1024 * 1024  # elements that are summed in one call


class Processes:
    """rank of `count` processes, on `device`."""

    def __init__(self, device: str | None = None) -> None:
        from accelerate import PartialState

        check_device(device or "cpu")
        state = PartialState(cpu=device == "cpu", timeout=PATIENCE)
        self.state = state
        self.rank, self.count, self.main = state.process_index, state.num_processes, state.is_main_process
        own = torch.device(device) if device and self.count == 1 else state.device
        assert own is not None
        self.device: torch.device = own

    def wait(self) -> None:
        self.state.wait_for_everyone()

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, on the tensor's own device."""
        if self.count == 1:
            return tensor
        moved = tensor.to(self.device)
        torch.distributed.all_reduce(moved)
        return moved.to(tensor.device)

    def most(self, number: int) -> int:
        """The largest of all processes' numbers."""
        if self.count == 1:
            return number
        found = torch.tensor(number, device=self.device)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
        return int(found)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over all processes; a missing one counts as zero."""
        if self.count == 1:
            return
        bucket: list[Tensor] = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if bucket and (sum(g.numel() for g in bucket) > BUCKET or bucket[0].dtype != parameter.grad.dtype):
                _sum_bucket(bucket)
                bucket = []
            bucket.append(parameter.grad)
        _sum_bucket(bucket)


def _sum_bucket(gradients: list[Tensor]) -> None:
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
