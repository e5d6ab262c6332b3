"""What a command would do, from what, without loading weights: `--dry-run`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from prefkit.config import Recipe
from prefkit.errors import PrefkitError, UsageError
from prefkit.output import duration
from prefkit.resolve import chosen_names
from prefkit.store import Store


def plan(
    store: Store, recipe: Recipe, verbs: Sequence[str], names: Sequence[str], limit: int | None
) -> list[dict[str, Any]]:
    """A row per stage and entry: wanted, present, to do, bytes on disk, expected time, and what is missing."""
    rows = []
    for verb in verbs:
        for name in chosen_names(recipe, verb, names):
            row: dict[str, Any] = {"stage": verb, "name": name}
            try:
                row |= {"generate": _generate, "score": _score, "pair": _pair, "train": _train, "eval": _eval}[verb](
                    store, recipe, name, limit
                )
            except PrefkitError as error:
                row["missing"] = str(error)
            rows.append(row)
    return rows


def _generate(store: Store, recipe: Recipe, name: str, limit: int | None) -> dict[str, Any]:
    from prefkit.generate.requests import keep_known, read_requests
    from prefkit.generate.run import plan as jobs_of

    requests = store.requests()
    if recipe.requests.source:
        requests = keep_known(requests, read_requests(recipe.requests, recipe.model.inputs), store.folder)
    jobs, done, _ = jobs_of(store, recipe, name, requests, limit)
    todo = sum(job[3] not in done for job in jobs)
    table = store.candidates(name)
    return {
        "from": recipe.requests.source,
        "wanted": len(jobs),
        "to do": todo,
        **_size_and_time(table.folder, todo, len(done)),
    }


def _score(store: Store, recipe: Recipe, alias: str, limit: int | None) -> dict[str, Any]:
    from prefkit.score.core import make_scorer
    from prefkit.score.run import scored_ids, wanted_keys

    settings = recipe.score[alias]
    scorer = make_scorer(settings.use, settings.options, f"score.{alias}")
    keys = wanted_keys(store, settings.generators)
    if not keys:
        raise UsageError(f"no candidates yet: run `prefkit generate {store.folder}` first.")
    done = scored_ids(store.scores(alias))
    todo = len([key for key in keys if key[0] not in done][:limit])
    estimate = getattr(scorer, "estimate", None)
    return {
        "from": settings.use,
        "wanted": len(keys),
        "to do": todo,
        **_size_and_time(store.scores(alias).folder, todo, len(done)),
        **(estimate(sample_of(store, settings.generators), todo) if estimate is not None and todo else {}),
    }


def sample_of(store: Store, generators: Sequence[str], most: int = 8) -> list[Any]:
    """The first candidates with an image, for estimates."""
    return list(islice((c for c in store.iter_candidates(generators) if c.error is None), most))


def _pair(store: Store, recipe: Recipe, name: str, limit: int | None) -> dict[str, Any]:
    from prefkit.pair.run import score_frame, weights_of

    config = recipe.pair[name]
    weights = weights_of(store, config)
    frame, _ = score_frame(store, config, weights, limit)
    return {"from": ", ".join(weights), "wanted": len(frame), **_size_and_time(store.pairs(name), 0, 0)}


def _train(store: Store, recipe: Recipe, name: str, limit: int | None) -> dict[str, Any]:
    config = recipe.train[name]
    if config.online is not None:
        from prefkit.train.checkpoint import last_step

        wanted = min(config.online.rounds, limit or config.online.rounds)
        done = last_step(store.train(name) / "checkpoints")
        rewards = ", ".join(config.online.rewards)
        return {"from": f"rewards {rewards}", "wanted": wanted, "to do": max(0, wanted - done)}
    from prefkit.train import budget

    config = budget.applied(config, budget.written(store.train(name)))
    done = sum('"loss"' in line for line in _lines(store.train(name) / "metrics.jsonl"))
    steps = min(config.steps, limit or config.steps)
    return {
        "from": f"pairs {config.pairs}",
        "wanted": steps,
        "to do": max(0, steps - done),
        **({} if config.max_hours is None else {"time": f"at most {config.max_hours:g} h"}),
        **_size_and_time(store.train(name), 0, 0),
        **_caches(store, recipe, name),
    }


def _caches(store: Store, recipe: Recipe, name: str) -> dict[str, Any]:
    """Nothing where the pairs are not made, or not on this machine, yet."""
    pairs = recipe.train[name].pairs
    if not pairs or not any(folder.is_dir() for folder in (store.pairs(pairs), Path(pairs))):
        return {}
    from prefkit.train.space import cache_space

    return cache_space(store, recipe, name)


def _eval(store: Store, recipe: Recipe, name: str, limit: int | None) -> dict[str, Any]:
    config = recipe.eval[name]
    missing = [m for m in config.models if not (store.train(m) / "final").exists()]
    row = {"from": ", ".join(["base", *config.models]), **_size_and_time(store.eval(name), 0, 0)}
    return row | ({"missing": f"not trained yet: {', '.join(missing)}"} if missing else {})


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _size_and_time(folder: Path, todo: int, done: int) -> dict[str, Any]:
    """Bytes there and expected, and the expected time at the pace measured so far."""
    from prefkit.store.files import read_json

    there = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) if folder.exists() else 0
    found: dict[str, Any] = {"MB there": round(there / 1e6, 2)}
    if todo:
        pace = folder / "pace.json"
        found["MB to come"] = round(there / done * todo / 1e6, 2) if done else None
        found["time"] = (
            duration(read_json(pace)["seconds_per_item"] * todo) if pace.exists() else "known after the first run"
        )
    return found
