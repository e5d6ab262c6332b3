"""Checks of a training's settings before anything is loaded, by the run and its dry run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from prefkit import registry
from prefkit.config import Recipe, Train, bounds, compatibility
from prefkit.distributed import check_device, device_of
from prefkit.errors import PluginError, UsageError
from prefkit.models.load.pipeline import check_model
from prefkit.train import launch, optimizers
from prefkit.train import precision as computing
from prefkit.train.data.prompt_cache import CACHES
from prefkit.train.fsdp import SHARDS
from prefkit.train.jobs import load_objective
from prefkit.train.monitor.metrics import BOARDS
from prefkit.train.trainer import AUTOCAST, SCHEDULES

SHAPES = ("pair", "list", "single")
REFERENCES = ("none", "frozen", "ema")
KNOWN = {
    "precision": AUTOCAST,
    "schedule": SCHEDULES,
    "report_to": BOARDS,
    "text_cache": CACHES,
    "shard": SHARDS,
}


def check(recipe: Recipe, name: str) -> Any:
    """Check a training's settings and return its objective. Raises UsageError, PluginError."""
    if name not in recipe.train:
        raise UsageError(f"train: {name!r} is not in the recipe; it has {', '.join(recipe.train) or 'none'}.")
    config = recipe.train[name]
    check_settings(name, config)
    check_device(config.device or "cpu")
    objective = load_objective(name, config)
    compatibility.check("train", name, recipe, replace(config, shard=launch.shard_of(config)), objective)
    if not is_online(config, objective):
        _check_objective(objective, config.objective.use)
        registry.load_class("family", config.family)
    else:
        from prefkit.train.online.run import check_recipe

        check_recipe(recipe, name, objective)
    return objective


def check_start(recipe: Recipe, config: Train) -> None:
    """Check that the starting model exists, without reading its weights. Raises UsageError."""
    if not recipe.model.base:
        raise UsageError("model.base is not set: give a Hub id, a pipeline folder or a single file.")
    if config.family == "diffusers":  # other families check their own start
        check_model(recipe.model, device_of(config.device))


def is_online(config: Train, objective: Any) -> bool:
    return config.online is not None or objective.shape.startswith("step")


def check_settings(name: str, config: Train) -> None:
    """Raises UsageError, before anything is loaded."""
    launch.check(name, config)
    for key, known in KNOWN.items():
        if getattr(config, key) not in known:
            raise UsageError(f"train.{name}.{key}: {getattr(config, key)!r} is not known; choose {', '.join(known)}.")
    bounds.check(config, f"train.{name}")
    computing.check(name, config)
    optimizers.check(name, config)


def make_objective(name: str, config: Train) -> Any:
    objective = load_objective(name, config)
    _check_objective(objective, config.objective.use)
    return objective


def _check_objective(objective: Any, name: str) -> None:
    if objective.shape not in SHAPES or objective.reference not in REFERENCES:
        raise PluginError(
            f"objective {name}: it asks for groups of shape {objective.shape!r} and a reference {objective.reference!r}; "
            f"training offers the shapes {', '.join(SHAPES)}, and the references {', '.join(REFERENCES)}."
        )
