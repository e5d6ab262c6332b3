"""What a pair set is made of: spread over requests, ties, how far scorers agree, and what else predicts the winner."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from prefkit.images import TRAITS, Background
from prefkit.pair.block import blocks
from prefkit.pair.choose import Outcome
from prefkit.pair.look import FEATURES
from prefkit.pair.normalise import normalise
from prefkit.pair.pool import Pool
from prefkit.pair.shortcut import bootstrap_ratio, shortcuts

REQUESTS = 5000  # that agreement and shortcuts are measured on, drawn by a fixed seed where there are more
ROUNDS = 500
#: how images of each of images.TRAITS were seen
SHOWN = {
    "transparent": "{n} have transparency (composited on {background})",
    "profile": "{n} have a colour profile other than sRGB (converted)",
    "broken_profile": "{n} have a broken colour profile (ignored)",
    "deep": "{n} have more than 8 bits (scaled)",
    "turned": "{n} have an EXIF orientation (applied)",
    "animated": "{n} have several frames (the first is used)",
}


def audit(pool: Pool, found: Outcome, aliases: list[str], seen: pd.DataFrame | None) -> dict[str, Any]:
    """JSON-able. seen: looks [N] in the pool's order, or None where images were not looked at."""
    groups = pool.frame.request.to_numpy()
    pairs, requests = found.pairs, np.unique(groups)
    per_request = np.bincount(np.searchsorted(requests, groups[pairs.win.to_numpy()]), minlength=len(requests))
    sizes, times = np.unique(per_request, return_counts=True)
    chosen = len(pairs) + len(found.ties)
    drawn = np.sort(np.random.default_rng(0).choice(requests, min(REQUESTS, len(requests)), replace=False))
    report: dict[str, Any] = {
        "pairs": len(pairs),
        "requests": len(requests),
        "requests_without_pairs": int((per_request == 0).sum()),
        "pairs_per_request": {str(size): int(count) for size, count in zip(sizes, times)},
        "tie_rate": len(found.ties) / chosen if chosen else None,
        "conflict_share": float(pairs.conflict.mean()) if len(pairs) and len(aliases) > 1 else None,
        "measured_on_requests": len(drawn),
    }
    if found.scores.shape[1] > 1:
        mine = np.isin(groups, drawn)
        report |= {"scorers": aliases, **agreement(found.scores[mine], groups[mine], found.ties_of)}
    report["shortcuts"] = _shortcuts(pool, pairs[np.isin(groups[pairs.win.to_numpy()], drawn)], seen)
    report["not_measured"] = [] if seen is not None else [*FEATURES, "images"]
    if seen is not None:
        counted = {name: int(seen[name].fillna(False).astype(bool).sum()) for name in TRAITS}
        report["images"] = {"looked_at": len(seen), **counted, "background": Background.name()}
    return report


def agreement(scores: np.ndarray, groups: np.ndarray, ties: np.ndarray) -> dict[str, Any]:
    """Of every two scorers, within requests: agreement (share of candidate pairs that both order, ordered alike) and
    rank_correlation (mean over requests of Spearman's), each an S x S list of [value, low, high], or null.

    scores [N, S] higher is wanted, NaN = missing; groups [N] equal ones side by side; intervals: bootstrap over requests.
    """
    size = scores.shape[1]
    alike: list[list[Any]] = [[None] * size for _ in range(size)]
    ranked: list[list[Any]] = [[None] * size for _ in range(size)]
    for a in range(size):
        for b in range(a, size):
            there = ~np.isnan(scores[:, [a, b]]).any(axis=1)
            x, g = scores[there][:, [a, b]], groups[there]
            same, both, rho = _within(x, g, ties[[a, b]])
            alike[a][b] = alike[b][a] = _interval(same, both)
            ranked[a][b] = ranked[b][a] = _interval(rho[~np.isnan(rho)], np.ones(int((~np.isnan(rho)).sum())))
    return {"agreement": alike, "rank_correlation": ranked}


def _within(x: np.ndarray, groups: np.ndarray, ties: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per request: pairs ordered alike, pairs ordered by both, Spearman's rho (NaN where one scorer says all equal)."""
    ranks = np.stack([normalise(x[:, s], groups, "rank") for s in (0, 1)], axis=1) if len(x) else x
    same, both, rho = [], [], []
    for members in blocks(groups):
        if members.shape[1] < 2:
            continue
        i, j = np.triu_indices(members.shape[1], 1)
        difference = x[members][:, i] - x[members][:, j]
        sign = np.where(np.abs(difference) > ties, np.sign(difference), 0)
        product = sign[:, :, 0] * sign[:, :, 1]
        same.append((product > 0).sum(axis=1))
        both.append((product != 0).sum(axis=1))
        r = ranks[members] - ranks[members].mean(axis=1, keepdims=True)
        spread = np.sqrt((r**2).sum(axis=1).prod(axis=1))
        rho.append(np.where(spread > 0, r.prod(axis=2).sum(axis=1) / np.where(spread > 0, spread, 1.0), np.nan))
    empty = [np.zeros(0)]
    return np.concatenate(same or empty), np.concatenate(both or empty), np.concatenate(rho or empty)


def _interval(total: np.ndarray, count: np.ndarray) -> list[float] | None:
    if not count.sum():
        return None
    return [float(total.sum() / count.sum()), *bootstrap_ratio(total.astype(float), count.astype(float), ROUNDS)]


def _shortcuts(pool: Pool, pairs: pd.DataFrame, seen: pd.DataFrame | None) -> dict[str, Any]:
    frame = pool.frame
    features = {"seed": frame.seed.to_numpy().astype(np.float64), "index": frame["index"].to_numpy()}
    if len(pool.generators) > 1:
        features["generator"] = np.eye(len(pool.generators))[frame.generator.to_numpy()]
    if seen is not None:
        features |= {name: seen[name].to_numpy() for name in FEATURES}
    win, lose = pairs.win.to_numpy(), pairs.lose.to_numpy()
    used = np.unique(np.r_[win, lose])  # a run may hold far more candidates than the pairs measured
    features = {name: values[used] for name, values in features.items()}
    groups = frame.request.to_numpy()[win]
    return shortcuts(features, np.searchsorted(used, win), np.searchsorted(used, lose), groups)


def warnings_of(report: dict[str, Any]) -> list[str]:
    """Sentences on what a reader should know before training on these pairs."""
    found = []
    cheap = [
        f"{'all of them' if name == 'all' else name.replace('_', ' ')} {row['accuracy']:.0%} ({row['low']:.0%} to {row['high']:.0%})"
        for name, row in report["shortcuts"].items()
        if row["warn"]
    ]
    if cheap:
        found.append(
            f"the winner can be told from cheap features, right in so many pairs: {', '.join(cheap)}. A model can learn "
            "these instead of the preference, unless they are the preference."
        )
    odd = {name: report.get("images", {}).get(name, 0) for name in TRAITS}
    if any(odd.values()):
        looked, background = report["images"]["looked_at"], report["images"]["background"]
        shown = "; ".join(SHOWN[name].format(background=background, n=n) for name, n in odd.items() if n)
        found.append(f"of {looked} images, {shown}.")
    leaks = report.get("splits", {})
    if leaks.get("prompts"):
        found.append(
            f"{leaks['prompts']} requests have a twin by prompt in another split: what is held out is not new."
        )
    if leaks.get("images"):
        found.append(f"{leaks['images']} paired images have a twin in another split.")
    return found
