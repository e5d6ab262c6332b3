"""What a scorer's aspects say of base and tuned: their means, and how much seeds of one request still differ."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    from prefkit.store import Store


def aspect_table(folder: Store, generator: str, alias: str, requests: set[str], seeds: int) -> pd.DataFrame:
    """request_id, index and a column per aspect of the scorer (NaN where a candidate has not got it)."""
    import pandas as pd

    candidates = folder.candidates(generator).frame(["id", "request_id", "index"])
    wanted = candidates[candidates.request_id.isin(requests) & (candidates["index"] < seeds)]
    scores = folder.scores(alias).frame(["id", "aspects"]).dropna(subset="aspects")
    aspects = pd.DataFrame([json.loads(text) for text in scores.aspects], index=scores.id, dtype=float)
    return wanted.join(aspects, on="id", how="inner").drop(columns="id")


def compare_aspects(base: pd.DataFrame, tuned: pd.DataFrame) -> dict[str, dict[str, float | None]]:
    """{aspect: {base, tuned, differ_base, differ_tuned}}: means over requests of the mean over seeds, and of the
    probability that two seeds of one request have different values (Gini-Simpson, unbiased). An aspect called which_...
    is the number of a class, which has no mean."""
    names = [name for name in base.columns if name not in ("request_id", "index") and name in tuned.columns]
    return {
        name: {
            "base": _mean(base, name),
            "tuned": _mean(tuned, name),
            "differ_base": _differ(base, name),
            "differ_tuned": _differ(tuned, name),
        }
        for name in names
    }


def _mean(table: pd.DataFrame, name: str) -> float | None:
    if name.startswith("which_"):
        return None
    found = table.groupby("request_id")[name].mean().mean()
    return float(found) if np.isfinite(found) else None


def _differ(table: pd.DataFrame, name: str) -> float | None:
    shares = []
    for _, values in table.dropna(subset=name).groupby("request_id")[name]:
        n = len(values)
        if n > 1:
            counts = values.value_counts().to_numpy()
            shares.append(1 - float((counts * (counts - 1)).sum()) / (n * (n - 1)))
    return float(np.mean(shares)) if shares else None
