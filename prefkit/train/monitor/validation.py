"""Measures held-out pairs at fixed draws over all times, because the loss of single steps does not show progress."""

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
VISIT = -1  # training uses visits 0, 1, ...; the time bins use visits -1, -2, ...
MAX_FRACTION = 0.2


def split(pairs: Sequence[PairRow], count: int) -> tuple[list[PairRow], list[PairRow]]:
    """Split pairs into (training, held out), with all pairs of a prompt in the same part.

    A hash selects the held-out prompts. At most `count` pairs, and at most a fifth of all, are held out.
    """
    by_prompt: dict[str, list[PairRow]] = {}
    for pair in pairs:
        by_prompt.setdefault(caption_key(pair.prompt), []).append(pair)
    free = min(count, int(MAX_FRACTION * len(pairs)))
    rows: set[int] = set()
    for prompt in sorted(by_prompt, key=lambda prompt: digest("validation", prompt)):
        if len(by_prompt[prompt]) <= free:
            free -= len(by_prompt[prompt])
            rows |= {pair.row for pair in by_prompt[prompt]}
    return [pair for pair in pairs if pair.row not in rows], [pair for pair in pairs if pair.row in rows]


def time_bins(schedule: Any) -> tuple[list[Tensor], list[str]]:
    """Divide the time axis into BINS equal parts; return their midpoints ([1] each, in schedule units) and names."""
    edges = [i / BINS for i in range(BINS + 1)]
    middles = [(a + b) / 2 for a, b in pairwise(edges)]
    if schedule.alphas_cumprod is None:
        names = [f"{a:.1f}-{b:.1f}" for a, b in pairwise(edges)]
        return [torch.tensor([m], dtype=torch.float64) for m in middles], names
    steps = len(schedule.alphas_cumprod)
    names = [f"{int(a * steps)}-{int(b * steps) - 1}" for a, b in pairwise(edges)]
    return [torch.tensor([int(m * steps)]) for m in middles], names


def errors_by_bin(
    family: Any, data: PairData, groups: Sequence[Any], measure: Callable[[Batch], Tensor], batch_size: int
) -> Tensor:
    """Return errors [groups, BINS, images per group] float64, at one fixed draw per group and time bin.

    measure: function from a batch of G groups to errors [images * G], summed over heads.
    """
    index = {group.row: i for i, group in enumerate(groups)}
    errors = torch.zeros(len(groups), BINS, len(groups[0].images) if groups else 1, dtype=torch.float64)
    for number, time in enumerate(time_bins(family.schedule)[0]):
        for start in range(0, len(groups), batch_size):
            visits = [(group, VISIT - number) for group in groups[start : start + batch_size]]
            for batch in data.batches(family, visits, time):
                rows = [index[group.row] for group in batch.members]
                errors[rows, number] = measure(batch).cpu().double().view(-1, len(rows)).T
    return errors


@dataclass
class Validation:
    """Measures the margins of held-out pairs at one fixed draw per pair and time bin.

    reference: errors of the initial model, measured once. scale: factor of the margins: beta / 2 for objectives with a
    beta (the margin is then the z of their loss), else 1.
    """

    family: Any
    data: PairData
    pairs: Sequence[PairRow]
    batch_size: int
    scale: float
    reference: Tensor | None = None

    def errors(self, measure: Callable[[Batch], Tensor], share: tuple[int, int]) -> Tensor:
        """Return the errors of winner and loser, [pairs, BINS, 2] float64; 0 for pairs outside this process's share.

        measure: see errors_by_bin. share: (rank, processes).
        """
        errors = torch.zeros(len(self.pairs), BINS, 2, dtype=torch.float64)
        mine = slice(share[0], None, share[1])
        errors[mine] = errors_by_bin(self.family, self.data, self.pairs[mine], measure, self.batch_size)
        return errors

    def report(self, policy: Tensor) -> dict[str, Any]:
        """Return the margin, accuracy and advantages by time bin. policy: the policy's errors on all pairs."""
        assert self.reference is not None
        advantage = self.reference - policy
        gap = advantage[..., 0] - advantage[..., 1]
        return {
            "pairs": len(self.pairs),
            "bins": time_bins(self.family.schedule)[1],
            "margin": (self.scale * gap).mean(0).tolist(),
            "implicit_accuracy": ((gap > 0).double() + 0.5 * (gap == 0).double()).mean(0).tolist(),
            "win_advantage": advantage[..., 0].mean(0).tolist(),
            "lose_advantage": advantage[..., 1].mean(0).tolist(),
        }
