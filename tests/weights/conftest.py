"""What the tests on published weights share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ASSETS = Path(__file__).parents[2] / "pipelines/mesh/assets.py"


@pytest.fixture(scope="session")
def networks(tmp_path_factory):
    """Folder of BlazePose's two networks, from the wheel of mediapipe, which is downloaded but not installed."""
    folder = tmp_path_factory.mktemp("networks")
    subprocess.run([sys.executable, str(ASSETS), str(folder), "--networks"], check=True, timeout=300)
    return folder
