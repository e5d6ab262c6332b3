"""Compare a scorer's aspects (named extra values) on base and tuned images: their means and variety among seeds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    from prefkit.store import Store


def aspect_table(folder: Store, generator: str, alias: str, requests: set[str], seeds: int) -> pd.DataFrame:
    """Return a table of candidates: request_id, index and one column per aspect. NaN: the aspect is missing."""
    import pandas as pd

    candidates = folder.candidates(generator).frame(["id", "request_id", "index"])
    wanted = candidates[candidates.request_id.isin(requests) & (candidates["index"] < seeds)]
    scores = folder.scores(alias).frame(["id", "aspects"]).dropna(subset="aspects")
    aspects = pd.DataFrame([json.loads(text) for text in scores.aspects], index=scores.id, dtype=float)
    return wanted.join(aspects, on="id", how="inner").drop(columns="id")


def compare_aspects(base: pd.DataFrame, tuned: pd.DataFrame) -> dict[str, dict[str, float | None]]:
    """Return {aspect: {base, tuned, differ_base, differ_tuned}} for the aspects that both tables have.

    base, tuned: means over requests of the mean over seeds; None for an aspect called which_..., whose values are class
    indices. differ_base, differ_tuned: means over requests of the probability that two seeds have different values
    (Gini-Simpson, unbiased).
    """
    names = [name for name in base.columns if name not in ("request_id", "index") and name in tuned.columns]
    tables = {"base": base, "tuned": tuned}
    return {
        name: {key: _mean(table, name) for key, table in tables.items()}
        | {f"differ_{key}": _differ(table, name) for key, table in tables.items()}
        for name in names
    }


def _mean(table: pd.DataFrame, name: str) -> float | None:
    if name.startswith("which_"):
        return None
    mean = table.groupby("request_id")[name].mean().mean()
    return float(mean) if np.isfinite(mean) else None


def _differ(table: pd.DataFrame, name: str) -> float | None:
    probabilities = []
    for _, values in table.dropna(subset=name).groupby("request_id")[name]:
        n, counts = len(values), values.value_counts().to_numpy()
        if n > 1:
            probabilities.append(1 - float((counts * (counts - 1)).sum()) / (n * (n - 1)))
    return float(np.mean(probabilities)) if probabilities else None
