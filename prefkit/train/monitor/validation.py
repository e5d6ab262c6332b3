"""Held-out pairs, measured at fixed draws over the whole range of times: the step loss alone shows no progress."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from prefkit.train.data.batches import Batch, PairData
from prefkit.train.data.pairs import PairRow
from prefkit.types import caption_key, digest

BINS = 5
VISIT = -1  # visits of training are 0, 1, ...; those of the bins are -1, -2, ...
LARGEST_SHARE = 0.2


def split(pairs: Sequence[PairRow], count: int) -> tuple[list[PairRow], list[PairRow]]:
    """(training, validation): whole prompts, chosen by their hash, until about `count` pairs are kept aside.

    At most a fifth of the pairs is kept aside, so that a small set is not lost to validation; no prompt is on both sides.
    """
    by_prompt: dict[str, list[PairRow]] = {}
    for pair in pairs:
        by_prompt.setdefault(caption_key(pair.prompt), []).append(pair)
    most = min(count, int(LARGEST_SHARE * len(pairs)))
    aside: set[str] = set()
    taken = 0
    for prompt in sorted(by_prompt, key=lambda prompt: digest("validation", prompt)):
        if taken + len(by_prompt[prompt]) <= most:
            aside.add(prompt)
            taken += len(by_prompt[prompt])
    held = {pair.row for prompt in aside for pair in by_prompt[prompt]}
    return [p for p in pairs if p.row not in held], [p for p in pairs if p.row in held]


@dataclass(frozen=True)
class Times:
    """Middles of BINS equal parts of the time axis: [1] tensors in the schedule's units, and names for the log."""

    values: list[Tensor]
    names: list[str]

    @classmethod
    def of(cls, schedule: Any) -> Times:
        edges = [i / BINS for i in range(BINS + 1)]
        middles = [(a + b) / 2 for a, b in pairwise(edges)]
        if schedule.alphas_cumprod is None:
            names = [f"{a:.1f}-{b:.1f}" for a, b in pairwise(edges)]
            return cls([torch.tensor([m], dtype=torch.float64) for m in middles], names)
        steps = len(schedule.alphas_cumprod)
        names = [f"{int(a * steps)}-{int(b * steps) - 1}" for a, b in pairwise(edges)]
        return cls([torch.tensor([int(m * steps)]) for m in middles], names)


class Validation:
    """Margins on fixed draws, one per pair and bin. `reference` is measured once, on the untouched start.

    scale: beta / 2 where the objective has a beta, so that margins are its z; else 1, the plain difference of errors.
    """

    def __init__(self, family: Any, data: PairData, pairs: Sequence[PairRow], batch_size: int, scale: float) -> None:
        self.family, self.data, self.pairs, self.batch_size, self.scale = family, data, list(pairs), batch_size, scale
        self.times = Times.of(family.schedule)
        self.reference: Tensor | None = None

    def errors(self, measure: Callable[[Batch], Tensor], share: tuple[int, int]) -> Tensor:
        """[pairs, bins, 2] float64: errors of winner and loser; zero for pairs of other processes than share's.

        measure: a batch of G pairs -> errors [2 G], all heads added. share: (rank, processes).
        """
        found = torch.zeros(len(self.pairs), BINS, 2, dtype=torch.float64)
        own = range(len(self.pairs))[share[0] :: share[1]]
        place = {self.pairs[i].row: i for i in own}
        for part, time in enumerate(self.times.values):
            for start in range(0, len(own), self.batch_size):
                chosen = [(self.pairs[i], VISIT - part) for i in own[start : start + self.batch_size]]
                for batch in self.data.batches(self.family, chosen, time):
                    measured = measure(batch).cpu().double().view(2, -1).T
                    for pair, both in zip(batch.members, measured, strict=True):
                        found[place[pair.row], part] = both
        return found

    def report(self, policy: Tensor) -> dict[str, Any]:
        """Means over the pairs by bin, from errors of all pairs."""
        assert self.reference is not None
        advantage = self.reference - policy
        gap = advantage[..., 0] - advantage[..., 1]
        return {
            "pairs": len(self.pairs),
            "bins": self.times.names,
            "margin": (self.scale * gap).mean(0).tolist(),
            "implicit_accuracy": ((gap > 0).double() + 0.5 * (gap == 0).double()).mean(0).tolist(),
            "win_advantage": advantage[..., 0].mean(0).tolist(),
            "lose_advantage": advantage[..., 1].mean(0).tolist(),
        }
