"""Rewards: runs the scorers in parallel with the sampling, and combines their scores into one number per sample."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoAnswer
from typing import Any

import numpy as np

from prefkit.output import warn
from prefkit.pair.normalise import combine
from prefkit.score.scorer_set import Scores
from prefkit.types import Score

Job = tuple[Future[Any], Callable[[], Any]]


class BackgroundWorker:
    """Runs jobs in order in a thread. A job that hangs is abandoned, and a new thread runs the jobs after it.

    Threads are daemons, so a hanging scorer does not keep the program from ending.
    """

    def __init__(self) -> None:
        self._open: list[Job] = []
        self._start([])

    def _start(self, jobs: Sequence[Job]) -> None:
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
        job: Job = Future(), work
        self._open = [other for other in self._open if not other[0].done()] + [job]
        self._queue.put(job)
        return job[0]

    def result(self, future: Future[Any], seconds: float) -> Any:
        """Return the job's result, or None if it does not finish within `seconds`. Raises the job's exception."""
        try:
            return future.result(timeout=seconds)
        except NoAnswer:
            if future.done():
                raise
            hanging = self._queue
            self._start([job for job in self._open if job[0] is not future and not job[0].done()])
            hanging.put(None)
            return None

    def close(self) -> None:
        self._queue.put(None)


def timed_out(count: int, names: Sequence[str], running: str, seconds: float) -> Scores:
    """Return failed scores for `count` samples that were not scored in time. running: the active scorer."""
    text = f"no answer within {seconds:g} s (running: {running})"
    warn(f"rewards: {text}; {count} samples are left out.")
    return {name: [Score(None, error=text)] * count for name in names}


def rewards(
    columns: Mapping[str, np.ndarray],
    signs: Mapping[str, float],
    weights: Mapping[str, float],
    groups: np.ndarray,
    how: str,
) -> np.ndarray:
    """Return rewards [N] float64. A sample with a missing weighted score gets NaN and is left out of its group.

    how  none     the weighted sum of the raw scores
         batch    each score minus its mean over all samples, divided by its std
         centred  each score minus its request's mean, divided by the pooled within-request std
         zscore   each score minus its request's mean, divided by the request's own std
    """
    one_group = np.zeros_like(groups) if how == "batch" else groups
    value, scores = combine(columns, signs, weights, one_group, "zscore" if how == "batch" else how)
    value = np.where(np.isnan(scores).any(axis=1), np.nan, value)
    return value * np.abs(np.array(list(weights.values()), dtype=np.float64)).sum()
