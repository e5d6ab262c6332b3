"""Shared parts of the training scripts: device and precision, learning rate schedule, and checkpoints."""

from __future__ import annotations

import ctypes
import math
import os
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch


class Machine:
    """The GPU if the machine has one, else the CPU, with bf16 autocast if it has bf16 matrix arithmetic."""

    def __init__(self, threads: int | None = None) -> None:
        if threads:
            torch.set_num_threads(threads)
        torch.set_flush_denormal(True)
        _keep_freed_memory()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.bf16 = torch.cuda.is_bf16_supported() if self.device == "cuda" else _cpu_has_bf16()

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.bf16)

    def __str__(self) -> str:
        return f"{self.device}, {torch.get_num_threads()} threads, {'bf16' if self.bf16 else 'fp32'}"


def _keep_freed_memory() -> None:
    """Let glibc keep freed blocks; by default it maps each large tensor again, which costs 20 % of a step on a CPU."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def _cpu_has_bf16() -> bool:
    flags = Path("/proc/cpuinfo")
    return flags.exists() and not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(
        flags.read_text(encoding="utf-8").split()
    )


def rate(step: int, steps: int, peak: float, warm_up: int) -> float:
    """Return the learning rate at a step: linear warm-up, then half a cosine down to 1 % of the peak."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    share = (step - warm_up) / max(steps - warm_up, 1)
    return peak * (0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2)


class Checkpoint:
    """The state of a run in one file, which is written atomically every few minutes."""

    def __init__(self, path: str | Path, every_s: float = 180) -> None:
        self.path, self.every_s, self.last = Path(path), every_s, time.monotonic()
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def load(self) -> dict[str, Any] | None:
        return torch.load(self.path, weights_only=True) if self.path.exists() else None

    def due(self) -> bool:
        return time.monotonic() - self.last > self.every_s

    def save(self, state: dict[str, Any]) -> None:
        part = self.path.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, self.path)
        self.last = time.monotonic()


def follow(trainer: Any, batch: int, losses: str) -> None:
    """Train from the step stored in OUT.pt to the last, printing losses and speed; write OUT every 500 steps and at the end.

    trainer: an object with args.out, machine, parameters, step, steps, advance() -> losses [N], state(), resume(state),
    publish(). batch: images per step. losses: their names, for the lines that are printed.
    """
    out = trainer.args.out
    checkpoint = Checkpoint(f"{out}.pt")
    if state := checkpoint.load():
        trainer.resume(state)
    print(f"{trainer.machine}; {sum(p.numel() for p in trainer.parameters) / 1e6:.2f}M parameters", flush=True)
    began, first, values = time.monotonic(), trainer.step, []
    while trainer.step < trainer.steps:
        values.append(trainer.advance())
        if trainer.step % 50 == 0:
            speed = (trainer.step - first) * batch / (time.monotonic() - began)
            means = " ".join(f"{value:.5f}" for value in torch.stack(values).mean(0).tolist())
            print(f"step {trainer.step}/{trainer.steps}  {losses}: {means}  {speed:.0f} img/s", flush=True)
            values = []
        if checkpoint.due() or trainer.step == trainer.steps:
            checkpoint.save(trainer.state())
        if trainer.step % 500 == 0 and trainer.step < trainer.steps:
            trainer.publish()
            print(f"step {trainer.step}: {out} written", flush=True)
    trainer.publish()
    print(f"step {trainer.step}: {out} written", flush=True)
