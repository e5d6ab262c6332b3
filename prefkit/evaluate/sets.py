"""The request sets, models and controls of an evaluation."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from prefkit.config import Eval, Generate, Model, Pair, Recipe, Requests, Set, bounds, compatibility
from prefkit.errors import UsageError
from prefkit.evaluate import tiers
from prefkit.evaluate.people import PEOPLE
from prefkit.models.load.trained import caption_hash, trained_model, trained_on
from prefkit.types import Request, digest

if TYPE_CHECKING:
    from prefkit.store import Store

#: kind of control -> description; the control of a trained model is named MODEL-KIND (see `prefkit train --controls`)
CONTROLS = {"sft": "SFT on the winners", "flipped": "DPO on randomly flipped pairs"}
Records = dict[str, dict[str, Any] | None]  # model -> content of its trained_on.json, None if it is missing


def check_settings(name: str, cfg: Eval) -> None:
    """Raise UsageError for invalid numbers and names, before anything is generated."""
    if "base" in (cfg.models or ()):
        raise UsageError(
            "eval.models: `base` is the untrained model, which is always included. Remove it from the list. If a "
            "training is called base, rename it."
        )
    bounds.check(cfg, f"eval.{name}")
    taken = [model for model in cfg.models or () if model in tiers.columns(cfg)]
    if taken:
        raise UsageError(
            f"eval.{name}.models: {taken[0]} is the name of the base with other prompts. Rename the training."
        )


def with_models(store: Store, recipe: Recipe, name: str, planned: bool = False) -> Recipe:
    """Return the recipe with eval.NAME.models set, if it is null, to all trained models without their controls.

    These are the models in the run folder; if it has none, the trainings of the recipe. planned: also the trainings of
    the recipe if there are models, for a plan in which `train` comes before `eval`.
    """
    if recipe.eval[name].models is not None:
        return recipe
    trained = {model for model in store.names("train") if (store.train(model) / "final").exists()}
    trained = {model for model in trained if not is_control(model)}
    models = trained | set(recipe.train) if planned or not trained else trained
    return replace(recipe, eval=recipe.eval | {name: replace(recipe.eval[name], models=sorted(models))})


def request_sets(
    store: Store, recipe: Recipe, cfg: Eval, limit: int | None, write: bool = True
) -> dict[str, list[Request]]:
    """Return {set: requests}. A limit keeps the requests whose ids have the lowest hashes.

    write: copy input images into the run; False for a dry run. Raises UsageError for an empty set.
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
                f"eval set {name!r} holds no requests{origin} Raise requests.test_share, or set "
                "eval.NAME.sets.SET.source to a file of prompts."
            )
        if counts:
            kept = {r.request_id for r in sorted(requests, key=lambda r: digest("eval", r.request_id))[: min(counts)]}
            requests = [r for r in requests if r.request_id in kept]
        result[name] = requests
    return result


def settings_of(recipe: Recipe, cfg: Eval) -> tuple[str, Generate]:
    """Return (name, settings) of the generator that the evaluation samples with."""
    name = cfg.generator or compatibility.first_sampler(recipe)
    assert name is not None  # compatibility.check("eval") has checked this
    settings = recipe.generate[name]
    seed = settings.seed if cfg.seed is None else cfg.seed
    return name, replace(settings, model=None, seed=seed, device=cfg.device, batch_size=cfg.batch_size)


def base_model(recipe: Recipe, cfg: Eval) -> Model:
    """Return the model that the trained models are compared with."""
    return recipe.model if cfg.base is None else cfg.base


def model_jobs(store: Store, recipe: Recipe, cfg: Eval, settings: Generate) -> dict[str, tuple[Model, Generate]]:
    """Return {folder name: (model, generator settings)} for all models to evaluate.

    These are the base, the trained models and their existing controls, the base with the guidances and step counts of
    eval.base_guidance and eval.base_steps, and the base with the prompts of each tier. Raises UsageError for a model that is not trained.
    """
    base = base_model(recipe, cfg)
    jobs = {"base": (base, settings)}
    for name in cfg.models or ():
        jobs[name] = (trained_model(store.folder, recipe.model, name), settings)
        for control in control_names(name):
            if (store.train(control) / "final").exists():
                jobs[control] = (trained_model(store.folder, recipe.model, control), settings)
    for guidance in cfg.base_guidance:
        jobs[f"base-g{float(guidance)}"] = (base, replace(settings, guidance=float(guidance)))
    for steps in cfg.base_steps:
        jobs[f"base-s{steps}"] = (base, replace(settings, steps=steps))
    for tier in tiers.columns(cfg):
        jobs[tier] = (base, settings)
    return jobs


