"""Which requests, which models and which controls an evaluation is made of."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from prefkit.config import Eval, Generate, Model, Recipe, Requests, Set, bounds
from prefkit.errors import UsageError
from prefkit.models.load.trained import caption_hash, trained_model, trained_on
from prefkit.types import Request, digest

if TYPE_CHECKING:
    from prefkit.store import Store

#: what `train --controls` makes beside a model, and the name it gets
CONTROLS = {"sft": "SFT on the winners", "flipped": "DPO on randomly flipped pairs"}


def check_settings(name: str, cfg: Eval) -> None:
    """Raises UsageError for numbers and names that make no sense, before anything is made."""
    if "base" in cfg.models:
        raise UsageError("eval.models: `base` is the untrained model, which is always there. Train under another name.")
    bounds.check(cfg, f"eval.{name}")


def request_sets(
    store: Store, recipe: Recipe, cfg: Eval, limit: int | None, write: bool = True
) -> dict[str, list[Request]]:
    """Requests by set. Where fewer are wanted than there are, a hash of the request id chooses.

    write: False puts no image of theirs into the run's inputs, for a dry run.

    Raises UsageError where a set is empty.
    """
    from prefkit.generate.requests import read_requests

    found = {}
    counts = [n for n in (cfg.max_requests, limit) if n is not None]
    for name, chosen in (cfg.sets or {"held_out": Set()}).items():
        if chosen.source is not None:
            source = Requests(source=chosen.source, prompt_column=chosen.prompt_column)
            read = read_requests(source, recipe.model.inputs, store if write else None, every_row=True)
            requests = [replace(r, split="test") for r in read]
        else:
            own = store.requests() or (
                read_requests(recipe.requests, recipe.model.inputs, store if write else None)
                if recipe.requests.source
                else []
            )
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
    """Name and settings of the generator that the evaluation samples with."""
    name = cfg.generator or next(name for name, settings in recipe.generate.items() if settings.use == "diffusers")
    return name, replace(recipe.generate[name], model=None, device=cfg.device, batch_size=cfg.batch_size)


def model_jobs(store: Store, recipe: Recipe, cfg: Eval, settings: Generate) -> dict[str, tuple[Model, Generate]]:
    """Folder name -> model and settings. `base` comes first, then trained models with the controls that exist,
    then the base at other guidance and steps. Raises UsageError for a model without a result."""
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


def controls_report(cfg: Eval, jobs: dict[str, Any], online: Collection[str] = ()) -> dict[str, Any]:
    """Which cheap explanations stand beside the models, and the list of those that are missing.

    online: models trained on rewards of their own samples, which have no pairs to flip and no winners to imitate.
    """
    present: dict[str, Any] = {}
    missing = []
    paired = [name for name in cfg.models if not is_control(name) and name not in online]
    for kind, meaning in CONTROLS.items():
        wanted = [f"{name}-{kind}" for name in paired]
        present[kind] = all(name in jobs for name in wanted) if wanted else None
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


def records_of(store: Store, jobs: dict[str, Any]) -> dict[str, dict[str, Any] | None]:
    """What each trained model among `jobs` says of its training (prefkit.models.load.trained), None where it does not."""
    return {
        name: trained_on(store.train(name))
        for name in jobs
        if name != "base" and (store.train(name) / "final").exists()
    }


def in_training(
    store: Store, requests: dict[str, list[Request]], records: dict[str, dict[str, Any] | None]
) -> dict[str, int]:
    """Prompts of each set that one of the models was trained on, or that are training requests of this run."""
    trained = {caption_hash(r.prompt) for r in store.requests() if r.split == "train"}
    trained |= {caption for record in records.values() if record for caption in record["captions"]}
    return {name: sum(caption_hash(r.prompt) in trained for r in members) for name, members in requests.items()}


def used_for_pairs(
    recipe: Recipe, records: dict[str, dict[str, Any] | None], model: str, alias: str, evaluation_only: bool
) -> bool | None:
    """Whether the pairs that `model` was trained on were chosen by this scorer; None where nobody knows.

    Another name for the same scorer with the same options counts as this one. The model's own record decides. Without one (trained before it was kept), the pair set of this recipe that
    train.MODEL.pairs names (a control has its model's); pairs from elsewhere are unknown. For the base at other settings,
    all pair sets of the recipe. Empty weights mean every scorer that is not evaluation-only.
    """
    names = same_scorer(recipe, alias)
    if (record := records.get(model)) is not None:
        return None if record["scorers"] is None else bool(names & set(record["scorers"]))
    if model not in records and is_base(model):
        pairs = list(recipe.pair.values())
    else:
        for kind in CONTROLS:
            model = model.removesuffix(f"-{kind}")
        train = recipe.train.get(model)
        if train is None or train.pairs not in recipe.pair:
            return None
        pairs = [recipe.pair[train.pairs]]
    return any(any(map(pair.weights.get, names)) if pair.weights else not evaluation_only for pair in pairs)


def same_scorer(recipe: Recipe, alias: str) -> set[str]:
    """Names under score that stand for the same scorer, and those of judges under compare that are the same plug-in."""
    own = recipe.score.get(alias)
    if own is None:
        return {alias}
    alike = {name for name, other in recipe.score.items() if (other.use, other.options) == (own.use, own.options)}
    return {alias} | alike | {name for name, judge in recipe.compare.items() if judge.use == own.use}


def is_base(model: str) -> bool:
    """The base at other guidance or steps, as `model_jobs` names it."""
    return model.startswith(("base-g", "base-s"))
