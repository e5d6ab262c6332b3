"""The eval stage: images of base and tuned at the same seeds, their scores, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.config import Eval, Generate, Model, Recipe, compatibility, content, plain
from prefkit.distributed import device_of, group
from prefkit.errors import PluginError, UsageError
from prefkit.evaluate import sets
from prefkit.evaluate.aspects import aspect_table, compare_aspects
from prefkit.evaluate.compare import compare, correlations
from prefkit.evaluate.images import moved, thumbnails
from prefkit.evaluate.statistics import verdict
from prefkit.generate.generators import check_generator
from prefkit.generate.requests import keep_known
from prefkit.generate.run import checked as checked_generate
from prefkit.generate.run import run_generate
from prefkit.models.precision import dtype_of
from prefkit.output import note, warn
from prefkit.score.diversity import mean_diversity
from prefkit.score.run import remedy, run_scores, scored_ids, spec_from
from prefkit.store import Store
from prefkit.store.files import write_json
from prefkit.store.table import check_fingerprint
from prefkit.types import Request

if TYPE_CHECKING:
    import pandas as pd

#: used_for_pairs in words
JUDGES = {True: "training signal", False: "held out", None: "unknown"}
#: (model, scorer, evaluation only?) -> used_for_pairs
Used = Callable[[str, str, bool], "bool | None"]


def run_eval(store: Store, recipe: Recipe, name: str, *, limit: int | None = None) -> dict[str, Any]:
    """Evaluate recipe.eval[name] and write eval/NAME/result.json, whole or not at all. Returns its content.

    limit: requests per set. What is on disk is not made again. Raises UsageError (no such eval, model,
    scorer or request) and FingerprintError (eval/NAME was made with another base model or generator).
    """
    cfg, generator, settings, specs = check(recipe, name)
    jobs = sets.model_jobs(store, recipe, cfg, settings)
    requests = sets.request_sets(store, recipe, cfg, limit)
    records = sets.records_of(store, jobs)
    used = partial(sets.used_for_pairs, recipe, records)
    processes = group()
    with processes.held(store.lock(f"eval/{name}")):
        processes.lead(lambda: _claim(store, recipe, name, settings))
        for folder, own, members in _parts(store, recipe, name, requests, jobs):
            where = folder.folder
            note(f"eval {name}: {where.name} on {len(members)} requests of {where.parent.name}")
            make(folder, own, members, store)

        def result() -> dict[str, Any]:
            found = _assessed(store.eval(name), used, cfg, generator, list(jobs), requests, list(specs))
            found["settings"] = _settings(recipe, cfg, generator, settings, limit)
            found["settings"] |= _overlap(store, requests, records)
            online = {n for n, train in recipe.train.items() if train.online is not None}
            found["controls"] = sets.controls_report(cfg, jobs, online)
            write_json(store.eval(name) / "result.json", found)
            return found

        return processes.lead(result)


def _assessed(
    folder: Path,
    used: Used,
    cfg: Eval,
    generator: str,
    models: list[str],
    requests: dict[str, list[Request]],
    aliases: list[str],
) -> dict[str, Any]:
    """What the images and scores under `folder`, by set and model, say."""
    found: dict[str, Any] = {}
    tables: dict[str, Store] = {}
    left_out: dict[str, str] = {}
    usable = aliases
    for set_name, members in requests.items():
        opened = {model: Store(folder / set_name / model) for model in models}
        usable, left_out = comparable(opened["base"], aliases)
        found[set_name] = assess(used, cfg, generator, opened, members, usable)
        tables[set_name] = opened["base"]
    correlated = _correlations(tables, generator, usable, requests)
    return {"sets": found, "correlations": correlated, "left_out": left_out}


def check(recipe: Recipe, name: str) -> tuple[Eval, str, Generate, dict[str, dict[str, Any]]]:
    """(settings, generator, its settings, what each scorer means), after every check of the recipe alone. Raises UsageError."""
    if name not in recipe.eval:
        raise UsageError(f"eval: there is no {name!r} in the recipe; known are {', '.join(recipe.eval) or 'none'}.")
    cfg = recipe.eval[name]
    sets.check_settings(name, cfg)
    compatibility.check("eval", name, recipe)
    generator, settings = sets.settings_of(recipe, cfg)
    if not recipe.model.base:
        raise UsageError("model.base is not set: give a Hub id, a pipeline folder or a single file.")
    check_generator(recipe.model, settings)
    specs = {alias: spec_from(recipe, alias) for alias in sets.aliases_of(recipe, cfg)}
    for alias in specs:
        dtype_of(recipe.score[alias].dtype)
        device_of(recipe.score[alias].device)
    return cfg, generator, settings, specs


def checked(store: Store, recipe: Recipe, name: str, limit: int | None) -> list[str]:
    """The models to evaluate, after every further check that needs no weights. A dry run: nothing is written.

    Raises UsageError (NotYet for a model that is not trained), FingerprintError for images or scores there that were made
    otherwise.
    """
    cfg, generator, settings, specs = check(recipe, name)
    requests = sets.request_sets(store, recipe, cfg, limit, write=False)
    jobs = sets.model_jobs(store, recipe, cfg, settings)
    _claim(store, recipe, name, settings, write=False)
    for folder, own, members in _parts(store, recipe, name, requests, jobs):
        checked_generate(folder, own, generator, keep_known(folder.requests(), members, folder.folder), None)
        for alias, spec in specs.items():
            table = folder.scores(alias)
            table.claim(spec, remedy(table), empty=not scored_ids(table), write=False)
    return list(jobs)


def _parts(
    store: Store, recipe: Recipe, name: str, requests: dict[str, list[Request]], jobs: dict[str, tuple[Model, Generate]]
) -> Iterator[tuple[Store, Recipe, list[Request]]]:
    """The run-shaped folder of each model in each set, the recipe that fills it, and its requests."""
    cfg = recipe.eval[name]
    generator, _ = sets.settings_of(recipe, cfg)
    score = {alias: replace(recipe.score[alias], generators=[]) for alias in sets.aliases_of(recipe, cfg)}
    for set_name, members in requests.items():
        splits = sorted({r.split for r in members})
        for model, (weights, how) in jobs.items():
            folder = Store(store.eval(name) / set_name / model)
            seeds = max(cfg.seeds, cfg.best_of) if model == "base" else cfg.seeds
            generate = {generator: replace(how, n=seeds, splits=splits)}
            own = replace(recipe, run=str(folder.folder), model=weights, generate=generate, score=score)
            yield folder, own, members


def _claim(store: Store, recipe: Recipe, name: str, settings: Generate, write: bool = True) -> None:
    check_fingerprint(
        store.eval(name) / "fingerprint.json",
        {"generator": content(settings), "model": content(recipe.model)},
        "Give this evaluation another name in the recipe, or remove that folder.",
        fresh=not any(store.eval(name).rglob("part-*.parquet")),
        write=write,
    )


def make(folder: Store, recipe: Recipe, requests: list[Request], inputs: Store) -> None:
    """Images of `requests` and their scores in a model's folder, by its recipe. inputs: the run with their inputs/."""
    (generator,) = recipe.generate

    def begin() -> None:
        Store.create(folder.folder)
        with folder.lock("requests", seconds=60):
            # earlier, larger evaluations left candidates here: their requests must stay, or scorers would see no prompt
            kept = keep_known(folder.requests(), requests, folder.folder)
            folder.write_requests({r.request_id: r for r in [*folder.requests(), *kept]}.values())

    group().lead(begin)
    requests = keep_known(folder.requests(), requests, folder.folder)
    run_generate(folder, recipe, generator, requests=requests, inputs=inputs)
    try:
        run_scores(folder, recipe, list(recipe.score))
    except PluginError as error:
        if not group().lead(lambda: all(folder.scores(alias).parts() for alias in recipe.score)):
            raise
        warn(f"{error} The requests concerned are left out and counted.")  # every reason is in the table


