"""Components that are there on paper: configuration, shapes and attributes, but no weights in memory."""

from __future__ import annotations

import re
from typing import Any

import torch


def left_out(source: str, revision: str | None, wanted: set[str], dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Components of the pipeline `source` to hand to from_pretrained in place of those that are not wanted."""
    from diffusers import DiffusionPipeline

    if wanted == {"denoiser", "vae", "text"}:
        return {}
    index: Any = DiffusionPipeline.load_config(source, revision=revision)
    given: dict[str, Any] = {}
    for name, entry in index.items():
        if not isinstance(entry, list) or entry[0] is None:
            continue
        if re.match(r"text_encoder|image_encoder|safety_checker", name) and "text" not in wanted:
            given[name] = None
        part = "vae" if name == "vae" else "denoiser" if name in ("unet", "transformer") else None
        if part and part not in wanted:
            given[name] = on_paper(entry, source, name, revision, dtype, device)
    return given


def on_paper(entry: list[str], source: str, name: str, revision: str | None, dtype: torch.dtype, device: str) -> Any:
    """An instance on the meta device that says it lives on `device`, so that a pipeline prepares its inputs there."""
    import diffusers

    kind = getattr(diffusers, entry[1])
    config = kind.load_config(source, subfolder=name, revision=revision)
    with torch.device("meta"):
        module = torch.nn.Module.to(kind.from_config(config), dtype)  # diffusers' own `to` warns about real weights
    module.__class__ = type(
        kind.__name__,
        (kind,),
        {"device": property(lambda self: torch.device(device)), "to": lambda self, *args, **kwargs: self},
    )
    return module.eval().requires_grad_(False)
