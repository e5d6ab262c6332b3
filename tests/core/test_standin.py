"""Everything on a stand-in for a GPU: the tests of tests/*/test_on_standin.py, in a process whose torch is patched."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import standin

TESTS = Path(__file__).parents[1]


@pytest.mark.standin
@pytest.mark.skipif(not standin.tested(), reason="the stand-in was tested with other versions of torch")
@pytest.mark.skipif(bool(os.environ.get("PREFKIT_TEST_DEVICE")), reason="this is the process of the stand-in")
def test_prefkit_on_a_card():
    files = sorted(map(str, TESTS.rglob("test_on_standin.py")))
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", "-m", "standin", *files]
    environment = os.environ | {"PREFKIT_TEST_DEVICE": "standin"}
    done = subprocess.run(command, env=environment, cwd=TESTS.parent, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-6000:]
    assert "skipped" not in done.stdout and int(re.findall(r"(\d+) passed", done.stdout)[0]) >= 25, done.stdout[-500:]
