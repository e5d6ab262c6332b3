"""The result, as diffusers reads it: an adapter file, or a whole pipeline with the new denoiser in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefkit.config import Model
from prefkit.models import adapters
from prefkit.models.load import load_pipeline
from prefkit.train.checkpoint import whole_folder
from prefkit.train.reference import Policy


def export(policy: Policy, denoiser: str, model: Model, folder: Path) -> Path:
    """Replace `folder` by the result: the start's adapters and the new one in one file, or a pipeline folder."""
    with whole_folder(folder) as temporary:
        if policy.lora is not None:
            adapters.export_adapter(policy.net, denoiser, temporary)
        else:
            _pipeline(policy, denoiser, model).save_pretrained(temporary, safe_serialization=True)
    return folder


def _pipeline(policy: Policy, denoiser: str, model: Model) -> Any:
    pipe = load_pipeline(
        model.base,
        revision=model.revision,
        parts=None,
        config=model.config,
        trust_remote_code=model.trust_remote_code,
    )
    getattr(pipe, denoiser).load_state_dict(policy.net.state_dict())
    return pipe
