"""Tiers of a prompt tuple: the base's images from the explicit and superficial prompts, scored against the implicit one.

A prompt tuple (Science-T2I, arXiv 2504.13129) is a request with further columns. The implicit prompt is the request's
prompt and does not say what the image should look like; the explicit prompt says it, and the superficial prompt
describes the wrong look that the implicit one suggests. Base images from the explicit prompt give a ceiling, those from
the superficial prompt a floor. With means over requests (of means over seeds) in which higher is better, the relative
improvement of a model is

    RI = (tuned - base) / (explicit - base)

Its interval is the 95 % percentile bootstrap of this ratio over requests. Where it is undefined, `reason` says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prefkit.config import Eval
from prefkit.errors import UsageError
from prefkit.evaluate.statistics import MIN_REQUESTS
from prefkit.output import warn
from prefkit.types import Request

if TYPE_CHECKING:
    import pandas as pd

MODELS = {"explicit": "base-explicit", "superficial": "base-superficial"}  # tier -> folder of its images
#: greatest fraction of bootstrap samples with explicit <= base for which the ratio has an interval
NOT_ABOVE = 0.001
UNKNOWN = "unknown"  # name of the group of requests without a value


def columns(cfg: Eval) -> dict[str, str]:
    """Return {folder of a tier's images: column with its prompts} for the tiers that the evaluation has."""
    named = {"explicit": cfg.explicit, "superficial": cfg.superficial}
    return {MODELS[tier]: column for tier, column in named.items() if column is not None}


def text_of(request: Request, column: str) -> str | None:
    """Return a text of a request: the value of a column, or the first of a list. None if it is missing or blank."""
    value = request.extra.get(column)
    value = value[0] if isinstance(value, list) and value else value
    return value if isinstance(value, str) and value.strip() else None


def prompts(cfg: Eval, model: str, requests: Sequence[Request]) -> dict[str, str] | None:
    """Return {request id: prompt} of a tier, without requests that lack one; None for models that are not tiers."""
    column = columns(cfg).get(model)
    if column is None:
        return None
    return {r.request_id: text for r in requests if (text := text_of(r, column)) is not None}


def check(name: str, cfg: Eval, sets: Mapping[str, Sequence[Request]]) -> None:
    """Check that requests have the columns of the tiers and of `by`. Raises UsageError if none in a set has one.

    Warns about the number of requests without a prompt.
    """
    keys = {key: column for key in ("explicit", "superficial", "by") if (column := getattr(cfg, key)) is not None}
    for set_name, requests in sets.items():
        for key, column in keys.items():
            missing = sum(text_of(r, column) is None for r in requests)
            if missing == len(requests):
                known = ", ".join(dict.fromkeys(c for r in requests for c in r.extra)) or "none besides the prompt"
                raise UsageError(
                    f"eval.{name}.{key}: no request of set {set_name!r} has a text in the column {column!r}; the columns "
                    f"are {known}. Set eval.{name}.{key} to one of them, or to null."
                )
            if missing and key != "by":
                warn(
                    f"eval {name}: {missing} of {len(requests)} requests of set {set_name!r} have no text in the column "
                    f"{column!r}; they are left out of the comparison with the {key} prompts."
                )


def tier_report(
    cfg: Eval, frames: Mapping[str, pd.DataFrame], requests: Sequence[Request], higher: bool
) -> dict[str, Any]:
    """Return {means, n_requests, left_out, relative_improvement, by} of one model and scorer.

    frames: score tables of `base`, `tuned` and the tiers `explicit` and `superficial`, with columns request_id, index
    and value. Only requests with a finite score in every table count; the others of the set are `left_out`. means: in
    the scorer's own units. by: the same for each value of the column `by`, None without one.
    """
    import pandas as pd

    sign = 1.0 if higher else -1.0
    table = pd.DataFrame({name: _means(frame, cfg.seeds) for name, frame in frames.items()}).dropna()
    table = table.reindex([r.request_id for r in requests if r.request_id in table.index])
    result = _summary(cfg, table, len(requests), sign)
    if cfg.by is None:
        return result | {"by": None}
    groups: dict[str, list[str]] = {}
    for request in requests:
        groups.setdefault(text_of(request, cfg.by) or UNKNOWN, []).append(request.request_id)
    parts = {group: table[table.index.isin(ids)] for group, ids in groups.items()}
    return result | {"by": {group: _summary(cfg, parts[group], len(groups[group]), sign) for group in sorted(groups)}}


def _means(frame: pd.DataFrame, seeds: int) -> pd.Series:
    frame = frame[(frame["index"] < seeds) & np.isfinite(frame.value.to_numpy(np.float64, na_value=np.nan))]
    return frame.astype({"value": float}).groupby("request_id").value.mean()


def _summary(cfg: Eval, table: pd.DataFrame, wanted: int, sign: float) -> dict[str, Any]:
    means = {name: float(table[name].mean()) if len(table) else None for name in table.columns}
    result: dict[str, Any] = {"means": means, "n_requests": len(table), "left_out": wanted - len(table)}
    if "explicit" not in table.columns:
        return result | {"relative_improvement": None}
    base, tuned, explicit = (sign * table[name].to_numpy(np.float64) for name in ("base", "tuned", "explicit"))
    return result | {"relative_improvement": relative_improvement(base, tuned, explicit, cfg.bootstrap)}


def relative_improvement(
    base: np.ndarray, tuned: np.ndarray, explicit: np.ndarray, samples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Return {value, low, high, reason} for [R] means per request, where higher is better. See the module's text.

    The value is None unless the mean of `explicit` exceeds that of `base`. The interval is also None with fewer than 6
    requests, and where more than 0.1 % of the bootstrap samples have no such gap, because a ratio with a denominator
    near 0 has no bounded interval.
    """
    result: dict[str, Any] = dict.fromkeys(("value", "low", "high", "reason"))
    gain, room = (np.asarray(other, np.float64) - np.asarray(base, np.float64) for other in (tuned, explicit))
    if not len(room):
        return result | {"reason": "no request has scores of the base, the model and the explicit prompt"}
    if room.mean() <= 0:
        return result | {"reason": f"the explicit prompts score no higher than the base ({room.mean():+.3g})"}
    result["value"] = float(gain.mean() / room.mean())
    if len(room) < MIN_REQUESTS:
        return result | {"reason": f"no interval: {len(room)} requests are too few (at least {MIN_REQUESTS})"}
    rng = np.random.default_rng(seed)
    rows = (rng.integers(0, len(room), len(room)) for _ in range(samples))
    gains, rooms = np.array([(gain[drawn].mean(), room[drawn].mean()) for drawn in rows]).T
    if (rooms <= 0).mean() > NOT_ABOVE:
        return result | {"reason": "no interval: the gap between explicit prompts and base is too uncertain"}
    low, high = np.quantile(gains[rooms > 0] / rooms[rooms > 0], [0.025, 0.975])
    return result | {"low": float(low), "high": float(high)}
