"""The K best against the K worst by each single score. Pairs that two scores order differently are left out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prefkit.pair.block import BlockStrategy, Chosen


@dataclass(frozen=True)
class PerScorerOptions:
    #: K, the maximum number of pairs per request and score
    k: int = 1


class PerScorer(BlockStrategy):
    Options = PerScorerOptions

    def __init__(self, options: PerScorerOptions) -> None:
        super().__init__(options)
        self.needs = 2 * options.k

    def block(self, value: np.ndarray, scores: np.ndarray) -> Chosen:
        """Choose pairs by each score alone, with its gap; if several scores choose a pair, the widest gap counts."""
        parts = []
        ties = np.broadcast_to(self.ties, scores.shape[2])
        for s in range(scores.shape[2]):
            column = scores[:, :, s]
            count = (~np.isnan(column)).sum(axis=1)
            order = np.argsort(-column, axis=1, kind="stable")  # NaN last
            for k in range(min(self.options.k, column.shape[1] // 2)):
                rows = np.flatnonzero(count >= 2 * (k + 1))
                win, lose = order[rows, k], order[rows, count[rows] - 1 - k]
                gap = column[rows, win] - column[rows, lose]
                wide = gap > ties[s]
                parts.append([values[wide] for values in (rows, win, lose, gap, np.full(len(rows), s))])
        row, win, lose, gap, by = map(np.concatenate, zip(*parts)) if parts else [np.zeros(0, np.int64)] * 5
        size = value.shape[1]
        key = (row * size + np.minimum(win, lose)) * size + np.maximum(win, lose)
        order = np.lexsort((by, -gap, key))
        first = np.r_[True, key[order][1:] != key[order][:-1]] if len(key) else np.zeros(0, bool)
        number = np.cumsum(first) - 1
        ups = np.bincount(number, (win < lose)[order], minlength=int(first.sum()))
        choices = np.bincount(number, minlength=int(first.sum()))
        keep = order[first][(ups == 0) | (ups == choices)]
        return Chosen(row[keep], win[keep], lose[keep], gap[keep], by[keep])


plugin = PerScorer
