"""The eval stage: samples base and tuned models at equal seeds, scores the candidates and compares the scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from prefkit.config import Eval, Generate, Model, Recipe, compatibility, content, plain
from prefkit.distributed import device_of, group
from prefkit.engines import for_workers
from prefkit.errors import FingerprintError, UsageError
from prefkit.evaluate import arena, people, sets, tiers
from prefkit.evaluate.aspects import aspect_table, compare_aspects
from prefkit.evaluate.compare import compare, correlations
from prefkit.evaluate.distances import distances, encoder_of
from prefkit.evaluate.images import make, reworded
from prefkit.evaluate.real_images import real_embeddings, real_files
from prefkit.evaluate.statistics import limits_of_few, verdict
from prefkit.evaluate.summary import real_distances
from prefkit.generate.generators import check_generator
from prefkit.generate.requests import keep_known
from prefkit.generate.run import checked as checked_generate
from prefkit.models.precision import dtype_of
from prefkit.output import note, warn
from prefkit.score.run import spec_from
from prefkit.store import Store
from prefkit.store.files import write_json
from prefkit.store.table import check_fingerprint
from prefkit.types import Request

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

T = TypeVar("T")
#: function (model, scorer, evaluation_only) -> whether the scorer chose the model's training pairs; None if unknown
Used = Callable[[str, str, bool], "bool | None"]


def run_eval(store: Store, recipe: Recipe, name: str, *, limit: int | None = None) -> dict[str, Any]:
    """Evaluate recipe.eval[name], write eval/NAME/result.json atomically, and return its content.

    limit: maximum number of requests per set. Existing candidates and scores are reused. Raises UsageError for an unknown
    evaluation, model or scorer and for a set without requests. Raises FingerprintError if eval/NAME was made with a
    different base model or generator. A worker of --shard makes its share of the images and their scores, and returns
    their counts; a later call without --shard compares.
    """
    _check_entry(recipe, name)
    recipe = sets.with_models(store, recipe, name)
    cfg, generator, settings, specs = check(recipe, name)
    jobs = sets.model_jobs(store, recipe, cfg, settings)
    requests = sets.request_sets(store, recipe, cfg, limit)
    tiers.check(name, cfg, requests)
    _warn_if_few(name, requests)
    records = sets.records_of(store, jobs)
    used = partial(sets.used_for_pairs, recipe, records)
    processes = group()
    with processes.held(store.lock(f"eval/{name}")):
        processes.lead(lambda: _begin(store, recipe, name, settings))
        counts: Counter[str] = Counter()
        for folder, part, members in _parts(store, recipe, name, requests, jobs):
            where = folder.folder
            note(f"eval {name}: model {where.name} on {len(members)} requests of set {where.parent.name}")
            counts.update(make(folder, part, members, store, tiers.prompts(cfg, where.name, members)))
        if processes.sharded:
            return dict(counts)

        def write_result() -> dict[str, Any]:
            result: dict[str, Any] = {"sets": {}, "arena": {}, "requests": _ids(requests)}
            bases, encoder = {}, encoder_of(cfg)
            real, of_real = _real(store, name, cfg)
            usable, left_out = list(specs), dict[str, str]()
            votes = people.read_votes(store)
            for set_name, members in requests.items():
                opened = {model: Store(store.eval(name) / set_name / model) for model in jobs}
                bases[set_name] = opened["base"]
                usable, left_out = comparable(opened["base"], list(specs))
                wanted = {r.request_id for r in members}
                tables = _tables(opened, generator, usable, wanted)
                images = {model: candidates(folder, generator, wanted, cfg.seeds) for model, folder in opened.items()}
                measured = distances(cfg, encoder, generator, opened, wanted, real)
                result["sets"][set_name] = assess(
                    used, cfg, generator, opened, members, tables, images, measured, votes
                )
                place = store.eval(name) / ".judges" / set_name
                if found := arena.arena(recipe, cfg, place, opened, tables, images, votes):
                    result["arena"][set_name] = found
            result |= {"correlations": _correlations(bases, generator, usable, requests), "left_out": left_out}
            made_with = {"eval": plain(cfg), "generator": generator, "generate": plain(settings)}
            made_with |= {"model": plain(sets.base_model(recipe, cfg)), "limit": limit}
            result["settings"] = made_with | of_real | _overlap(store, requests, records)
            for text in {row["caveats"][1]: None for _, _, row in real_distances(result) if row["caveats"][1:]}:
                warn(f"eval {name}: {text}")
            online = {n for n, train in recipe.train.items() if train.online is not None}
            result["controls"] = sets.controls_report(cfg, jobs, online, guided=settings.use != "mesh")
            write_json(store.eval(name) / "result.json", result)
            return result

        return processes.lead(write_result)


def _ids(requests: dict[str, list[Request]]) -> dict[str, list[str]]:
    """Return the ids of each set's requests: the folders may hold more, from an earlier, larger evaluation."""
    return {set_name: [request.request_id for request in members] for set_name, members in requests.items()}


