"""Exact values of the best possible scorer on the planted rules of `fashion_mnist.py`.

The best scorer ranks items by the probability that they are the right one, and items of equal probability at random. Its AUC
against negatives that are drawn from a pool, and its share of right answers among `choices` items, follow by counting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from math import comb

import numpy as np


def style_given(votes: Sequence[int], styles: int, noise: float) -> np.ndarray:
    """Return P(style of the missing item | styles of the other items), [styles].

    Each item of an outfit has the outfit's style with probability 1 - noise, else one of the other styles.
    """
    likelihood = np.full((styles, styles), noise / (styles - 1))  # [style of the outfit, style of an item]
    np.fill_diagonal(likelihood, 1 - noise)
    posterior = np.prod([likelihood[:, vote] for vote in votes], axis=0) if len(votes) else np.ones(styles)
    return posterior / posterior.sum() @ likelihood


def outfit_ceiling(styles: int, others: int, noise: float, pool: Sequence[int], choices: int) -> dict[str, float]:
    """Return the AUC and the share of right answers (`fitb`) of the best scorer on outfits of others + 1 items.

    pool: number of items of each style in the blank's category; the negatives are drawn from them without the right item.
    """
    found = {"auc": 0.0, "fitb": 0.0}
    for votes in product(range(styles), repeat=others):
        chance = sum(
            np.prod([1 - noise if vote == style else noise / (styles - 1) for vote in votes]) for style in range(styles)
        )
        if not chance:
            continue
        probability = style_given(votes, styles, noise)
        best = best_on(dict(enumerate(probability)), dict(enumerate(pool)), choices)
        for name in found:
            found[name] += float(chance) / styles * best[name]
    return found


def best_on(right: Mapping[int, float], pool: Mapping[int, int], choices: int) -> dict[str, float]:
    """Return the expected AUC and fitb of the best scorer, if the right item is of kind k with probability right[k].

    Within a kind, each item of the pool is equally probable, so the scorer ranks by right[k] / pool[k]. The negatives are drawn
    from the pool without the right item.
    """
    rate = {kind: right[kind] / pool[kind] for kind in right if pool[kind]}
    auc = fitb = 0.0
    for kind, chance in right.items():
        if not chance:
            continue
        near = {other: np.isclose(rate[other], rate[kind], rtol=1e-9) for other in rate}
        tied = sum(pool[other] for other in rate if near[other]) - 1
        below = sum(pool[other] for other in rate if not near[other] and rate[other] < rate[kind])
        total = sum(pool.values()) - 1
        auc += chance * (below + tied / 2) / total
        wins = sum(comb(tied, k) * comb(below, choices - 1 - k) / (k + 1) for k in range(choices))
        fitb += chance * wins / comb(total, choices - 1)
    return {"auc": auc, "fitb": fitb}
