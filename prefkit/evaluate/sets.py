"""Request sets, models and controls of an evaluation."""

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

#: kind of a control -> its description; a model's control is named MODEL-KIND (see `train --controls`)
CONTROLS = {"sft": "SFT on the winners", "flipped": "DPO on randomly flipped pairs"}
Records = dict[str, dict[str, Any] | None]  # model -> its trained_on.json, None if it has none


def check_settings(name: str, cfg: Eval) -> None:
    """Raises UsageError for invalid numbers and names, before anything is made."""
    if "base" in cfg.models:
        raise UsageError("eval.models: `base` is the untrained model, which is always included. Use another name.")
    bounds.check(cfg, f"eval.{name}")


def request_sets(
    store: Store, recipe: Recipe, cfg: Eval, limit: int | None, write: bool = True
) -> dict[str, list[Request]]:
    """Requests by set, limited by a hash of the request id. Raises UsageError for an empty set.

    write: False copies no input image into the run, for a dry run.
    """
    from prefkit.generate.requests import read_requests

    result = {}
    counts = [n for n in (cfg.max_requests, limit) if n is not None]
    for name, chosen in (cfg.sets or {"held_out": Set()}).items():
        inputs, target = recipe.model.inputs, store if write else None
        if chosen.source is not None:
            source = Requests(source=chosen.source, prompt_column=chosen.prompt_column)
            requests = [replace(r, split="test") for r in read_requests(source, inputs, target, every_row=True)]
            origin = f": {chosen.source} is empty."
        else:
            known = store.requests()
            if not known and recipe.requests.source:
                known = read_requests(recipe.requests, inputs, target)
            requests = [r for r in known if r.split == chosen.split]
            origin = f" of split {chosen.split!r} in {store.folder}."
        if not requests:
            raise UsageError(
                f"eval set {name!r} holds no requests{origin} Raise requests.test_share, or name a file of prompts as "
                "eval.NAME.sets.SET.source."
            )
        if counts:
            kept = {r.request_id for r in sorted(requests, key=lambda r: digest("eval", r.request_id))[: min(counts)]}
            requests = [r for r in requests if r.request_id in kept]
        result[name] = requests
    return result


def settings_of(recipe: Recipe, cfg: Eval) -> tuple[str, Generate]:
    """Name and settings of the generator that the evaluation samples with."""
    name = cfg.generator or next(name for name, settings in recipe.generate.items() if settings.use == "diffusers")
    return name, replace(recipe.generate[name], model=None, device=cfg.device, batch_size=cfg.batch_size)


def model_jobs(store: Store, recipe: Recipe, cfg: Eval, settings: Generate) -> dict[str, tuple[Model, Generate]]:
    """Model and settings by folder name: base, trained models with existing controls, base at other guidance and steps.

    Raises UsageError for a model without a result.
    """
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
    return name.endswith(tuple(f"-{kind}" for kind in CONTROLS))


def controls_report(cfg: Eval, jobs: dict[str, Any], online: Collection[str] = ()) -> dict[str, Any]:
    """Controls that the evaluation has, and the list of those that are missing.

    online: models trained on rewards of their own samples, which have neither pairs to flip nor winners to imitate.
    """
    report: dict[str, Any] = {}
    missing = []
    paired = [name for name in cfg.models if not is_control(name) and name not in online]
    for kind, meaning in CONTROLS.items():
        report[kind] = all(f"{name}-{kind}" in jobs for name in paired) if paired else None
        missing += [f"{name}-{kind}: {meaning}" for name in paired if f"{name}-{kind}" not in jobs]
    report |= {"base_guidance": bool(cfg.base_guidance), "base_steps": bool(cfg.base_steps)}
    if not cfg.base_guidance:
        missing.append("base at other guidance (eval.base_guidance)")
    if not cfg.base_steps:
        missing.append("base at other step counts (eval.base_steps)")
    return report | {"missing": missing}


def aliases_of(recipe: Recipe, cfg: Eval) -> list[str]:
    """Score names of the evaluation. Raises UsageError."""
    unknown = [alias for alias in cfg.scorers if alias not in recipe.score]
    if unknown:
        known = ", ".join(recipe.score) or "none"
        raise UsageError(f"eval.scorers: {unknown[0]!r} is not in the recipe; score has {known}.")
    aliases = cfg.scorers or list(recipe.score)
    if not aliases:
        raise UsageError("eval needs a scorer, but the recipe has none: add one under score.")
    return aliases


def records_of(store: Store, jobs: dict[str, Any]) -> Records:
    """Records of the trained models' training data (see prefkit.models.load.trained)."""
    trained = [name for name in jobs if name != "base" and (store.train(name) / "final").exists()]
    return {name: trained_on(store.train(name)) for name in trained}


def in_training(store: Store, requests: dict[str, list[Request]], records: Records) -> dict[str, int]:
    """Count each set's prompts that a model was trained on, or that are training requests of this run."""
    trained = {caption_hash(r.prompt) for r in store.requests() if r.split == "train"}
    trained |= {caption for record in records.values() if record for caption in record["captions"]}
    return {name: sum(caption_hash(r.prompt) in trained for r in members) for name, members in requests.items()}


def used_for_pairs(recipe: Recipe, records: Records, model: str, alias: str, evaluation_only: bool) -> bool | None:
    """True if this scorer chose the pairs that `model` was trained on; None if that is unknown.

    Another name of the same scorer with the same options counts as this one. The model's own record decides. For a
    model without a record, the recipe's pair set that train.MODEL.pairs names decides (a control has its model's);
    pairs from elsewhere are unknown. For the base at other settings, all pair sets of the recipe count. Empty weights
    mean every scorer that is not evaluation-only.
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
    """Names under score of the same scorer with the same options, and names under compare of the same plug-in."""
    scorer = recipe.score.get(alias)
    if scorer is None:
        return {alias}
    same = {name for name, other in recipe.score.items() if (other.use, other.options) == (scorer.use, scorer.options)}
    return same | {name for name, judge in recipe.compare.items() if judge.use == scorer.use}


def is_base(model: str) -> bool:
    """True for the base at other guidance or steps, as `model_jobs` names it."""
    return model.startswith(("base-g", "base-s"))
