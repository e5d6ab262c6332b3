"""A mesh model and plug-ins for runs of meshes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from prefkit.mesh.diffusion.network import MeshDenoiser, write_model

sys.path.insert(0, str(Path(__file__).parent))

from bodies import PLUGINS


@pytest.fixture(scope="session")
def mesh_model(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    return write_model(tmp_path_factory.mktemp("mesh") / "model", MeshDenoiser(18, width=32, hidden=48, depth=1))


@pytest.fixture(scope="session")
def plugins(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("mesh plugins") / "people.py"
    path.write_text(PLUGINS)
    return path
