"""Fit a scorer by name, for the command line and for Python."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefkit import registry
from prefkit.config import plugin_options
from prefkit.config.redo import move
from prefkit.distributed import group
from prefkit.errors import FingerprintError, PluginError
from prefkit.output import note
from prefkit.plugin_guard import described, guarded


def run_fit(name: str, values: Mapping[str, Any], redo: bool = False) -> dict[str, Any]:
    """Fit `name` with the options `values`. Returns its measurements, and as `out` the folder that it wrote.

    redo: move a folder that was fitted with other settings away, and fit again.

    Raises UsageError, PluginError.
    """
    kind = registry.load_class("fitter", name)
    options = plugin_options.options(kind, values, f"fit {name}")

    def fit() -> Any:
        with guarded(f"fitter {name}"):
            fitter = kind(options)
            return fitter.run() if getattr(kind, "shared", False) else group().lead(fitter.run)

    try:
        result = fit()
    except FingerprintError as error:
        if not redo or not error.folder:
            raise
        folder = Path(error.folder)
        note(f"moved {folder} to {group().lead(lambda: str(move(folder.parent, [folder.name])))}")
        result = fit()
    if not isinstance(result, dict):
        raise PluginError(f"fitter {name} returned {described(result)}; it must return a dict of its measurements.")
    out = getattr(options, "out", None)
    return result | ({"out": out or f"fitted/{name}"} if out is not None else {})
