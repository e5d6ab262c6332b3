"""clean: remove what --redo moved to RUN/.old."""

from __future__ import annotations

import argparse

from prefkit import output
from prefkit.config import redo
from prefkit.errors import UsageError
from prefkit.store import Store

POSITIONAL = ("RUN", "run folder, or the folder that contains a fit")


def act(known: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    if not known.run_folder or known.recipe or flags:
        raise UsageError("clean takes a run folder and no other setting: prefkit clean RUN.")
    store = Store(known.run_folder)
    if not store.exists() and not (store.folder / redo.OLD).is_dir():  # a folder of fits has no run.json
        raise UsageError(
            f"{store.folder} is not a run folder: it has no run.json. Give the run folder, as in prefkit clean RUN."
        )
    moves, size = redo.clean(store)
    output.emit({"removed": moves, "MB": round(size / 1e6, 2)}, known.json)
    return 0
