"""Text encoders that can have a LoRA: CLIP's, in those components that diffusers' LoRA files can hold.

A file of SD 1 and 2 can hold text_encoder; of SDXL and SD 3, text_encoder and text_encoder_2; of FLUX, text_encoder. T5
and language models are left out, because diffusers (0.42.1) and ComfyUI cannot load adapters for them from such a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefkit.config import Model
from prefkit.errors import UsageError
from prefkit.models.meta import components
from prefkit.tiny import located

#: the layers that get an adapter: the attention projections, as in diffusers' training scripts
TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")


def encoders_of(pipe: Any) -> dict[str, Any]:
    """Return {component name: text encoder} of all text encoders that can have a LoRA. Raises UsageError if none can."""
    classes = {name: type(part).__name__ for name, part in pipe.components.items() if part is not None}
    return {name: getattr(pipe, name) for name in _names(type(pipe), classes)}


def check_text_encoders(model: Model) -> None:
    """Raise UsageError if no text encoder can have a LoRA. Reads no weights; checks local folders only."""
    import diffusers

    source = str(located(model.base))
    if not (Path(source) / "model_index.json").is_file():
        return
    index = diffusers.DiffusionPipeline.load_config(source)
    kind = getattr(diffusers, str(index["_class_name"]), None)  # a list for a pipeline with its own code
    if isinstance(kind, type):
        _names(kind, {name: entry[1] for name, entry in components(source, None).items()})


def _names(kind: type, classes: Mapping[str, str]) -> list[str]:
    """Return the names of the text encoders that can have a LoRA. kind: pipeline class; classes: class names."""
    held = getattr(kind, "_lora_loadable_modules", ())
    names = [name for name in held if name.startswith("text_encoder")]
    names = [name for name in names if classes.get(name, "").startswith("CLIPTextModel")]
    if not names:
        own = [f"{name} ({value})" for name, value in classes.items() if name.startswith("text_encoder")]
        raise UsageError(
            f"train.NAME.lora.text_encoder is true, but {kind.__name__} has no CLIP text encoder that a LoRA file of "
            f"diffusers can hold. Its text encoders: {', '.join(own) or 'none'}. Remove the key."
        )
    return names
