"""Create a pipeline's components on the meta device: with configuration and shapes, but without weights in memory."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

PARTS = ("denoiser", "vae", "text")
LIBRARIES = ("diffusers", "transformers")
_ready: ContextVar[Mapping[str, Any] | None] = ContextVar("ready", default=None)


@contextmanager
def placeholders(ready: Mapping[str, Any]) -> Iterator[None]:
    """Inside the block, left_out takes these components, which are on the meta device, instead of creating new ones."""
    token = _ready.set(ready)
    try:
        yield
    finally:
        _ready.reset(token)


def part_of(component: str) -> str | None:
    """Return the part (one of PARTS) that a pipeline's component belongs to; None for a tokenizer or scheduler."""
    if re.match(r"text_encoder|image_encoder|safety_checker", component):
        return "text"
    return "vae" if component == "vae" else "denoiser" if component in ("unet", "transformer") else None


def components(source: str, revision: str | None) -> dict[str, list[str]]:
    """Return {component: [library, class]} of the pipeline `source`, without optional components that it lacks."""
    from diffusers import DiffusionPipeline

    index: Any = DiffusionPipeline.load_config(source, revision=revision)
    parts = {name: entry for name, entry in index.items() if not name.startswith("_")}  # _class_name may be a list
    return {name: entry for name, entry in parts.items() if isinstance(entry, list) and entry[0] is not None}


def left_out(source: str, revision: str | None, wanted: set[str], dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Return from_pretrained arguments that replace each component whose part is not in `wanted`."""
    if wanted == set(PARTS):
        return {}
    replacements: dict[str, Any] = {}
    ready = _ready.get() or {}
    for name, entry in components(source, revision).items():
        part = part_of(name)
        if part == "text" and (part not in wanted or (name == "safety_checker" and "vae" not in wanted)):
            replacements[name] = None  # the safety checker has nothing to check without images
        elif part is not None and part not in wanted:
            replacements[name] = ready.get(name) or on_meta_device(entry, source, name, revision, dtype, device)
    return replacements


def on_meta_device(
    entry: list[str], source: str, name: str, revision: str | None, dtype: torch.dtype, device: str
) -> Any:
    """Create a component on the meta device. It reports `device` as its device, so that pipelines put inputs there."""
    kind = getattr(importlib.import_module(entry[0]), entry[1])
    if entry[0] == "transformers":
        settings = kind.config_class.from_pretrained(source, subfolder=name, revision=revision)
        make = kind
    else:
        settings, make = kind.load_config(source, subfolder=name, revision=revision), kind.from_config
    with torch.device("meta"):
        module = torch.nn.Module.to(make(settings), dtype)  # diffusers' `to` would print a warning
    module.__class__ = type(
        kind.__name__,
        (kind,),
        {"device": property(lambda self: torch.device(device)), "to": lambda self, *args, **kwargs: self},
    )
    return module.eval().requires_grad_(False)
