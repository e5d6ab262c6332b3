from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prefkit.models.load.pipeline import load_pipeline
from prefkit.testing import TINY_KINDS, tiny_pipeline

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of all tiny pipelines by kind."""
    root = tmp_path_factory.mktemp("tiny")
    return {kind: tiny_pipeline(kind, root / kind) for kind in TINY_KINDS}


@pytest.fixture
def load(tiny: dict[str, Path]) -> Callable[..., Any]:
    """load(kind, **options): a fresh pipeline."""
    return lambda kind, **options: load_pipeline(tiny[kind], **options)
