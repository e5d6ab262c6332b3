"""The pipeline's modules, which import each other by their names."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

PIPELINES = Path(__file__).parents[2] / "pipelines"
MODULES = ("tables", "rule", "samplers", "world", "convert", "idx", "ceilings", "fashion_mnist")


@pytest.fixture
def fashion(monkeypatch):
    """The modules of pipelines/fashion, and pickles.py; forgotten afterwards, since other pipelines have the same names."""
    before = {name: sys.modules.pop(name, None) for name in (*MODULES, "pickles")}
    monkeypatch.syspath_prepend(str(PIPELINES))
    monkeypatch.syspath_prepend(str(PIPELINES / "fashion"))
    yield SimpleNamespace(**{name: __import__(name) for name in ("pickles", *MODULES)})
    for name, module in before.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module