def assess(
    used: Used, cfg: Eval, generator: str, opened: dict[str, Store], requests: list[Request], aliases: list[str]
) -> dict[str, Any]:
    """{model: {scorer: row}} of one set; `opened` holds the folder of the base and of every other model."""
    wanted = {r.request_id for r in requests}
    base_images = thumbnails(opened["base"], generator, wanted, cfg.seeds)
    spread = mean_diversity(base_images)
    found: dict[str, Any] = {}
    for model, folder in opened.items():
        if model == "base":
            continue
        images = thumbnails(folder, generator, wanted, cfg.seeds)
        distances = {
            "diversity_base": spread,
            "diversity_tuned": mean_diversity(images),
            "moved": moved(base_images, images),
            "seed_distance": spread,
        }
        found[model] = {}
        for alias in aliases:
            frames = [values(place, generator, alias, wanted) for place in (opened["base"], folder)]
            spec = opened["base"].scores(alias).spec() or {}
            row = assess_scorer(used, cfg, (model, alias), frames, spec, distances)
            tables = [aspect_table(place, generator, alias, wanted, cfg.seeds) for place in (opened["base"], folder)]
            found[model][alias] = row | {"aspects": compare_aspects(*tables)}
    return found


def assess_scorer(
    used: Used,
    cfg: Eval,
    names: tuple[str, str],
    frames: list[pd.DataFrame],
    spec: dict[str, Any],
    distances: dict[str, float | None],
) -> dict[str, Any]:
    """One row of the result: names = (model, scorer), frames = scores of the base and of the model."""
    base, tuned = frames
    higher, only = spec.get("higher_is_better", True), bool(spec.get("evaluation_only", False))
    # an earlier, larger evaluation may have left further images of some requests here
    base, tuned = base[base["index"] < max(cfg.seeds, cfg.best_of)], tuned[tuned["index"] < cfg.seeds]
    row = compare(base, tuned, tie=cfg.tie, higher_is_better=higher, samples=cfg.bootstrap)
    row |= distances | {
        "used_for_pairs": used(*names, only),
        "evaluation_only": only,
        "higher_is_better": higher,
    }
    word = verdict(row["ci_low"], row["ci_high"], row["n_requests"], row["moved"], row["seed_distance"])
    return row | {"verdict": word}


