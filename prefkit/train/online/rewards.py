"""Rewards: scorers of the recipe by their aliases, through the same code as `prefkit score`, beside the sampling."""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoAnswer
from functools import partial
from typing import Any

import numpy as np

from prefkit.config import Recipe
from prefkit.errors import UsageError
from prefkit.models.place import device_of
from prefkit.output import warn
from prefkit.pair.combine import combine
from prefkit.score.core import Room, make_scorer, missing_keys, score_batch
from prefkit.score.licence import check_licence
from prefkit.score.overlap import in_order
from prefkit.types import Candidate, Score

Scores = dict[str, list[Score]]


class Jury:
    """Scorers by alias. Raises UsageError for an alias that the recipe does not have."""

    def __init__(self, recipe: Recipe, aliases: Sequence[str], where: str) -> None:
        unknown = [alias for alias in aliases if alias not in recipe.score]
        if unknown:
            raise UsageError(
                f"{where}: no scorer is called {', '.join(unknown)}; the recipe's `score:` has {', '.join(recipe.score) or 'none'}."
            )
        self.settings = {alias: recipe.score[alias] for alias in aliases}
        self.scorers = {
            alias: make_scorer(entry.use, entry.options, f"score.{alias}") for alias, entry in self.settings.items()
        }
        for alias, scorer in self.scorers.items():
            check_licence(scorer, self.settings[alias].accept_license, f"score.{alias}")
        self.rooms = {alias: Room(who=f"score {alias}") for alias in self.scorers}
        self.current = ""

    def specs(self) -> dict[str, dict[str, Any]]:
        """What each alias means, as beside its table."""
        return {
            alias: dataclasses.asdict(dataclasses.replace(scorer.spec(), dtype=self.settings[alias].dtype))
            for alias, scorer in self.scorers.items()
        }

    def signs(self) -> dict[str, float]:
        return {a: 1.0 if scorer.spec().higher_is_better else -1.0 for a, scorer in self.scorers.items()}

    def refuse_judges(self, aliases: Sequence[str], where: str) -> None:
        """A judge that is for evaluation only is no reward. Raises UsageError."""
        forbidden = [alias for alias in aliases if self.scorers[alias].spec().evaluation_only]
        if forbidden:
            raise UsageError(f"{where}: {', '.join(forbidden)} may be used for evaluation only. Take another scorer.")

    def check(self, candidate: Candidate) -> None:
        """Raises UsageError where a scorer requires what the requests do not have."""
        for alias, scorer in self.scorers.items():
            lacking = missing_keys(scorer, candidate)
            if lacking:
                raise UsageError(
                    f"score.{alias}: the scorer needs {', '.join(lacking)}, which request {candidate.request_id} does not "
                    "have. Add a column of that name to the requests."
                )

    def load(self) -> None:
        for alias, scorer in self.scorers.items():
            scorer.load(device_of(self.settings[alias].device), self.settings[alias].dtype)

    def score(self, groups: Sequence[Sequence[Candidate]]) -> Scores:
        """Groups of candidates of one request each -> scores per alias, in order of the candidates."""
        found: Scores = {}
        for alias, scorer in self.scorers.items():
            self.current = alias
            width = getattr(scorer, "concurrency", 1)
            call = partial(score_batch, scorer, room=self.rooms[alias])
            blocks = self._blocks(alias, groups)
            if width > 1:  # it waits for another machine
                answers = [scores for _, scores in in_order(call, blocks, width)]
            else:
                answers = [call(block) for block in blocks]
            found[alias] = [score for scores in answers for score in scores]
        return found

    def _blocks(self, alias: str, groups: Sequence[Sequence[Candidate]]) -> Sequence[Sequence[Candidate]]:
        """What the scorer is given at once, as in `prefkit score`."""
        scorer, most = self.scorers[alias], self.settings[alias].batch_size
        if scorer.scope == "within_request":
            return groups
        own = getattr(scorer, "batch", None) or (1 if getattr(scorer, "concurrency", 1) > 1 else most)
        size, flat = min(own, most), [candidate for group in groups for candidate in group]
        return [flat[i : i + size] for i in range(0, len(flat), size)]

    def close(self) -> None:
        """End what scorers have under way elsewhere."""
        for scorer in self.scorers.values():
            if hasattr(scorer, "close"):
                scorer.close()


class Beside:
    """Work in a thread of its own, in order. A job that never ends is given up, and those behind it go on elsewhere.

    The threads are daemons: one that is stuck in a scorer does not keep the program from ending.
    """

    def __init__(self) -> None:
        self._open: list[tuple[Future[Any], Callable[[], Any]]] = []
        self._begin([])

    def _begin(self, jobs: Sequence[tuple[Future[Any], Callable[[], Any]]]) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for job in jobs:
            self._queue.put(job)
        threading.Thread(target=self._work, args=(self._queue,), daemon=True).start()

    def _work(self, jobs: queue.SimpleQueue[Any]) -> None:
        while (job := jobs.get()) is not None and jobs is self._queue:
            future, work = job
            try:
                result = work()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

    def submit(self, work: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        self._open = [job for job in self._open if not job[0].done()] + [(future, work)]
        self._queue.put((future, work))
        return future

    def result(self, future: Future[Any], seconds: float) -> Any:
        """The job's result, or None where it did not come in time. Raises what the job raised."""
        try:
            return future.result(timeout=seconds)
        except NoAnswer:
            if future.done():
                raise
            rest = [job for job in self._open if job[0] is not future and not job[0].done()]
            stuck = self._queue
            self._begin(rest)
            stuck.put(None)
            return None

    def close(self) -> None:
        self._queue.put(None)


def unanswered(candidates: int, aliases: Sequence[str], at: str, seconds: float) -> Scores:
    """Failed scores in the place of those that never came."""
    text = f"no answer within {seconds:g} s (at work: {at})"
    warn(f"rewards: {text}; {candidates} samples are left out.")
    return {alias: [Score(None, error=text)] * candidates for alias in aliases}


def values_of(scores: Scores, alias: str) -> np.ndarray:
    """[N] float64, NaN = failed."""
    return np.array([np.nan if s.value is None else s.value for s in scores[alias]], dtype=np.float64)


def rewards(
    columns: Mapping[str, np.ndarray],
    signs: Mapping[str, float],
    weights: Mapping[str, float],
    groups: np.ndarray,
    how: str,
) -> np.ndarray:
    """One reward a sample, [N] float64; NaN where any weighted score is missing: the sample is left out of its group.

    how  none     the weighted sum of the scores as they are
         batch    each score minus its mean over all samples, divided by its deviation
         centred  each score minus its request's mean, divided by the pooled within-request deviation
         zscore   each score minus its request's mean, divided by the request's own deviation
    """
    spread = np.zeros_like(groups) if how == "batch" else groups
    value, scores = combine(columns, signs, weights, spread, "zscore" if how == "batch" else how)
    value = np.where(np.isnan(scores).any(axis=1), np.nan, value)
    return value * np.abs(np.array(list(weights.values()), dtype=np.float64)).sum()
