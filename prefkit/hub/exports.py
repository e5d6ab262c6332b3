"""The export core: pairs -> a folder in another trainer's layout, whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefkit import registry
from prefkit.errors import UsageError
from prefkit.hub.pairs_in import Pairs
from prefkit.store.litter import sweep_beside, temporary_beside


def run_export(
    pairs: str, out: str | Path, *, layout: str, flags: Mapping[str, Any] | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Write `pairs` to the folder `out` as `layout`. Returns counts. Raises UsageError; then `out` is as it was."""
    plugin = registry.load_class("exporter", layout)
    options = registry.options(plugin, dict(flags or {}), f"export --as {layout}")
    source = Pairs(pairs)
    out = Path(out).expanduser()
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not overwrite):
        raise UsageError(f"export: {out} is there already. Give another folder, or --overwrite to replace it.")
    if source.folder.resolve().is_relative_to(out.resolve()):
        raise UsageError(f"export: {out} holds the pairs themselves. Give another folder.")
    partial = temporary_beside(out)
    try:
        sweep_beside(out)
        partial.mkdir(parents=True)
        counts = plugin(options).write(source, partial)
        if not counts.get("pairs"):
            raise UsageError(f"export: {source.folder} holds no pair.")
        if out.exists():
            shutil.rmtree(out)
        os.replace(partial, out)
    except OSError as error:
        raise UsageError(f"export: {out} could not be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {"as": layout, "out": str(out), **counts}
