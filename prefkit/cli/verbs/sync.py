"""sync: copy a run's tables to and from a folder or an object store."""

from __future__ import annotations

import argparse
from pathlib import Path

from prefkit import output
from prefkit.errors import UsageError

POSITIONAL = ("RUN", "run folder; created if the target has one")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target", nargs="?", metavar="TARGET", help="s3://bucket/run, another URL of fsspec, or a folder"
    )


def act(known: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    from prefkit.hub.sync import sync

    if not known.run_folder or not known.target or known.recipe or flags:
        raise UsageError(
            "sync takes a run folder and a target, and no other setting: prefkit sync RUN s3://bucket/run."
        )
    output.emit(sync(Path(known.run_folder), known.target), known.json)
    return 0
