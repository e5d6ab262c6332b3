"""`max_hours`: how many steps the time pays for, found by timing a few of them before the first.

    steps = (hours - fixed) / each
    each  = step + measurement / validate_every + look / watch_every + checkpoint / checkpoint_every

step    the median of TIMED steps after WARM ones that compile, allocate and fill the loader
fixed   whatever passed since the command began (caches, loading, this probe), loading and warming up once more, three
        measurements (the reference, the start, the end), two looks, the last checkpoint, and as much again for the export
The probe has a network of its own, so it changes nothing. `each` and `fixed` are written to budget.json in the training's
folder and looked up from its first checkpoint on, so a resumed training keeps its steps whatever the clock says; other
hours, at a constant rate, are other steps at the same pace. `steps` is the ceiling. What follows, the fingerprint too, is
a training of the steps that were found, with warm-up in proportion.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

from prefkit import output
from prefkit.config import Train
from prefkit.errors import UsageError
from prefkit.store.files import read_json, write_json
from prefkit.store.litter import temporary_beside
from prefkit.train import diagnose as failures
from prefkit.train.data.prompt_cache import prepared
from prefkit.train.monitor.metrics import Log

WARM, TIMED = 2, 5
HOUR = 3600.0
FILE = "budget.json"

clock = time.monotonic


def applied(config: Train, written: dict[str, Any] | None) -> Train:
    """The training that is made: `steps` and `warmup` as the written budget allows. Without one, as configured."""
    if config.max_hours is None or written is None:
        return config
    steps = min(config.steps, max(1, _affordable(config.max_hours, written)))
    return replace(config, steps=steps, warmup=round(config.warmup * written["warmup_share"]))


def written(folder: Path) -> dict[str, Any] | None:
    """The budget that was decided for the training in `folder`, if one was."""
    return read_json(folder / FILE) if (folder / FILE).exists() else None


def decide(make_loop: Callable[[], Any], began: float) -> dict[str, Any]:
    """Time the steps of a loop made for it, and write the budget; every process takes the main one's numbers.

    began: the clock when the command began. Raises UsageError where the time does not pay for one step.
    """
    made = clock()
    loop = make_loop()
    config, name = loop.config, loop.folder.name
    seconds, again = _probe(loop, made)
    seconds = _agreed(loop.processes, seconds | {"again": again, "passed": clock() - began})
    step, measurement, checkpoint = (seconds[key] for key in ("step", "measurement", "checkpoint"))
    each = step + measurement / config.validate_every + checkpoint / config.checkpoint_every
    each += seconds["look"] / config.watch_every
    fixed = seconds["passed"] + seconds["again"] + 3 * measurement + 2 * seconds["look"] + 2 * checkpoint
    paid = _affordable(config.max_hours, {"each": each, "fixed": fixed})
    if paid < 1:
        raise UsageError(f"train {name}: max_hours {config.max_hours:g} pays for no step: {output.duration(fixed)} are gone or "
                         f"fixed, and a step takes {step:.3g} s. Allow more, or make steps cheaper (batch_size, "
                         "accumulation, resolution).")  # fmt: skip
    found = {"each": each, "fixed": fixed, "warmup_share": min(1.0, paid / config.steps), "seconds": seconds}
    if loop.processes.main:
        write_json(loop.folder / FILE, found)
        what = f"{paid} steps" if paid < config.steps else f"the {config.steps} `steps` and more"
        output.note(f"train {name}: max_hours {config.max_hours:g} pays for {what}: {step:.3g} s a step, {measurement:.3g} s a "
                    f"measurement, {checkpoint:.3g} s a checkpoint, {output.duration(fixed)} beside them.")  # fmt: skip
    loop.processes.wait()
    return found


def _affordable(hours: float | None, found: dict[str, Any]) -> int:
    assert hours is not None
    return int((hours * HOUR - found["fixed"]) / found["each"])


def _probe(loop: Any, made: float) -> tuple[dict[str, float], float]:
    """Seconds of a step, a measurement and a checkpoint, and those from `made` to the first step that is timed."""
    aside = temporary_beside(loop.folder / "probe")
    loop.folder = aside / loop.folder.name
    cached = [step % loop.config.steps for step in range(WARM + TIMED)]
    ends = [clock()]
    try:
        with failures.in_step(loop):
            for micro_batches in prepared(loop, cached, window=1):
                loop.update(loop.accumulate(micro_batches))
                if loop.processes.device.type == "cuda":
                    torch.cuda.synchronize(loop.processes.device)
                ends.append(clock())
            measured = _seconds(lambda: loop.measure(reference=False)) if loop.validation is not None else 0.0
            looked = _seconds(lambda: _look(loop)) if loop.looks is not None else 0.0
            saved = _seconds(loop.save)
    finally:
        loop.folder = aside.parent
        if loop.processes.main:
            shutil.rmtree(aside, ignore_errors=True)
    steps = [end - begun for begun, end in pairwise(ends)]
    return {"step": median(steps[WARM:]), "measurement": measured, "look": looked, "checkpoint": saved}, ends[
        WARM
    ] - made


def _look(loop: Any) -> None:
    """As at the start, whose images will take the place of these."""
    log = Log(loop.folder / "metrics.jsonl", 0, "none") if loop.processes.main else None
    loop.looks.look(loop, log)
    if log is not None:
        log.close()


def _seconds(work: Callable[[], Any]) -> float:
    begun = clock()
    work()
    return clock() - begun


def _agreed(processes: Any, seconds: dict[str, float]) -> dict[str, float]:
    """The main process's numbers, on every process: zeros from the others leave them as they are."""
    own = torch.tensor(list(seconds.values()), dtype=torch.float64) * float(processes.main)
    return dict(zip(seconds, processes.sum(own).tolist(), strict=True))
