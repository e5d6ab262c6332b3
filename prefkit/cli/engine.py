"""`--engine ray`: the work of generate, score and eval on a Ray cluster."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from importlib.util import find_spec

from prefkit import engines
from prefkit.errors import UsageError

HELP = (
    "ray: generate and score with workers on a Ray cluster, that of RAY_ADDRESS or of this machine; without a cluster, "
    "Ray starts one here. All machines must share the run folder. local (default): this process"
)
WORKERS = (
    "number of Ray workers, which may be more than the cluster has room for now (default: one per GPU, or per CPU "
    "without GPUs)"
)
#: flags that do something else, or divide the work in another way
EXCLUDED = {"shard": "--shard", "check": "--check", "serve": "--serve"}


def arguments(parser: argparse.ArgumentParser, number: Callable[[str], int]) -> None:
    """Add the flags. number: converts a text to a number above 0."""
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help=HELP)
    parser.add_argument("--workers", type=number, metavar="N", help=WORKERS)


def use(known: argparse.Namespace) -> None:
    """Make the engine in `known` the engine of all stages. Raises UsageError."""
    engines.use(None)
    if getattr(known, "engine", "local") == "local":
        if getattr(known, "workers", None):
            raise UsageError("--workers is the number of Ray workers: add --engine ray, or leave --workers out.")
        return
    for key, flag in EXCLUDED.items():
        if getattr(known, key, None):
            raise UsageError(f"--engine ray cannot be combined with {flag}. Leave one of them out.")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UsageError(
            f"--engine ray: this process belongs to a launch of {os.environ['WORLD_SIZE']} processes (WORLD_SIZE). Start "
            "the command without the launcher: Ray starts the workers."
        )
    if find_spec("ray") is None:
        raise UsageError('--engine ray needs Ray, on all machines of the cluster: pip install "prefkit[ray]"')
    if known.help:
        return
    from prefkit.engines.ray import Ray

    engines.use(Ray(known.workers))
