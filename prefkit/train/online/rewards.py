"""Rewards: scorers at work beside the sampling, and one number a sample from what they say."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoAnswer
from typing import Any

import numpy as np

from prefkit.output import warn
from prefkit.pair.combine import combine
from prefkit.score.scorer_set import Scores
from prefkit.types import Score


class BackgroundWorker:
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
