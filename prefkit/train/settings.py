"""Checks of a training's settings, before anything is loaded, for the run and for its dry run."""

from __future__ import annotations

from typing import Any

from prefkit import output, registry
from prefkit.config import Recipe, Train, bounds
from prefkit.distributed import check_device, device_of
from prefkit.errors import PluginError, UsageError
from prefkit.models.load.pipeline import check_model
from prefkit.train import fsdp, optimizers, precision
from prefkit.train.data.prompt_cache import CACHES
from prefkit.train.data.reference_cache import check_objective as check_reference_cache
from prefkit.train.monitor.metrics import BOARDS
from prefkit.train.setup import load_objective

SHAPES = ("pair", "list", "single")
REFERENCES = ("none", "frozen", "ema")
CHOICES = {
    "precision": precision.AUTOCAST,
    "schedule": optimizers.SCHEDULES,
    "report_to": BOARDS,
    "text_cache": CACHES,
    "shard": fsdp.SHARDS,
}
#: settings for existing pairs -> the reason why online training cannot use them
EXISTING_PAIRS = {
    "resolution": "online training makes its own images",
    "flip": "online training makes its own images",
    "patience": "online training has no held-out pairs; use online.watch and online.stop_drop",
    "watch": "use online.watch",
    "mask": "use online.mask",
}


def check(recipe: Recipe, name: str) -> Any:
    """Check all settings of a training and return its objective. Raises UsageError, PluginError."""
    if name not in recipe.train:
        raise UsageError(f"train: {name!r} is not in the recipe; it has {', '.join(recipe.train) or 'none'}.")
    config = recipe.train[name]
    check_settings(name, config)
    check_device(config.device or "cpu")
    if recipe.model.quantize is not None and config.lora is None:
        raise UsageError(
            f"train.{name}.lora is null, but full weights cannot be trained in {recipe.model.quantize}: set "
            "model.quantize to null, or train an adapter (lora: {rank: 16})."
        )
    objective = load_objective(name, config)
    fsdp.check(name, recipe, objective, fsdp.shard_of(config))
    if config.cache_reference:
        check_reference_cache(name, objective, online=config.online is not None)
    if is_online(config, objective):
        from prefkit.train.online.run import check_recipe

        check_recipe(recipe, name, objective)
        return objective
    if objective.shape not in SHAPES or objective.reference not in REFERENCES:
        raise PluginError(
            f"objective {config.objective.use}: shape {objective.shape!r} or reference {objective.reference!r} is "
            f"unknown; shapes are {', '.join(SHAPES)}, references {', '.join(REFERENCES)}."
        )
    registry.load_class("family", config.family)
    return objective


def check_start(recipe: Recipe, config: Train) -> None:
    """Raises UsageError if there is no model to start from; its weights are not read."""
    if not recipe.model.base:
        raise UsageError("model.base is not set: give a Hub id, a pipeline folder or a single file.")
    if config.family == "diffusers":  # another family checks its own start
        check_model(recipe.model, device_of(config.device))


def is_online(config: Train, objective: Any) -> bool:
    return config.online is not None or objective.shape.startswith("step")


def check_settings(name: str, config: Train) -> None:
    """Raises UsageError for settings that are invalid, or that exclude each other."""
    where, online = f"train.{name}", config.online is not None
    fsdp.check_launch(name, config)
    bounds.check(config, where)
    for key, choices in CHOICES.items():
        if getattr(config, key) not in choices:
            raise UsageError(f"{where}.{key}: {getattr(config, key)!r} is unknown; choose {', '.join(choices)}.")
    for key in ("watch_requests", "watch_every"):
        if getattr(config, key) < 1:
            raise UsageError(f"{where}.{key} is {getattr(config, key)}: it must be at least 1.")
    if config.lora is not None:
        bounds.check(config.lora, f"{where}.lora")
        if config.lora.dropout == 1:
            raise UsageError(f"{where}.lora.dropout is 1: it must be below 1.")
    precision.check(name, config)
    optimizers.check(name, config)
    for key, reason in EXISTING_PAIRS.items() if online else ():
        if getattr(config, key):
            raise UsageError(f"{where}.{key} is for existing pairs: {reason}. Remove the key.")
    if config.patience and not config.validation:
        raise UsageError(f"{where}.patience needs held-out pairs. Set it to 0, or validation above 0.")
    if online and config.text_cache != "full":
        raise UsageError(f"{where}.text_cache: online training encodes the prompts that it samples. Remove the key.")
    if not online and config.steps < config.warmup:
        output.warn(
            f"{where}.warmup is {config.warmup} steps and the training has {config.steps}, so it never reaches its "
            "learning_rate. Lower warmup."
        )
