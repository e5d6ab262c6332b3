"""prefkit: your idea of better, as preference data and a better diffusion model, with evidence."""

from __future__ import annotations

from typing import Any

__all__ = ["Run", "__version__", "scorer"]


def __getattr__(name: str) -> Any:
    """Public names load on first use, so that importing prefkit loads nothing heavy."""
    if name == "Run":
        from prefkit.api import Run

        return Run
    if name == "scorer":
        from prefkit.score.declare import scorer

        return scorer
    if name == "__version__":
        from importlib.metadata import version

        return version("prefkit")
    raise AttributeError(f"module 'prefkit' has no attribute {name!r}")