@for_workers
def check(recipe: Recipe, name: str) -> tuple[Eval, str, Generate, dict[str, dict[str, Any]]]:
    """Check the recipe; return (eval settings, generator name, generator settings, scorer specs). Raises UsageError."""
    _check_entry(recipe, name)
    cfg = recipe.eval[name]
    sets.check_settings(name, cfg)
    compatibility.check("eval", name, recipe)
    generator, settings = sets.settings_of(recipe, cfg)
    compatibility.check("generate", generator, recipe)
    encoder_of(cfg)
    arena.check(recipe, name)
    if cfg.real is not None:
        real_files(name, cfg)
    base = sets.base_model(recipe, cfg)
    if not base.base:
        raise UsageError(
            f"{'model' if cfg.base is None else f'eval.{name}.base'}.base is not set: give a Hub id, a pipeline folder or a single file."
        )
    check_generator(base, settings)
    specs = {alias: spec_from(recipe, alias) for alias in sets.aliases_of(recipe, cfg)}
    for alias in specs:
        dtype_of(recipe.score[alias].dtype)
        device_of(recipe.score[alias].device)
    return cfg, generator, settings, specs


def _check_entry(recipe: Recipe, name: str) -> None:
    if name not in recipe.eval:
        raise UsageError(f"eval: {name!r} is not in the recipe; `eval:` has {', '.join(recipe.eval) or 'none'}.")


def checked(store: Store, recipe: Recipe, name: str, limit: int | None) -> list[str]:
    """Check everything that a dry run can, without weights and without writing. Returns the models to evaluate.

    Raises UsageError (NotYet for a model that is not trained), and FingerprintError if eval/NAME was made with a
    different base model or generator.
    """
    _check_entry(recipe, name)
    recipe = sets.with_models(store, recipe, name)
    cfg, generator, settings, _ = check(recipe, name)
    requests = sets.request_sets(store, recipe, cfg, limit, write=False)
    tiers.check(name, cfg, requests)
    _warn_if_few(name, requests)
    jobs = sets.model_jobs(store, recipe, cfg, settings)
    _claim(store, recipe, name, settings, write=False)
    for folder, part, members in _parts(store, recipe, name, requests, jobs):
        kept = keep_known(folder.requests(), members, folder.folder)
        kept = reworded(kept, tiers.prompts(cfg, folder.folder.name, kept))
        with suppress(FingerprintError):  # images of an earlier model are made again
            checked_generate(folder, part, generator, kept, None)
    return list(jobs)


def _warn_if_few(name: str, requests: dict[str, list[Request]]) -> None:
    for set_name, members in requests.items():
        if text := limits_of_few(len(members)):
            warn(f"eval {name}: set {set_name} has {len(members)} request{'s' * (len(members) != 1)}. {text}")


