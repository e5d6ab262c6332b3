"""Each scorer its own pairs, the K best against the K worst by its score alone; what scorers contradict is left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from prefkit.pair.block import Chosen, ScoreTable


@dataclass(frozen=True)
class PerScorerOptions:
    #: pairs per request and scorer
    k: int = 1


class PerScorer:
    Options = PerScorerOptions

    def __init__(self, options: PerScorerOptions) -> None:
        self.options = options
        self.needs = 2 * options.k
        self.ties: np.ndarray | None = None

    def fit(self, table: ScoreTable) -> None:
        self.ties = table.ties

    def pairs(self, value: np.ndarray, scores: np.ndarray) -> list[tuple[int, int, float]]:
        """scores [N, S], NaN = missing -> (win, lose, gap > 0 of the scorer that chose the pair)."""
        from prefkit.pair.block import single

        return single(self, value, scores)

    def block(self, value: np.ndarray, scores: np.ndarray) -> Chosen:
        """scores [R, N, S] -> pairs, request by request. A pair chosen twice counts once, with its widest gap."""
        import numpy as np

        from prefkit.pair.block import Chosen

        found: list[list[np.ndarray]] = [[], [], [], [], []]
        for s in range(scores.shape[2]):
            own = scores[:, :, s]
            count = (~np.isnan(own)).sum(axis=1)
            order = np.argsort(-own, axis=1, kind="stable")  # NaN last
            for k in range(min(self.options.k, own.shape[1] // 2)):
                rows = np.flatnonzero(count >= 2 * (k + 1))
                win, lose = order[rows, k], order[rows, count[rows] - 1 - k]
                gap = own[rows, win] - own[rows, lose]
                wide = gap > (0.0 if self.ties is None else self.ties[s])
                for kept, new in zip(found, (rows, win, lose, gap, np.full(len(rows), s))):
                    kept.append(new[wide])
        row, win, lose, gap, by = (np.concatenate(f) if f else np.zeros(0, np.int64) for f in found)
        size = value.shape[1]
        key = (row * size + np.minimum(win, lose)) * size + np.maximum(win, lose)
        order = np.lexsort((by, -gap, key))
        first = np.r_[True, key[order][1:] != key[order][:-1]] if len(key) else np.zeros(0, bool)
        number = np.cumsum(first) - 1
        up = (win < lose)[order]
        ups, all_of = (
            np.bincount(number, up, minlength=int(first.sum())),
            np.bincount(number, minlength=int(first.sum())),
        )
        agreed = (ups == 0) | (ups == all_of)
        keep = order[first][agreed]
        return Chosen(row[keep], win[keep], lose[keep], gap[keep], by[keep])


plugin = PerScorer
