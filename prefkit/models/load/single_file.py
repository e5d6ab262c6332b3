"""A pipeline whose weights lie in one file, in the layout of the code that they come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefkit.errors import UsageError


def from_single_file(source: str, dtype: Any, config: str | None) -> Any:
    """config: folder or Hub id with the configuration and the parts that the file lacks; None: diffusers finds it on the
    Hub. Raises UsageError.
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
        kind = getattr(diffusers, index["_class_name"])
        beside = _parts_beside(source, settings, index, dtype)
        return kind.from_single_file(source, config=settings, dtype=dtype, **beside)
    except (OSError, ValueError, AttributeError, KeyError, RuntimeError, SingleFileComponentError) as error:
        raise UsageError(
            f"no pipeline could be read from the single file {source}: {' '.join(str(error).split())[:400]} A single file "
            "holds weights only; its configuration, and the parts that it lacks, come from the Hub, or from the pipeline "
            "folder given as model.config."
        ) from error


def _parts_beside(source: str, settings: str, index: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """VAE and text encoders that the file lacks: FLUX's is the denoiser alone, SD 3's comes without T5 too."""
    import diffusers
    import safetensors
    import transformers
    from diffusers.loaders.single_file_utils import is_clip_model_in_single_file, is_t5_in_single_file

    if not source.endswith(".safetensors"):
        return {}
    with safetensors.safe_open(source, "pt") as file:
        held: Any = set(file.keys())
    found = {}
    for name, (library, cls) in ((key, value) for key, value in index.items() if isinstance(value, list)):
        kind: Any = getattr({"diffusers": diffusers, "transformers": transformers}.get(library), cls or "", None)
        if name == "vae":
            there = any(key.startswith(("first_stage_model.", "vae.")) for key in held)
        elif isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel):
            clip = cls.startswith("CLIPText")
            there = is_clip_model_in_single_file(kind, held) if clip else is_t5_in_single_file(held)
        else:
            continue
        if not there:
            found[name] = kind.from_pretrained(settings, subfolder=name, torch_dtype=dtype, use_safetensors=True)
    return found