def comparable(opened: Store, aliases: list[str]) -> tuple[list[str], dict[str, str]]:
    """Scorers whose values hold across calls, and those left out with the reason."""
    left_out = {
        alias: "its values hold within one call only (scope within_request), and base and tuned are scored apart"
        for alias in aliases
        if (opened.scores(alias).spec() or {}).get("scope") == "within_request"
    }
    return [alias for alias in aliases if alias not in left_out], left_out


def values(folder: Store, generator: str, alias: str, requests: set[str]) -> pd.DataFrame:
    """request_id, index, id, value of one scorer; a row for every candidate, NaN where the score is missing."""
    candidates = folder.candidates(generator).frame(["id", "request_id", "index"])
    scores = folder.scores(alias).frame(["id", "value"])
    frame = candidates[candidates.request_id.isin(requests)].merge(scores, on="id", how="left")
    return frame[["request_id", "index", "id", "value"]]


def flat_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """result.json as rows for the terminal: one per set, model and scorer."""
    rows = []
    for set_name, models in result["sets"].items():
        for model, scorers in models.items():
            for alias, row in scorers.items():
                shown = {"set": set_name, "model": model, "scorer": alias}
                for key in ("base", "tuned", "win_rate", "ci_low", "ci_high", "tie_share", "n_requests"):
                    value = row[key]
                    shown[key] = round(value, 4) if isinstance(value, float) else value
                best = row["best_of_n"]
                shown["best_of_n"] = round(best, 2) if isinstance(best, float) else best
                shown["judge"] = JUDGES[row["used_for_pairs"]]
                rows.append(shown | {"verdict": row["verdict"]})
    return rows


def _settings(recipe: Recipe, cfg: Eval, generator: str, settings: Generate, limit: int | None) -> dict[str, Any]:
    return {
        "eval": plain(cfg),
        "generator": generator,
        "generate": plain(settings),
        "model": plain(recipe.model),
        "limit": limit,
    }


def _overlap(
    store: Store, requests: dict[str, list[Request]], records: dict[str, dict[str, Any] | None]
) -> dict[str, Any]:
    """How many requests of each set were trained on: no evidence, so it is said; and so is which models do not tell."""
    counts = sets.in_training(store, requests, records)
    for name, count in counts.items():
        if count:
            warn(f"eval set {name!r}: {count} of {len(requests[name])} prompts are training prompts.")
    silent = [name for name, record in records.items() if record is None]
    if silent:
        warn(
            f"{', '.join(silent)} left no record of the training (trained_on.json), so prompts that came from elsewhere than "
            "this run are not seen as training prompts. Train again under another name to know."
        )
    return {
        "requests": {name: len(members) for name, members in requests.items()},
        "in_training": counts,
        "training_unknown": silent,
    }


def _correlations(
    tables: dict[str, Store], generator: str, aliases: list[str], requests: dict[str, list[Request]]
) -> dict[str, Any]:
    """Spearman between scorers on the base images of all sets, higher is better for each."""
    import pandas as pd

    columns = {}
    for alias in aliases:
        parts = []
        for name, folder in tables.items():
            sign = 1.0 if (folder.scores(alias).spec() or {}).get("higher_is_better", True) else -1.0
            frame = values(folder, generator, alias, {r.request_id for r in requests[name]})
            parts.append(pd.Series(sign * frame.value.to_numpy(float), index=[f"{name}/{i}" for i in frame.id]))
        columns[alias] = pd.concat(parts)
    return correlations(columns)
