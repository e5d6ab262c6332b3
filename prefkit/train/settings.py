"""Which settings a training can have: checked before anything is loaded, by the run and by its dry run."""

from __future__ import annotations

from typing import Any

from prefkit import output, registry
from prefkit.config import Recipe, Train
from prefkit.distributed import check_device, device_of
from prefkit.errors import PluginError, UsageError
from prefkit.models.load.pipeline import check_model
from prefkit.train import fsdp as sharding
from prefkit.train import launch, optimizers
from prefkit.train import precision as computing
from prefkit.train.data.prompt_cache import CACHES
from prefkit.train.data.reference_cache import check_objective as check_reference_cache
from prefkit.train.fsdp import SHARDS
from prefkit.train.jobs import load_objective
from prefkit.train.monitor.metrics import BOARDS
from prefkit.train.trainer import AUTOCAST, SCHEDULES

SHAPES = ("pair", "list", "single")
REFERENCES = ("none", "frozen", "ema")
LEAST_RESOLUTION = 64
KNOWN = {
    "precision": AUTOCAST,
    "schedule": SCHEDULES,
    "report_to": BOARDS,
    "text_cache": CACHES,
    "shard": SHARDS,
}
#: smallest value -> the settings that it holds for
LEAST = {
    0: ("warmup", "weight_decay", "validation", "patience", "stop_drop"),
    1: ("steps", "batch_size", "accumulation", "checkpoint_every", "validate_every", "watch_requests", "watch_every"),
}


def check(recipe: Recipe, name: str) -> Any:
    """The objective, after every check of the settings alone. Raises UsageError, PluginError."""
    if name not in recipe.train:
        raise UsageError(f"train: {name!r} is not in the recipe; it has {', '.join(recipe.train) or 'none'}.")
    config = recipe.train[name]
    check_settings(name, config)
    check_device(config.device or "cpu")
    if recipe.model.quantize is not None and config.lora is None:
        raise UsageError(f"train.{name}.lora is null, and full weights cannot be trained in {recipe.model.quantize}: set "
                         "model.quantize to null, or train an adapter (lora: {rank: 16}).")  # fmt: skip
    objective = load_objective(name, config)
    sharding.check(name, recipe, objective, launch.shard_of(config))
    if config.cache_reference:
        check_reference_cache(name, objective, online=config.online is not None)
    if not is_online(config, objective):
        _check_objective(objective, config.objective.use)
        registry.load_class("family", config.family)
    else:
        from prefkit.train.online.run import check_recipe

        check_recipe(recipe, name, objective)
    return objective


def check_start(recipe: Recipe, config: Train) -> None:
    """Whether there is a model to start from, without reading its weights. Raises UsageError."""
    if not recipe.model.base:
        raise UsageError("model.base is not set: give a Hub id, a pipeline folder or a single file.")
    if config.family == "diffusers":  # what another family starts from is its own affair
        check_model(recipe.model, device_of(config.device))


def is_online(config: Train, objective: Any) -> bool:
    return config.online is not None or objective.shape.startswith("step")


def check_settings(name: str, config: Train) -> None:
    """Raises UsageError, before anything is loaded."""
    launch.check(name, config)
    for key, known in KNOWN.items():
        if getattr(config, key) not in known:
            raise UsageError(f"train.{name}.{key}: {getattr(config, key)!r} is not known; choose {', '.join(known)}.")
    for least, keys in LEAST.items():
        for key in keys:
            if getattr(config, key) < least:
                raise UsageError(f"train.{name}.{key} is {getattr(config, key)}: it must be at least {least}.")
    for key in ("learning_rate", "max_grad_norm"):
        if getattr(config, key) <= 0:
            raise UsageError(f"train.{name}.{key} is {getattr(config, key):g}: it must be above 0.")
    computing.check(name, config)
    optimizers.check(name, config)
    if config.resolution is not None:
        if config.resolution < LEAST_RESOLUTION:
            raise UsageError(f"train.{name}.resolution is {config.resolution}: it must be at least {LEAST_RESOLUTION}.")
        if config.online is not None:
            raise UsageError(
                f"train.{name}.resolution is for imported images; online training samples its own. Remove it."
            )
    if config.flip and config.online is not None:
        raise UsageError(f"train.{name}.flip is for existing images; online training samples its own. Remove it.")
    if config.patience and (config.online is not None or not config.validation):
        raise UsageError(f"train.{name}.patience looks at the pairs that `validation` keeps aside, offline. Set it to 0, or "
                         "validation above 0.")  # fmt: skip
    if config.watch and config.online is not None:
        raise UsageError(f"train.{name}.watch is for pairs that are there; online.watch is the one online.")
    if config.online is not None and config.mask is not None:
        raise UsageError(f"train.{name}.mask is for existing pairs; online training reads online.mask.")
    if config.online is not None and config.text_cache != "full":
        raise UsageError(f"train.{name}.text_cache: online training encodes the prompts that it samples. Leave it out.")
    if config.lora is not None and config.lora.rank < 1:
        raise UsageError(
            f"train.{name}.lora.rank is {config.lora.rank}: give 1 or more, or lora: null for full weights."
        )
    if config.lora is not None and not 0 <= config.lora.dropout < 1:
        raise UsageError(f"train.{name}.lora.dropout is {config.lora.dropout:g}: it must be from 0 to below 1.")
    if (getattr(load_objective(name, config).options, "beta", None) or 1) < 0:
        raise UsageError(f"train.{name}.objective.beta is negative: that would teach the losers.")
    if config.online is None and config.steps < config.warmup:
        output.warn(f"train.{name}.warmup is {config.warmup} steps and the training has {config.steps}, so it never reaches "
                    "its learning_rate. Lower warmup.")  # fmt: skip


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
