"""Generate and score the images of one model for an evaluation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from prefkit.config import Recipe
from prefkit.config.redo import redoing
from prefkit.distributed import group
from prefkit.errors import FingerprintError, NotYet, PluginError
from prefkit.generate.requests import keep_known
from prefkit.generate.run import add_requests, own_batches, run_generate
from prefkit.generate.run import checked as checked_generate
from prefkit.output import note, warn
from prefkit.score.run import run_scores
from prefkit.store import Store
from prefkit.store.litter import remove
from prefkit.types import Request

T = TypeVar("T")


def reworded(requests: list[Request], prompts: dict[str, str] | None) -> list[Request]:
    """Return the requests with an entry in `prompts`, with that prompt; all of them unchanged if it is None."""
    if prompts is None:
        return requests
    return [replace(r, prompt=prompts[r.request_id]) for r in requests if r.request_id in prompts]


def make(
    folder: Store, recipe: Recipe, requests: list[Request], inputs: Store, prompts: dict[str, str] | None = None
) -> Counter[str]:
    """Generate and score candidates for `requests` in one model's folder, and return counts of both.

    inputs: the run that holds the input images. prompts: request id -> prompt to generate from. The folder's requests
    keep their own prompts, which scorers use.
    """
    (generator,) = recipe.generate

    def begin() -> None:
        Store.create(folder.folder)
        # scorers also need the prompts of candidates that an earlier, larger evaluation left in this folder
        add_requests(folder, requests)

    group().lead(begin)
    requests = reworded(keep_known(folder.requests(), requests, folder.folder), prompts)

    def generate() -> dict[str, Any]:
        return run_generate(folder, recipe, generator, requests=requests, inputs=inputs)

    made = _cached(folder, recipe, generate)
    counts = Counter({key: made[key] for key in ("wanted", "present", "made", "failed")})
    if not recipe.score:  # people are the only judge
        return counts
    try:
        ids = _own_ids(folder, recipe, generator, requests)
        scores = _cached(folder, recipe, lambda: run_scores(folder, recipe, list(recipe.score), ids=ids))
        counts["scored"] = sum(each["scored"] for each in scores.values())
    except NotYet:  # every image of this worker failed
        if not group().sharded:
            raise
    except PluginError as error:
        if not group().lead(lambda: all(folder.scores(alias).parts() for alias in recipe.score)):
            raise
        warn(f"{error} Requests without scores are left out and counted.")  # the score table holds the reasons
    return counts


def _own_ids(folder: Store, recipe: Recipe, generator: str, requests: list[Request]) -> set[str] | None:
    """Return the ids of the candidates that this worker of --shard makes, None without --shard.

    A worker scores its own images, because those of other workers may not exist yet.
    """
    if not group().sharded:
        return None
    jobs, _, _ = checked_generate(folder, recipe, generator, requests, None)
    return {job[3] for batch in own_batches(jobs, recipe.generate[generator].batch_size) for job in batch}


def _cached(folder: Store, recipe: Recipe, act: Callable[[], T]) -> T:
    """Call `act`, which fills tables of the folder. A table of an earlier model or scorer is removed and made again.

    A worker of --shard removes nothing. Raises FingerprintError instead.
    """

    def remove_tables(entries: list[str]) -> None:
        for entry in entries:
            remove(folder.folder / entry)
        note(f"{folder.folder}: {', '.join(entries)} come from an earlier model or scorer, and are made again.")

    try:
        return redoing(folder, recipe, act, group().lead, None if group().sharded else remove_tables)
    except FingerprintError as error:
        if not group().sharded:
            raise
        text = "Run eval once with --limit 1 and without --shard, which removes it; then start the workers again."
        raise FingerprintError(f"{str(error).partition(').')[0]}). {text}", "", error.keys) from error
