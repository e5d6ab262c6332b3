"""Advantages (reward - mean) / (std + constant), in float64. A missing reward (NaN) has no advantage (NaN).

running   mean and std of the request's last `buffer` rewards, including the new ones, or of the whole round if the
          request has fewer than `minimum`; constant 1e-6 (DDPO, arXiv 2305.13301, section 4.3)
global    mean and std of the whole round; constant 1e-8
group     mean and std of the request's samples in this round; constant 1e-4 (GRPO, arXiv 2402.03300)
grouped   the request's mean, but the whole round's std; constant 1e-4 (Flow-GRPO's released code, arXiv 2505.05470)

Each std divides by n, as in numpy and the released code.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

KINDS = ("running", "global", "group", "grouped")
RELATIVE = ("group", "grouped")


class AdvantageStatistics:
    """Turns rewards into advantages, with the history that `running` needs. buffer, minimum: numbers of rewards."""

    def __init__(self, kind: str, buffer: int = 16, minimum: int = 16) -> None:
        self.kind, self.buffer, self.minimum = kind, buffer, minimum
        self.history: dict[str, deque[float]] = {}

    def advantages(self, requests: Sequence[str], rewards: Sequence[float] | np.ndarray) -> np.ndarray:
        """Return advantages [N] float64. requests, rewards: the request id and the reward of each sample."""
        values, names = np.asarray(rewards, dtype=np.float64), np.asarray(requests)
        advantages = np.full(len(values), np.nan)
        known = np.isfinite(values)
        for request in dict.fromkeys(requests):
            group = known & (names == request)
            if group.any():
                mean, std = self._mean_and_std(request, values[group], values[known])
                advantages[group] = (values[group] - mean) / std
        return advantages

    def _mean_and_std(self, request: str, group: np.ndarray, everything: np.ndarray) -> tuple[float, float]:
        """Return the mean, and the std plus the constant of this kind."""
        if self.kind == "global":
            return everything.mean(), everything.std() + 1e-8
        if self.kind == "group":
            return group.mean(), group.std() + 1e-4
        if self.kind == "grouped":
            return group.mean(), everything.std() + 1e-4
        history = self.history.setdefault(request, deque(maxlen=self.buffer))
        history.extend(group.tolist())
        past = everything if len(history) < self.minimum else np.asarray(history, dtype=np.float64)
        return past.mean(), past.std() + 1e-6

    def state(self) -> dict[str, Any]:
        return {request: list(history) for request, history in self.history.items()}

    def load(self, state: Mapping[str, Sequence[float]]) -> None:
        self.history = {request: deque(history, maxlen=self.buffer) for request, history in state.items()}


def count_flat_groups(requests: Sequence[str], rewards: Sequence[float] | np.ndarray) -> int:
    """Count the groups from which nothing can be learned, because all known rewards are equal."""
    values, names = np.asarray(rewards, dtype=np.float64), np.asarray(requests)
    groups = [values[(names == request) & np.isfinite(values)] for request in dict.fromkeys(requests)]
    return sum(len(group) == 0 or float(np.ptp(group)) == 0.0 for group in groups)
