"""The K best candidates of a request against the K worst: best with worst, second best with second worst, and so on.

A request with N < 2 K scored candidates gives N // 2 pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prefkit.pair.block import BlockStrategy, Chosen


@dataclass(frozen=True)
class TopkOptions:
    #: K, the number of pairs per request
    k: int = 1


class TopkBottomk(BlockStrategy):
    Options = TopkOptions

    def __init__(self, options: TopkOptions) -> None:
        super().__init__(options)
        self.needs = 2 * options.k

    def block(self, value: np.ndarray, scores: np.ndarray) -> Chosen:
        """Choose K pairs per request; candidates with equal values are ranked in their given order."""
        k = min(self.options.k, value.shape[1] // 2)
        order = np.argsort(-value, axis=1, kind="stable")
        win, lose = order[:, :k], order[:, ::-1][:, :k]
        gap = np.take_along_axis(value, win, 1) - np.take_along_axis(value, lose, 1)
        return Chosen(np.repeat(np.arange(len(value)), k), win.ravel(), lose.ravel(), gap.ravel())


plugin = TopkBottomk
