"""Convert result.json to tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

ORDER = (False, None, True)
MARKS = {True: "*", False: "", None: "?"}
JUDGES = {True: "training signal", False: "held out", None: "unknown"}
MEASURES = {"frechet": "Fréchet", "cmmd": "CMMD"}
NUMBERS = ("base", "tuned", "win_rate", "ci_low", "ci_high", "tie_share", "n_requests")


def flat_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one row per set, model and scorer, with the numbers of the comparison."""
    rows = []
    for set_name, model, alias, row in _rows(result):
        shown = {"set": set_name, "model": model, "scorer": alias} | {key: _rounded(row[key], 4) for key in NUMBERS}
        shown |= {"best_of_n": _rounded(row["best_of_n"], 2), "judge": JUDGES[row["used_for_pairs"]]}
        rows.append(shown | {"verdict": row["verdict"]})
    return rows


def summary_rows(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per set, model and judge (scorer), with base, tuned, wins (95 % interval) and verdict.

    The judge that was the training signal is marked *, or ? if unknown. Held-out judges come first, then unknown ones.
    """
    entries = [entry for result in results for entry in _rows(result)]
    several = sum(len(result["sets"]) for result in results) > 1
    places = {key: number for number, key in enumerate(dict.fromkeys(entry[:2] for entry in entries))}
    rows = []
    for entry in sorted(entries, key=lambda entry: (places[entry[:2]], ORDER.index(entry[3]["used_for_pairs"]))):
        set_name, model, alias, row = entry
        shown = {"set": set_name} if several else {}
        shown |= {"model": model, "judge": alias + MARKS[row["used_for_pairs"]]}
        shown |= {"base": _short(row["base"]), "tuned": _short(row["tuned"])}
        interval = f"{_short(row['win_rate'])} [{_short(row['ci_low'])}, {_short(row['ci_high'])}]"
        rows.append(shown | {"wins [95 %]": interval, "verdict": row["verdict"]})
    return rows


def distance_rows(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per set, model and distance to real images: base, tuned, and their difference with its interval."""
    return [
        {"set": set_name, "model": model, f"distance by {row['encoder']}": label}
        | {key: _short(row[measure][key]) for key in ("base", "tuned")}
        | {"tuned - base [95 %]": _interval(row[measure]), "images": row["n"], "real": row["n_real"]}
        for result in results
        for set_name, model, row in real_distances(result)
        for measure, label in MEASURES.items()
    ]


def tier_rows(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per set, model, judge and group of `by`: means of floor, base, tuned and ceiling, and RI."""
    return [
        {"set": set_name, "model": model, "judge": alias}
        | ({"group": group} if any_by else {})
        | {name: _short(part["means"].get(name)) for name in ("superficial", "base", "tuned", "explicit")}
        | {"RI [95 %]": improvement(part["relative_improvement"]), "requests": part["n_requests"]}
        for result in results
        for set_name, model, alias, row in _rows(result)
        if row.get("tiers")
        for any_by in [row["tiers"]["by"] is not None]
        for group, part in {"all": row["tiers"], **(row["tiers"]["by"] or {})}.items()
    ]


def improvement(estimate: dict[str, Any] | None) -> str:
    """Return a relative improvement as text: value and interval in percent, or the reason why it has none."""
    if estimate is None:
        return "-"
    if estimate["value"] is None:
        return f"- ({estimate['reason']})"
    value = f"{estimate['value']:.1%}"
    if estimate["low"] is None:
        return f"{value} ({estimate['reason']})"
    return f"{value} [{estimate['low']:.1%}, {estimate['high']:.1%}]"


def real_distances(result: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (set, model, `real_distance`) once per set and model: the rows of all scorers hold the same value."""
    seen = set()
    for set_name, model, _, row in _rows(result):
        if (set_name, model) not in seen and row.get("real_distance"):
            seen.add((set_name, model))
            yield set_name, model, row["real_distance"]


def _interval(row: dict[str, Any]) -> str:
    return f"{_short(row['difference'])} [{_short(row['ci_low'])}, {_short(row['ci_high'])}]"


def _rows(result: dict[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Yield (set, model, scorer, comparison)."""
    for set_name, models in result["sets"].items():
        for model, scorers in models.items():
            for alias, row in scorers.items():
                yield set_name, model, alias, row


def _rounded(value: Any, digits: int) -> Any:
    return round(value, digits) if isinstance(value, float) else value


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
