"""The result, as diffusers reads it: an adapter file, or a whole pipeline with the new denoiser in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefkit.config import Model
from prefkit.errors import DamagedError
from prefkit.models import adapters
from prefkit.models.load import load_pipeline
from prefkit.output import warn
from prefkit.store.checksums import check_folder
from prefkit.store.files import set_aside, sound_json
from prefkit.store.folders import whole_folder
from prefkit.train.reference import Policy


def export(policy: Policy, denoiser: str, model: Model, folder: Path) -> Path:
    """Replace `folder` by the result: the start's adapters and the new one in one file, or a pipeline folder."""
    with whole_folder(folder) as temporary:
        if policy.lora is not None:
            adapters.export_adapter(policy.net, denoiser, temporary)
        else:
            _pipeline(policy, denoiser, model).save_pretrained(temporary, safe_serialization=True)
    return folder


def sound_result(folder: Path) -> dict[str, Any] | None:
    """result.json of a training whose final/ is there; None where either is missing, or is damaged and was set aside.

    The training then goes on from its last checkpoint, and exports its result again.
    """
    found, final = sound_json(folder / "result.json"), folder / "final"
    if found is None or not final.is_dir():
        return None
    try:
        check_folder(final, "It is exported again.")
    except DamagedError as error:
        warn(f"{final} is set aside as {set_aside(final).name}: {error}")
        return None
    return found


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
