"""Load a pipeline from a single weight file in the layout of the model's original code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefkit.errors import UsageError


def from_single_file(source: str, dtype: Any, config: str | None) -> Any:
    """Load a pipeline from one file. config: folder or Hub id with the configuration, by default chosen by diffusers.

    Raises UsageError.
    """
    import diffusers
    from diffusers.loaders.single_file_utils import (
        SingleFileComponentError,
        fetch_diffusers_config,
        load_single_file_checkpoint,
    )

    try:
        settings = (
            config or fetch_diffusers_config(load_single_file_checkpoint(source))["pretrained_model_name_or_path"]
        )
        index: Any = diffusers.DiffusionPipeline.load_config(settings)
        missing = _missing_parts(source, settings, index, dtype)
        return getattr(diffusers, index["_class_name"]).from_single_file(
            source, config=settings, dtype=dtype, **missing
        )
    except (OSError, ValueError, AttributeError, KeyError, RuntimeError, SingleFileComponentError) as error:
        raise UsageError(
            f"no pipeline could be read from the single file {source}: {' '.join(str(error).split())[:400]} A single "
            "file holds only weights; the configuration and missing parts come from the Hub, or from a pipeline "
            "folder that you set as model.config."
        ) from error


def _missing_parts(source: str, settings: str, index: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """Load the VAE and text encoders that the file lacks; FLUX files, for example, often hold only the denoiser."""
    import diffusers
    import safetensors
    import transformers
    from diffusers.loaders.single_file_utils import is_clip_model_in_single_file, is_t5_in_single_file

    if not source.endswith(".safetensors"):
        return {}
    with safetensors.safe_open(source, "pt") as file:
        keys: Any = set(file.keys())
    parts = {}
    for name, (library, cls) in ((key, value) for key, value in index.items() if isinstance(value, list)):
        kind: Any = getattr({"diffusers": diffusers, "transformers": transformers}.get(library), cls or "", None)
        if name == "vae":
            present = any(key.startswith(("first_stage_model.", "vae.")) for key in keys)
        elif isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel):
            clip = cls.startswith("CLIPText")
            present = is_clip_model_in_single_file(kind, keys) if clip else is_t5_in_single_file(keys)
        else:
            continue
        if not present:
            parts[name] = kind.from_pretrained(settings, subfolder=name, torch_dtype=dtype, use_safetensors=True)
    return parts
