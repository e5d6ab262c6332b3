"""Skips these tests without `-m weights`: they import packages of tests/weights/requirements.txt, which dev lacks.

With `-m weights` a missing package is an error.
"""

from __future__ import annotations


def pytest_ignore_collect(collection_path, config):
    chosen = config.option.markexpr
    return None if "weights" in chosen and "not weights" not in chosen else True
