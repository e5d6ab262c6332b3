"""result.json as a table that fits a terminal: one line per model and judge."""

from __future__ import annotations

from typing import Any

ORDER = (False, None, True)
MARKS = {True: "*", False: "", None: "?"}


def summary_rows(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Columns model, judge (* the training signal, ? not known), base, tuned, wins (95 % interval), verdict; `set` if several.

    Held-out judges come first, then those of which nobody knows.
    """
    rows = []
    sets = [(name, models) for result in results for name, models in result["sets"].items()]
    for set_name, models in sets:
        for model, scorers in models.items():
            for alias, row in sorted(scorers.items(), key=lambda item: ORDER.index(item[1]["used_for_pairs"])):
                shown = {"set": set_name} if len(sets) > 1 else {}
                shown |= {"model": model, "judge": alias + MARKS[row["used_for_pairs"]]}
                shown |= {"base": _short(row["base"]), "tuned": _short(row["tuned"])}
                interval = f"{_short(row['win_rate'])} [{_short(row['ci_low'])}, {_short(row['ci_high'])}]"
                rows.append(shown | {"wins [95 %]": interval, "verdict": row["verdict"]})
    return rows


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