def control_names(name: str) -> list[str]:
    """Return the names of a model's controls; empty for a model that is itself a control."""
    return [] if is_control(name) else [f"{name}-{kind}" for kind in CONTROLS]


def is_control(name: str) -> bool:
    return name.endswith(tuple(f"-{kind}" for kind in CONTROLS))


def controls_report(
    cfg: Eval, jobs: dict[str, Any], online: Collection[str] = (), guided: bool = True
) -> dict[str, Any]:
    """Return {kind of control: True if the evaluation has it}, and under `missing` a list of the missing controls.

    online: models trained online, which have no controls because they have neither pairs to flip nor winners to
    imitate. guided: False if the generator has no guidance (as for meshes).
    """
    report: dict[str, Any] = {}
    missing = []
    paired = [name for name in cfg.models or () if not is_control(name) and name not in online]
    for kind, meaning in CONTROLS.items():
        report[kind] = all(f"{name}-{kind}" in jobs for name in paired) if paired else None
        missing += [f"{name}-{kind}: {meaning}" for name in paired if f"{name}-{kind}" not in jobs]
    report |= {"base_guidance": bool(cfg.base_guidance), "base_steps": bool(cfg.base_steps)}
    if guided and not cfg.base_guidance:
        missing.append("base with different guidance (eval.base_guidance)")
    if not cfg.base_steps:
        missing.append("base with different step counts (eval.base_steps)")
    return report | {"missing": missing}


def aliases_of(recipe: Recipe, cfg: Eval) -> list[str]:
    """Return the names under `score` that the evaluation uses, [] if people are its only judge.

    Raises UsageError if a name is unknown, or if a scorer has the name that stands for people's votes.
    """
    if PEOPLE in recipe.score:
        raise UsageError(f"score.{PEOPLE}: in results of eval, this name stands for people's votes. Rename the scorer.")
    unknown = [alias for alias in cfg.scorers if alias not in (*recipe.score, PEOPLE)]
    if unknown:
        known = ", ".join(recipe.score) or "none"
        raise UsageError(f"eval.scorers: {unknown[0]!r} is not in the recipe; `score:` has {known}.")
    return [alias for alias in cfg.scorers or recipe.score if alias != PEOPLE]


def records_of(store: Store, jobs: dict[str, Any]) -> Records:
    """Read each trained model's record of its training data (see prefkit.models.load.trained)."""
    trained = [name for name in jobs if name != "base" and (store.train(name) / "final").exists()]
    return {name: trained_on(store.train(name)) for name in trained}


def in_training(store: Store, requests: dict[str, list[Request]], records: Records) -> dict[str, int]:
    """Count, for each set, the prompts that a model was trained on or that are training requests of this run."""
    trained = {caption_hash(r.prompt) for r in store.requests() if r.split == "train"}
    trained |= {caption for record in records.values() if record for caption in record["captions"]}
    return {name: sum(caption_hash(r.prompt) in trained for r in members) for name, members in requests.items()}


def used_for_pairs(recipe: Recipe, records: Records, model: str, alias: str, evaluation_only: bool) -> bool | None:
    """True if this scorer chose the pairs that `model` was trained on; None if unknown.

    Two names count as one scorer if their plug-in and options are equal. The model's training record decides. Without a
    record, the recipe's pair set train.MODEL.pairs decides (a control has the MODEL that it is named after); without
    this pair set, the result is None. For the base with different guidance or steps, any pair set of the recipe counts.
    A pair set without weights uses every scorer that is not evaluation-only.
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
    return any(_chose(pair, names, recipe, evaluation_only) for pair in pairs)


def _chose(pair: Pair, names: set[str], recipe: Recipe, evaluation_only: bool) -> bool:
    """True if one of the scores or judges `names` chooses the winners of a pair entry."""
    if pair.use == "comparisons":
        return bool(names & set(pair.options.get("tables") or recipe.compare))
    return any(map(pair.weights.get, names)) if pair.weights else not evaluation_only


def same_scorer(recipe: Recipe, alias: str) -> set[str]:
    """Return the `score` entries with the plug-in and options of `alias`, and `compare` entries with this plug-in."""
    scorer = recipe.score.get(alias)
    if scorer is None:
        return {alias}
    same = {name for name, other in recipe.score.items() if (other.use, other.options) == (scorer.use, scorer.options)}
    return same | {name for name, judge in recipe.compare.items() if judge.use == scorer.use}


def is_base(model: str) -> bool:
    """True if `model` is the name that `model_jobs` gives to the base with different guidance, steps or prompts."""
    return model.startswith(("base-g", "base-s", "base-explicit"))
