"""Which requests, which models and which controls an evaluation is made of."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from prefkit.config import Eval, Generate, Model, Recipe, Requests, Set
from prefkit.errors import UsageError
from prefkit.types import Request, digest

if TYPE_CHECKING:
    from prefkit.store import Store

#: what `train --controls` makes beside a model, and the name it gets
CONTROLS = {"sft": "SFT on the winners", "flipped": "DPO on randomly flipped pairs"}


def check_settings(name: str, cfg: Eval) -> None:
    """Raises UsageError for numbers that make no sense, before anything is made."""
    at_least = {"seeds": 1, "bootstrap": 1, "batch_size": 1, "max_requests": 1, "best_of": 0, "tie": 0}
    for key, least in at_least.items():
        value = getattr(cfg, key)
        if value is not None and value < least:
            raise UsageError(f"eval.{name}.{key} is {value}: it must be at least {least}.")
    if any(steps < 1 for steps in cfg.base_steps):
        raise UsageError(f"eval.{name}.base_steps: every step count must be at least 1.")


def request_sets(store: Store, recipe: Recipe, cfg: Eval, limit: int | None) -> dict[str, list[Request]]:
    """Requests by set. Where fewer are wanted than there are, a hash of the request id chooses.

    Raises UsageError where a set is empty.
    """
    from prefkit.generate.requests import read_requests

    found = {}
    counts = [n for n in (cfg.max_requests, limit) if n is not None]
    for name, chosen in (cfg.sets or {"held_out": Set()}).items():
        if chosen.source is not None:
            read = read_requests(Requests(source=chosen.source, prompt_column=chosen.prompt_column))
            requests = [replace(r, split="test") for r in read]
        else:
            own = store.requests() or (read_requests(recipe.requests) if recipe.requests.source else [])
            requests = [r for r in own if r.split == chosen.split]
        if not requests:
            raise UsageError(
                f"eval set {name!r} holds no requests"
                + (
                    f": {chosen.source} is empty."
                    if chosen.source
                    else f" of split {chosen.split!r} in {store.folder}."
                )
                + " Raise requests.test_share, or name a file of prompts as eval.NAME.sets.SET.source."
            )
        if counts:
            kept = {r.request_id for r in sorted(requests, key=lambda r: digest("eval", r.request_id))[: min(counts)]}
            requests = [r for r in requests if r.request_id in kept]
        found[name] = requests
    return found


def settings_of(recipe: Recipe, cfg: Eval) -> tuple[str, Generate]:
    """Name and settings of the generator that the evaluation samples with. Raises UsageError."""
    if not recipe.generate:
        raise UsageError("eval needs the settings of a generator, and the recipe has none: add one under generate.")
    name = cfg.generator or next(iter(recipe.generate))
    if name not in recipe.generate:
        raise UsageError(f"eval.generator: there is no generator {name!r}; known are {', '.join(recipe.generate)}.")
    return name, replace(recipe.generate[name], model=None, device=cfg.device, batch_size=cfg.batch_size)


def model_jobs(store: Store, recipe: Recipe, cfg: Eval, settings: Generate) -> dict[str, tuple[Model, Generate]]:
    """Folder name -> model and settings. `base` comes first, then trained models with the controls that exist,
    then the base at other guidance and steps. Raises UsageError for a model without a result."""
    from prefkit.models.trained import trained_model

    if "base" in cfg.models:
        raise UsageError("eval.models: `base` is the untrained model, which is always there. Train under another name.")
    jobs = {"base": (recipe.model, settings)}
    for name in cfg.models:
        jobs[name] = (trained_model(store.folder, recipe.model, name), settings)
        for control in control_names(name):
            if (store.train(control) / "final").exists():
                jobs[control] = (trained_model(store.folder, recipe.model, control), settings)
    for guidance in cfg.base_guidance:
        jobs[f"base-g{float(guidance)}"] = (recipe.model, replace(settings, guidance=float(guidance)))
    for steps in cfg.base_steps:
        jobs[f"base-s{steps}"] = (recipe.model, replace(settings, steps=steps))
    return jobs


def control_names(name: str) -> list[str]:
    """Names of a model's controls; a control has none of its own."""
    return [] if is_control(name) else [f"{name}-{kind}" for kind in CONTROLS]


def is_control(name: str) -> bool:
    return any(name.endswith(f"-{kind}") for kind in CONTROLS)


def controls_report(cfg: Eval, jobs: dict[str, Any]) -> dict[str, Any]:
    """Which cheap explanations stand beside the models, and the list of those that are missing."""
    present, missing = {}, []
    for kind, meaning in CONTROLS.items():
        wanted = [f"{name}-{kind}" for name in cfg.models if not is_control(name)]
        present[kind] = bool(wanted) and all(name in jobs for name in wanted)
        missing += [f"{name}: {meaning}" for name in wanted if name not in jobs]
    present["base_guidance"], present["base_steps"] = bool(cfg.base_guidance), bool(cfg.base_steps)
    if not cfg.base_guidance:
        missing.append("base at other guidance (eval.base_guidance)")
    if not cfg.base_steps:
        missing.append("base at other step counts (eval.base_steps)")
    return present | {"missing": missing}


def aliases_of(recipe: Recipe, cfg: Eval) -> list[str]:
    """Scorers of the evaluation. Raises UsageError."""
    unknown = [alias for alias in cfg.scorers if alias not in recipe.score]
    if unknown:
        known = ", ".join(recipe.score) or "none"
        raise UsageError(f"eval.scorers: {unknown[0]!r} is not under score; known are {known}.")
    found = cfg.scorers or list(recipe.score)
    if not found:
        raise UsageError("eval needs a scorer, and the recipe has none: add one under score.")
    return found


def used_for_pairs(recipe: Recipe, model: str, alias: str, evaluation_only: bool) -> bool:
    """Whether the pairs that `model` was trained on were chosen by this scorer.

    Looks at the pair set that train.MODEL.pairs names (a control has its model's); for a model that the recipe
    does not train, at all pair sets. Empty weights mean every scorer that is not evaluation-only.
    """
    for kind in CONTROLS:
        model = model.removesuffix(f"-{kind}")
    train = recipe.train.get(model)
    pairs = recipe.pair.values() if train is None else [recipe.pair[p] for p in [train.pairs] if p in recipe.pair]
    return any(alias in pair.weights if pair.weights else not evaluation_only for pair in pairs)
