"""The table of aspects: what changed beside the score, and whether seeds of one request still differ."""

from __future__ import annotations

from typing import Any

from prefkit.report import grids, html

HEAD = ["Model", "Judge", "Aspect", "Base", "Tuned", "Two seeds differ, base", "tuned"]
NOTE = (
    "Means of the judges' aspects, and the probability that two seeds of one request differ in them: what a tuned model "
    "should still vary, it should vary as often as the base."
)


def table(models: dict[str, dict[str, Any]]) -> str:
    """Nothing where no judge has aspects. Judges often share aspects; each is shown for the first that has it."""
    rows = []
    for model in sorted(models, key=grids.is_variant):
        seen: set[str] = set()
        for alias, row in models[model].items():
            for name, values in row.get("aspects", {}).items():
                if name in seen:
                    continue
                seen.add(name)
                numbers = [values[key] for key in ("base", "tuned", "differ_base", "differ_tuned")]
                shown = [html.text(model, 40), html.text(alias, 40), html.text(name.replace("_", " "), 40)]
                rows.append(shown + ["–" if value is None else f"{value:.2f}" for value in numbers])
    return f'{html.table(HEAD, rows, left=3)}<p class="quiet">{NOTE}</p>' if rows else ""
