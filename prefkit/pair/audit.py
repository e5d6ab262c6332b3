"""Audit a pair set: pairs per request, ties, agreement among scorers, and image features that predict the winner."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from prefkit.images import TRAITS, Background
from prefkit.pair.block import blocks, distinct
from prefkit.pair.choose import Outcome
from prefkit.pair.image_stats import FEATURES
from prefkit.pair.normalise import normalise
from prefkit.pair.pool import Pool
from prefkit.pair.shortcut import bootstrap_ratio, shortcuts

REQUESTS = 5000  # agreement and shortcuts are measured on at most this many requests, drawn with a fixed seed
ROUNDS = 500
#: image trait (one of images.TRAITS) -> sentence about the images that have it
TREATMENT = {
    "transparent": "{n} have transparency (composited on {background})",
    "profile": "{n} have a colour profile other than sRGB (converted)",
    "broken_profile": "{n} have a broken colour profile (ignored)",
    "deep": "{n} have more than 8 bits (scaled)",
    "turned": "{n} have an EXIF orientation (applied)",
    "animated": "{n} have several frames (the first is used)",
}


def audit(pool: Pool, outcome: Outcome, aliases: list[str], stats: pd.DataFrame | None) -> dict[str, Any]:
    """Return the audit, ready for JSON. stats: image statistics [N] in the pool's order, None if not measured."""
    groups = pool.frame.request.to_numpy()
    pairs, requests = outcome.pairs, distinct(groups)
    per_request = np.bincount(np.searchsorted(requests, groups[pairs.win.to_numpy()]), minlength=len(requests))
    sizes, times = np.unique(per_request, return_counts=True)
    total = len(pairs) + len(outcome.ties)
    drawn = np.sort(np.random.default_rng(0).choice(requests, min(REQUESTS, len(requests)), replace=False))
    report: dict[str, Any] = {
        "pairs": len(pairs),
        "requests": len(requests),
        "requests_without_pairs": int((per_request == 0).sum()),
        "pairs_per_request": {str(size): int(count) for size, count in zip(sizes, times)},
        "tie_rate": len(outcome.ties) / total if total else None,
        "conflict_share": float(pairs.conflict.mean()) if len(pairs) and len(aliases) > 1 else None,
        "measured_on_requests": len(drawn),
    }
    if outcome.scores.shape[1] > 1:
        mask = np.isin(groups, drawn)
        report |= {"scorers": aliases, **agreement(outcome.scores[mask], groups[mask], outcome.ties_of)}
    report["shortcuts"] = _shortcuts(pool, pairs[np.isin(groups[pairs.win.to_numpy()], drawn)], stats)
    report["not_measured"] = [] if stats is not None else [*FEATURES, "images"]
    if stats is not None:
        counts = {name: int(stats[name].fillna(False).astype(bool).sum()) for name in TRAITS}
        report["images"] = {"looked_at": len(stats), **counts, "background": Background.name()}
    return report


def agreement(scores: np.ndarray, groups: np.ndarray, ties: np.ndarray) -> dict[str, Any]:
    """Compare the S scorers with each other. Returns two S x S matrices with entries [value, low, high] or None.

    agreement: fraction of candidate pairs that both scorers rank in the same order, among pairs that neither sees as a
    tie; rank_correlation: Spearman's rho, averaged over requests; low, high: bootstrap interval over requests.

    scores [N, S]: higher is better, NaN = missing; groups [N], sorted: each candidate's request; ties [S]: tie
    thresholds.
    """
    size = scores.shape[1]
    alike: list[list[Any]] = [[None] * size for _ in range(size)]
    ranked: list[list[Any]] = [[None] * size for _ in range(size)]
    for a in range(size):
        for b in range(a, size):
            present = ~np.isnan(scores[:, [a, b]]).any(axis=1)
            same, both, rho = _within(scores[present][:, [a, b]], groups[present], ties[[a, b]])
            rho = rho[~np.isnan(rho)]
            alike[a][b] = alike[b][a] = _interval(same, both)
            ranked[a][b] = ranked[b][a] = _interval(rho, np.ones(len(rho)))
    return {"agreement": alike, "rank_correlation": ranked}


def _within(x: np.ndarray, groups: np.ndarray, ties: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compare two scorers. Returns, per request, the number of pairs that both rank in the same order, the number of
    pairs that neither sees as a tie, and Spearman's rho (NaN if a scorer gives all candidates the same score)."""
    ranks = np.stack([normalise(x[:, s], groups, "rank") for s in (0, 1)], axis=1) if len(x) else x
    same, both, rho = [np.zeros(0)], [np.zeros(0)], [np.zeros(0)]
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
    return np.concatenate(same), np.concatenate(both), np.concatenate(rho)


def _interval(total: np.ndarray, count: np.ndarray) -> list[float] | None:
    if not count.sum():
        return None
    return [float(total.sum() / count.sum()), *bootstrap_ratio(total.astype(float), count.astype(float), ROUNDS)]


def _shortcuts(pool: Pool, pairs: pd.DataFrame, stats: pd.DataFrame | None) -> dict[str, Any]:
    frame = pool.frame
    features = {"seed": frame.seed.to_numpy().astype(np.float64), "index": frame["index"].to_numpy()}
    if len(pool.generators) > 1:
        features["generator"] = np.eye(len(pool.generators))[frame.generator.to_numpy()]
    if stats is not None:
        features |= {name: stats[name].to_numpy() for name in FEATURES}
    win, lose = pairs.win.to_numpy(), pairs.lose.to_numpy()
    used = distinct(np.r_[win, lose])  # only paired candidates, because a run may hold far more
    features = {name: values[used] for name, values in features.items()}
    groups = frame.request.to_numpy()[win]
    return shortcuts(features, np.searchsorted(used, win), np.searchsorted(used, lose), groups)


def warnings_of(report: dict[str, Any]) -> list[str]:
    """Return sentences about what a user should know before training on these pairs."""
    warnings = []
    predictive = [
        f"{'all together' if name == 'all' else name.replace('_', ' ')} {row['accuracy']:.0%} ({row['low']:.0%} to {row['high']:.0%})"
        for name, row in report["shortcuts"].items()
        if row["warn"]
    ]
    if predictive:
        warnings.append(
            f"simple features predict the winner; their accuracy is: {', '.join(predictive)}. A model may learn "
            "these features instead of the preference, unless they are the preference."
        )
    images = report.get("images", {})
    present = {key: text for key, text in TREATMENT.items() if images.get(key)}
    if present:
        treated = [text.format(n=images[key], background=images["background"]) for key, text in present.items()]
        warnings.append(f"of {images['looked_at']} images, {'; '.join(treated)}.")
    leaks = report.get("splits", {})
    if leaks.get("prompts"):
        warnings.append(
            f"{leaks['prompts']} requests share a prompt with another split, so held-out data repeats training data."
        )
    if leaks.get("images"):
        warnings.append(f"{leaks['images']} paired images are equal or nearly equal to an image in another split.")
    return warnings
