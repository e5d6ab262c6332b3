"""What latents and conditions of a training take on disk, without loading weights: for `--dry-run`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from prefkit.config import Model, Recipe
from prefkit.store import Store
from prefkit.tiny import located
from prefkit.train import budget
from prefkit.train.data import batches as caches
from prefkit.train.data import prompt_cache as texts
from prefkit.train.data.cache import Cache
from prefkit.train.data.pairs import PairSource, read_pairs
from prefkit.train.jobs import jobs_of, visited
from prefkit.train.monitor import validation
from prefkit.train.setup import ModelLoader, open_caches
from prefkit.types import digest

FLOAT32 = 4  # bytes; latents are kept in it
TOKENS = 512  # of text encoders whose configuration sets no limit (T5)
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
ARITHMETIC = "estimated from configurations"


def cache_space(store: Store, recipe: Recipe, name: str, processes: int = 1) -> dict[str, Any]:
    """Images and conditions that the training visits, how many of the images are not cached yet, and MB of each.

    What one takes is measured on those that are there. Without any it is estimated: float32 latents of the first
    image's size by the VAE's configuration, and for each text encoder tokens x width at the weights' precision; what a
    pipeline adds (pooled states, masks) or leaves out (short texts) shows once one is made. None where no configuration
    is at hand. Conditions are counted as one per request, as where its images have one size: all of them, which a full
    text cache writes, and at most so many as a process has at a time with a rolling one and without any.
    """
    config = budget.applied(recipe.train[name], budget.written(store.train(name)))
    source = PairSource.find(store, config.pairs)
    plan = ModelLoader(store, recipe, config, store.train(name))
    data = open_caches(plan, read_pairs(source), source)
    groups = visited(jobs_of(name, config, config.controls), data.pairs, processes)
    images = {side.key for group in groups for side in group.sides}
    asked = [(data.request(group), group.sides[0].frame) for group in groups]
    conditions = {digest(request.prompt, request.extra, frame) for request, frame in asked}
    step = config.batch_size * config.accumulation  # groups of one process
    held = len(validation.split(data.pairs, config.validation)[1])
    few = {name: min(len(conditions), held + steps * step) for name, steps in (("rolling", texts.WINDOW), ("off", 1))}
    size = data.pairs[0].win.frame or caches.first_size(source, store, data.pairs)
    each = [_each(data.latents), _each(data.conditions)]
    measured = None not in each
    if not measured:
        width = FLOAT32 if plan.frozen_dtype == "float32" else 2
        latent = _latent_bytes(recipe.model, size)
        numbers = (
            2 if config.posterior == "sample" else 1
        )  # mean and deviation; a candidate's kept latents have but one
        each = [latent and numbers * latent, _text_bytes(recipe.model, width)]
    return {
        "images": len(images),
        "not cached": sum(key not in data.latents for key in images),
        "MB latents": _megabytes(each[0], len(images)),
        "MB conditions": _megabytes(each[1], len(conditions)),
        **{f"MB conditions {cache}": _megabytes(each[1], count) for cache, count in few.items()},
        "by": "measured" if measured else ARITHMETIC,
    }


def _megabytes(each: float | None, count: int) -> float | None:
    return None if each is None else round(each * count / 1e6, 6)


def _each(cache: Cache) -> float | None:
    """Bytes on disk by entry, of those that are there."""
    return cache.bytes() / len(cache) if len(cache) else None


def _latent_bytes(model: Model, size: tuple[int, int]) -> float | None:
    vae = _settings(model, "vae")
    blocks = vae.get("block_out_channels") or vae.get("encoder_block_out_channels")
    if not blocks or "latent_channels" not in vae:
        return None
    downscale = 2 ** (len(blocks) - 1)
    return FLOAT32 * vae["latent_channels"] * math.prod(edge // downscale for edge in size)


def _text_bytes(model: Model, width: int) -> float | None:
    total = 0
    for encoder in ENCODERS:
        settings = _settings(model, encoder)
        hidden = settings.get("hidden_size") or settings.get("d_model") or 0
        total += width * hidden * min(settings.get("max_position_embeddings", TOKENS), TOKENS)
    return total or None


def _settings(model: Model, component: str) -> dict[str, Any]:
    """A component's configuration from a folder or the local cache of the Hub; empty where neither has it."""
    import huggingface_hub

    base, file = located(model.config or model.base), f"{component}/config.json"
    path: Any = Path(base) / file
    if not path.is_file() and base.count("/") == 1 and not Path(base).exists():
        path = huggingface_hub.try_to_load_from_cache(base, file, revision=model.revision)
    if not isinstance(path, (str, Path)) or not Path(path).is_file():
        return {}
    return json.loads(Path(path).read_text(encoding="utf-8"))