def _parts(
    store: Store, recipe: Recipe, name: str, requests: dict[str, list[Request]], jobs: dict[str, tuple[Model, Generate]]
) -> Iterator[tuple[Store, Recipe, list[Request]]]:
    """Yield, for each model in each set, its run folder, the recipe that fills the folder, and the set's requests."""
    cfg = recipe.eval[name]
    generator, _ = sets.settings_of(recipe, cfg)
    score = {alias: replace(recipe.score[alias], generators=[]) for alias in sets.aliases_of(recipe, cfg)}
    for set_name, members in requests.items():
        splits = sorted({r.split for r in members})
        for model, (weights, settings) in jobs.items():
            folder = Store(store.eval(name) / set_name / model)
            seeds = max(cfg.seeds, cfg.best_of) if model == "base" else cfg.seeds
            generate = {generator: replace(settings, n=seeds, splits=splits)}
            part = replace(recipe, run=str(folder.folder), model=weights, generate=generate, score=score)
            yield folder, part, members


def _claim(store: Store, recipe: Recipe, name: str, settings: Generate, write: bool = True) -> None:
    check_fingerprint(
        store.eval(name) / "fingerprint.json",
        {"generator": content(settings), "model": content(sets.base_model(recipe, recipe.eval[name]))},
        "Give this evaluation another name in the recipe.",
        fresh=not group().sharded and not any(store.eval(name).rglob("part-*.parquet")),
        write=write,
    )


def _begin(store: Store, recipe: Recipe, name: str, settings: Generate) -> None:
    """Claim the evaluation's folder and encode the real images, so that a bad one is reported before sampling."""
    _claim(store, recipe, name, settings)
    if not group().sharded:
        _real(store, name, recipe.eval[name])


def _real(store: Store, name: str, cfg: Eval) -> tuple[np.ndarray | None, dict[str, Any]]:
    """Return the embeddings of eval.NAME.real and {"real": record of the images}; (None, {}) without real images."""
    encoder = encoder_of(cfg)
    if cfg.real is None or encoder is None:
        return None, {}
    rows, record = real_embeddings(name, cfg, encoder, store.folder / "eval" / ".cache")
    return rows, {"real": record}


def assess(
    used: Used,
    cfg: Eval,
    generator: str,
    opened: dict[str, Store],
    requests: list[Request],
    tables: dict[str, tuple[dict[str, pd.DataFrame], bool]],
    images: dict[str, pd.DataFrame],
    measured: dict[str, dict[str, Any]],
    votes: pd.DataFrame,
) -> dict[str, Any]:
    """Compare each model with the base on one set. Returns {model: {scorer or "people": row}}.

    opened: run folders by model. tables: result of `_tables`. images: models' tables of `candidates`. measured: result of
    `distances`. votes: people's votes (see `people.read_votes`), which are a judge if there are any.
    """
    wanted = {r.request_id for r in requests}
    base = opened["base"]
    result: dict[str, Any] = {}
    for model, distance in measured.items():
        result[model] = {}
        for alias, (frames, _) in tables.items():
            pair = [frames["base"], frames[model]]
            row = assess_scorer(used, cfg, (model, alias), pair, base.scores(alias).spec() or {}, distance)
            if (cfg.by or tiers.columns(cfg)) and model not in tiers.columns(cfg):
                scores = dict(zip(("base", "tuned"), pair))
                scores |= {tier: frames[place] for tier, place in tiers.MODELS.items() if place in frames}
                row["tiers"] = tiers.tier_report(cfg, scores, requests, row["higher_is_better"])
            aspects = [aspect_table(folder, generator, alias, wanted, cfg.seeds) for folder in (base, opened[model])]
            result[model][alias] = row | {"aspects": compare_aspects(*aspects)}
        judged = people.compare_votes(votes, images["base"], images[model], cfg.bootstrap)
        if judged is not None:
            # new votes on new images: evidence, even if other votes of the same people chose the training pairs
            row = judged | distance | {"used_for_pairs": False, "evaluation_only": False, "higher_is_better": True}
            word = verdict(row["ci_low"], row["ci_high"], row["n_requests"], row["moved"], row["seed_distance"])
            result[model][people.PEOPLE] = row | {"verdict": word}
    return result


def _tables(
    opened: dict[str, Store], generator: str, aliases: list[str], requests: set[str]
) -> dict[str, tuple[dict[str, pd.DataFrame], bool]]:
    """Return scorer -> (tables of `values` by model, whether higher is better)."""
    return {
        alias: (
            {model: values(folder, generator, alias, requests) for model, folder in opened.items()},
            (opened["base"].scores(alias).spec() or {}).get("higher_is_better", True),
        )
        for alias in aliases
    }


