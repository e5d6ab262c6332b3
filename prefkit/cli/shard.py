"""`--shard I/N`: one of N workers that share the work of generate, score or eval and need nothing but the run folder.

A worker makes its share of all wanted items, whether they exist or not, so workers that start at different times, twice
or with another N never leave an item out. The flag is explicit: schedulers set their variables in every job, also in a
job array over recipes or seeds, where a command that silently made a fraction of the work would be wrong.
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from prefkit import distributed
from prefkit.errors import UsageError
from prefkit.output import note, shell_quoted

#: variables of (index, number) of a worker, and the scheduler that sets them
VARIABLES = {
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"): "a Slurm job array",
    ("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS"): "an indexed Kubernetes job",
    ("SKYPILOT_NODE_RANK", "SKYPILOT_NUM_NODES"): "SkyPilot",
    ("RANK", "WORLD_SIZE"): "a launcher",
}
HELP = (
    "work as worker I (from 0) of N that share the work and need nothing but the run folder: --shard 2/8. auto: take I "
    "and N from the scheduler's variables (Slurm array, Kubernetes index, SkyPilot, RANK)"
)
#: flags that change what other workers are writing to, or that do something else
EXCLUDED = {
    "redo": "--redo moves tables to which other workers may be writing. Run it once with --limit 1 and without --shard, "
    "then start the workers",
    "check": "--check tests a scorer. Leave --shard out",
    "serve": "--serve answers requests of other processes. Leave --shard out",
}


def use(verb: str, known: argparse.Namespace) -> None:
    """Make this process the worker that `known.shard` names. Raises UsageError."""
    if known.help:
        return
    for key, reason in EXCLUDED.items():
        if getattr(known, key, None):
            raise UsageError(f"{verb}: {reason}.")
    text = known.shard
    index, count = automatic() if text == "auto" else parsed(text)
    size = os.environ.get("WORLD_SIZE", "1")
    if text != "auto" and size != "1" and "MASTER_ADDR" in os.environ:
        raise UsageError(
            f"--shard {text}: this process also belongs to a launch of {size} processes, which would all do the same "
            "work. Start it without the launcher, or use --shard auto, with which each of them is a worker."
        )
    if known.dry_run:
        note("--dry-run shows the work of all workers together.")
        return
    distributed.use_shard((index, count))
    note(f"worker {index} of {count} (counted from 0): {verb} does this worker's share of the work.")


def parsed(text: str) -> tuple[int, int]:
    """Parse "I/N". Raises UsageError."""
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if match is None:
        raise UsageError(
            f"--shard {text[:40]!r}: write I/N, two whole numbers such as 0/8 for the first of 8 workers, or auto."
        )
    index, count = int(match[1]), int(match[2])
    if not count:
        raise UsageError(f"--shard {text}: the number of workers is 0. Write 0/1 for a single worker.")
    if index >= count:
        raise UsageError(
            f"--shard {text}: workers are counted from 0, so the last of {count} is {count - 1}/{count}. In a Slurm "
            f"script, use --array=0-{count - 1}."
        )
    return index, count


def automatic() -> tuple[int, int]:
    """Return (index, number) of this worker from the scheduler's variables. Raises UsageError if there are none or several."""
    found = {index: _read(index, count) for index, count in VARIABLES if index in os.environ}
    several = {index: shard for index, shard in found.items() if shard[1] > 1}
    if len(set(several.values())) > 1:
        raise UsageError(
            f"--shard auto: {' and '.join(several)} are set and disagree. Write the worker's number: --shard I/N."
        )
    if not found:
        names = ", ".join(f"{index} ({where})" for (index, _), where in VARIABLES.items())
        raise UsageError(f"--shard auto: none of these variables is set: {names}. Write --shard I/N, such as 0/8.")
    return next(iter(several.values() or found.values()))


def _read(index: str, count: str) -> tuple[int, int]:
    """Return the values of a pair of VARIABLES. Raises UsageError."""
    texts = os.environ[index], os.environ.get(count)
    if texts[1] is None:
        raise UsageError(
            f"--shard auto: {index} is set, but {count} is not. Set {count} to the number of workers, or write --shard "
            f"${index}/N."
        )
    if index == "SLURM_ARRAY_TASK_ID":
        try:
            return _slurm(int(texts[0]), int(texts[1]))
        except ValueError as error:
            raise UsageError(
                "--shard auto: a variable SLURM_ARRAY_TASK_* is not a number. Write --shard I/N."
            ) from error
    try:
        return parsed("/".join(map(str, texts)))
    except UsageError as error:
        raise UsageError(f"--shard auto: {index}={texts[0]} and {count}={texts[1]} do not fit. {error}") from error


def _slurm(task: int, count: int) -> tuple[int, int]:
    """Return (index, number) of a task in an array such as 0-7, 1-8 or 0-14:2. Raises UsageError for one with gaps."""
    first, last, step = (
        int(os.environ.get(f"SLURM_ARRAY_TASK_{name}", default))
        for name, default in (("MIN", "0"), ("MAX", str(count - 1)), ("STEP", "1"))
    )
    if last - first != (count - 1) * step or not first <= task <= last:
        raise UsageError(
            f"--shard auto: task {task} is one of {count} in a Slurm array from {first} to {last}, so its tasks are not "
            f"numbered in equal steps. Use --array=0-{count - 1}, or write --shard I/N."
        )
    return (task - first) // step, count


def next_command(verb: str, folder: Path) -> str:
    """Return the hint after a worker's command."""
    what = (
        "makes what is missing, then compares" if verb == "eval" else "makes what is missing, and names the next step"
    )
    return f"when all workers have ended: prefkit {verb} {shell_quoted(folder)} ({what})"
