from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prefkit.models.load.pipeline import load_pipeline

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(folders: dict[str, Path]) -> dict[str, Path]:
    """Folders of all tiny pipelines by kind."""
    return folders


@pytest.fixture
def load(tiny: dict[str, Path]) -> Callable[..., Any]:
    """load(kind, **options): a fresh pipeline."""
    return lambda kind, **options: load_pipeline(tiny[kind], **options)