def assess_scorer(
    used: Used,
    cfg: Eval,
    names: tuple[str, str],
    frames: list[pd.DataFrame],
    spec: dict[str, Any],
    measured: dict[str, Any],
) -> dict[str, Any]:
    """Compare a model with the base by one scorer; return one row of the result.

    names: (model, scorer). frames: score tables of base and model. measured: the model's result of `distances`.
    """
    base, tuned = frames
    higher, only = spec.get("higher_is_better", True), bool(spec.get("evaluation_only", False))
    # the tables may hold further seeds from an earlier, larger evaluation
    base, tuned = base[base["index"] < max(cfg.seeds, cfg.best_of)], tuned[tuned["index"] < cfg.seeds]
    row = compare(base, tuned, tie=cfg.tie, higher_is_better=higher, samples=cfg.bootstrap) | measured
    row |= {"used_for_pairs": used(*names, only), "evaluation_only": only, "higher_is_better": higher}
    word = verdict(row["ci_low"], row["ci_high"], row["n_requests"], row["moved"], row["seed_distance"])
    return row | {"verdict": word}


def comparable(opened: Store, aliases: list[str]) -> tuple[list[str], dict[str, str]]:
    """Return (scorers whose values are comparable across calls, {excluded scorer: reason})."""
    left_out = {
        alias: "its values are comparable within one call only (scope within_request), but base and tuned are scored "
        "in separate calls"
        for alias in aliases
        if (opened.scores(alias).spec() or {}).get("scope") == "within_request"
    }
    return [alias for alias in aliases if alias not in left_out], left_out


def values(folder: Store, generator: str, alias: str, requests: set[str]) -> pd.DataFrame:
    """Return a table of request_id, index, id and the scorer's value, one row per candidate; NaN for missing scores."""
    candidates = folder.candidates(generator).frame(["id", "request_id", "index"])
    scores = folder.scores(alias).frame(["id", "value"])
    frame = candidates[candidates.request_id.isin(requests)].merge(scores, on="id", how="left")
    return frame[["request_id", "index", "id", "value"]]


def candidates(folder: Store, generator: str, requests: set[str], seeds: int) -> pd.DataFrame:
    """Return request_id, index, id and error of the candidates of these requests with the first `seeds` indices."""
    frame = folder.candidates(generator).frame(["id", "request_id", "index", "error"])
    return frame[frame.request_id.isin(requests) & (frame["index"] < seeds)]


def _overlap(
    store: Store, requests: dict[str, list[Request]], records: dict[str, dict[str, Any] | None]
) -> dict[str, Any]:
    """Count each eval set's requests and the training prompts among them. Warn of these and of missing records."""
    counts = sets.in_training(store, requests, records)
    for name, count in counts.items():
        if count:
            warn(
                f"eval set {name!r}: {count} of {len(requests[name])} prompts are training prompts, so gains on them "
                "are not held out."
            )
    unknown = [name for name, record in records.items() if record is None]
    if unknown:
        warn(
            f"{', '.join(unknown)}: trained_on.json, the record of the training prompts, is missing, so training "
            "prompts from outside this run are not detected. Train again under another name to get a record."
        )
    sizes = {name: len(members) for name, members in requests.items()}
    return {"requests": sizes, "in_training": counts, "training_unknown": unknown}


def _correlations(
    bases: dict[str, Store], generator: str, aliases: list[str], requests: dict[str, list[Request]]
) -> dict[str, Any]:
    """Return rank correlations between scorers on all sets' base images. Scores are negated if lower is better."""
    import pandas as pd

    columns = {}
    for alias in aliases:
        parts = []
        for name, folder in bases.items():
            sign = 1.0 if (folder.scores(alias).spec() or {}).get("higher_is_better", True) else -1.0
            frame = values(folder, generator, alias, {r.request_id for r in requests[name]})
            parts.append(pd.Series(sign * frame.value.to_numpy(float), index=[f"{name}/{i}" for i in frame.id]))
        columns[alias] = pd.concat(parts)
    return correlations(columns)
