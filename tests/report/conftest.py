from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("report_synthetic", Path(__file__).with_name("synthetic.py"))
assert SPEC is not None and SPEC.loader is not None
synthetic = importlib.util.module_from_spec(SPEC)
sys.modules["report_synthetic"] = synthetic
SPEC.loader.exec_module(synthetic)


@pytest.fixture(scope="session")
def full(tmp_path_factory):
    return synthetic.full_run(tmp_path_factory.mktemp("runs") / "full <run>")


@pytest.fixture(scope="session")
def page(full):
    from prefkit.report import write_report

    return write_report(full).read_text()
