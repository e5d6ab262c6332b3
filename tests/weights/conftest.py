"""Leaves these tests out of every run without `-m weights`: they import packages that only tests/weights/requirements.txt names.

With `-m weights` a missing package is an error.
"""

from __future__ import annotations


def pytest_ignore_collect(collection_path, config):
    chosen = config.option.markexpr
    return None if "weights" in chosen and "not weights" not in chosen else True
