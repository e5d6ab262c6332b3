"""Fit a scorer by name, for the command line and for Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefkit import registry
from prefkit.config import plugin_options
from prefkit.distributed import group
from prefkit.errors import PluginError
from prefkit.plugin_guard import described, guarded


def run_fit(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Fit `name` with the options `values`. Returns its measurements, and as `out` the folder that it wrote.

    Raises UsageError, PluginError.
    """
    kind = registry.load_class("fitter", name)
    options = plugin_options.options(kind, values, f"fit {name}")
    with guarded(f"fitter {name}"):
        fitter = kind(options)
        result: Any = fitter.run() if getattr(kind, "shared", False) else group().lead(fitter.run)
    if not isinstance(result, dict):
        raise PluginError(f"fitter {name} returned {described(result)}; it must return a dict of its measurements.")
    out = getattr(options, "out", None)
    return result | ({"out": out or f"fitted/{name}"} if out is not None else {})
