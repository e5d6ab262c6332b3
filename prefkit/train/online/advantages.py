"""Rewards -> advantages, in float64, whatever the rewards come as. A missing reward (NaN) has no advantage (NaN).

running   DDPO, arXiv 2305.13301, section 4.3: per request the mean and deviation of its last `buffer` rewards, the new
          ones among them; a request with fewer than `minimum` takes those of the whole round. 1e-6 is added to the
          deviation.
global    mean and deviation of the whole round, + 1e-8
group     mean and deviation of the request's samples of this round, + 1e-4 (GRPO, arXiv 2402.03300)
grouped   the request's mean, the whole round's deviation, + 1e-4 (Flow-GRPO's released code, arXiv 2505.05470)

Deviations divide by n, as numpy's do and the released code does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

KINDS = ("running", "global", "group", "grouped")
RELATIVE = ("group", "grouped")


class Statistics:
    """Keeps what `running` remembers. buffer, minimum: rewards per request."""

    def __init__(self, kind: str, buffer: int = 16, minimum: int = 16) -> None:
        self.kind, self.buffer, self.minimum = kind, buffer, minimum
        self.seen: dict[str, deque[float]] = {}

    def advantages(self, requests: Sequence[str], rewards: Sequence[float] | np.ndarray) -> np.ndarray:
        """request and reward of each sample -> [N] float64."""
        values = np.asarray(rewards, dtype=np.float64)
        found = np.full(len(values), np.nan)
        known = np.isfinite(values)
        if not known.any():
            return found
        whole = values[known].mean(), values[known].std()
        for request in dict.fromkeys(requests):
            own = known & (np.asarray(requests) == request)
            if own.any():
                mean, deviation = self._of(request, values[own], whole)
                found[own] = (values[own] - mean) / deviation
        return found

    def _of(self, request: str, own: np.ndarray, whole: tuple[float, float]) -> tuple[float, float]:
        """Mean, and the deviation with its small addition."""
        if self.kind == "global":
            return whole[0], whole[1] + 1e-8
        if self.kind == "group":
            return own.mean(), own.std() + 1e-4
        if self.kind == "grouped":
            return own.mean(), whole[1] + 1e-4
        kept = self.seen.setdefault(request, deque(maxlen=self.buffer))
        kept.extend(own.tolist())
        if len(kept) < self.minimum:
            return whole[0], whole[1] + 1e-6
        past = np.asarray(kept, dtype=np.float64)
        return past.mean(), past.std() + 1e-6

    def state(self) -> dict[str, Any]:
        return {request: list(kept) for request, kept in self.seen.items()}

    def load(self, state: Mapping[str, Sequence[float]]) -> None:
        self.seen = {request: deque(kept, maxlen=self.buffer) for request, kept in state.items()}


def flat_groups(requests: Sequence[str], rewards: Sequence[float] | np.ndarray) -> int:
    """How many groups teach nothing, because all of their known rewards are equal."""
    values, names = np.asarray(rewards, dtype=np.float64), np.asarray(requests)
    groups = [values[(names == request) & np.isfinite(values)] for request in dict.fromkeys(requests)]
    return sum(len(group) == 0 or float(np.ptp(group)) == 0.0 for group in groups)
