"""Easy pairs first: the stream of pairs by rank gap, as a function of the position alone.

The stream of a whole training is cut into equal stages; stage k of K draws from the k/K of the pairs with the widest gaps,
so that every stage keeps the easier pairs of those before it (Curriculum-DPO, arXiv 2405.13637, does so with lists of
ranked images). Within a stage each pass over its pairs is a permutation. Nothing is remembered: a resumed training goes
on where it was, and every split into processes and micro-batches sees one stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from prefkit.config import Train
from prefkit.errors import UsageError
from prefkit.train.data.batches import order
from prefkit.train.data.pairs import PairRow
from prefkit.types import digest


class Curriculum:
    """stages of a stream of `length` positions over these pairs. Raises UsageError where gaps are missing."""

    def __init__(self, pairs: Sequence[PairRow], stages: int, seed: int, length: int) -> None:
        gaps = [_gap(pair) for pair in pairs]
        kinds = {kind for kind, _ in gaps}
        if len(kinds) > 1 or None in kinds:
            raise UsageError("train.curriculum: not every pair has a rank_gap, nor every one a score_gap, so they have no "
                             "order from easy to hard. Take pairs that `prefkit pair` made, or curriculum: 0.")  # fmt: skip
        ranked = sorted(range(len(pairs)), key=lambda i: (-gaps[i][1], digest(seed, pairs[i].id)))
        self.seed, self.length = seed, length
        self.pools = [ranked[: math.ceil(len(pairs) * k / stages)] for k in range(1, stages + 1)]
        self.starts = [math.ceil(length * k / stages) for k in range(stages + 1)]

    def place(self, position: int) -> tuple[int, int]:
        """(index of the pair, visit) at a position; positions beyond the length go on in the last stage.

        No pair meets a visit twice: the passes of all stages are counted through.
        """
        stage = max(k for k in range(len(self.pools)) if self.starts[k] <= position)
        lengths = [self.starts[k + 1] - self.starts[k] for k in range(stage)]
        before = sum(math.ceil(length / len(pool)) for length, pool in zip(lengths, self.pools, strict=False))
        pool = self.pools[stage]
        key = int(digest("curriculum", self.seed, stage)[:8], 16)
        index, epoch = order(len(pool), key, position - self.starts[stage])
        return pool[index], before + epoch


def stream(groups: Sequence[Any], config: Train, global_batch: int) -> Callable[[int], tuple[int, int]]:
    """(index of the group, visit) at each position of what this training sees."""
    if config.curriculum:
        return Curriculum(groups, config.curriculum, config.seed, config.steps * global_batch).place
    return lambda position: order(len(groups), config.seed, position)


def _gap(pair: PairRow) -> tuple[str | None, float]:
    if pair.rank_gap is not None:
        return "rank_gap", float(pair.rank_gap)
    return ("score_gap", pair.score_gap) if pair.score_gap is not None else (None, 0.0)
