"""What a training's looks at requests that it does not train on have found, and whether they raised the alarm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prefkit.report import html


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """A sentence and a table of the first and the last look of an offline training; nothing where there were none."""
    looks = [(row["step"], row["watch"]) for row in rows if "alarm" in row.get("watch", {})]
    if not looks:
        return ""
    alarms = [f"{step:,}" for step, found in looks if found["alarm"]]
    (start, first), (end, last) = looks[0], looks[-1]
    if alarms:
        verdict = (
            f"Over-optimisation alarm at step {', '.join(alarms)}: on requests that are not trained on, the held-out scores "
            "or the diversity had fallen."
        )
    else:
        verdict = f"No over-optimisation alarm in {len(looks)} looks at requests that are not trained on."
    scored = [alias for alias, value in last.items() if isinstance(value, Mapping)]
    table = [
        [html.text(alias, 40), *(html.number(found[alias]["mean"]) for found in (first, last))] for alias in scored
    ]
    table.append(["diversity within a request", html.number(first["diversity"]), html.number(last["diversity"])])
    heads = ["watched", f"step {start:,}", f"step {end:,}"]
    return html.table(heads, table, f"{verdict} Gain over the start: {last['gain']:+.2f} deviations.")
