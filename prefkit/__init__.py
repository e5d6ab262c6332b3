"""prefkit turns your idea of "better" into preference data and a better diffusion model, with evidence."""

from __future__ import annotations

from typing import Any

__all__ = ["Run", "__version__", "scorer"]


def __getattr__(name: str) -> Any:
    """Import the public names on first use, so that `import prefkit` loads no heavy libraries."""
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
