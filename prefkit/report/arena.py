"""The table and plot of a standings: the models of an evaluation ranked by one judge, by a score or by people's votes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefkit.report import html, plot

HEAD = ["Judge", "Model", "Strength", "", "95 % interval", "Points", "Games", "Ties", "Flips"]
NOTE = (
    "Strength: log odds with which an image of the model beats an image of the base for the same request and seed "
    "(Bradley-Terry; a tie is half a win for both). Points: mean result. Flips: pairs on which a judge contradicted "
    "itself when the images were shown in the other order; they count as ties. Intervals: bootstrap over requests."
)


def table(judges: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table with a row per judge and model, the strongest first; "" if nothing was ranked.

    judges: name -> result of human.standings.standings, with `flips` for judges that were asked in both orders.
    """
    rows = []
    for judge, found in judges.items():
        reach = max(abs(row[key]) for row in found["models"] for key in ("low", "high"))
        flips = "–" if found.get("flips") is None else f"{found['flips']:.0%}"
        for row in found["models"]:
            drawn = plot.strengths(row["low"], row["strength"], row["high"], reach)
            spread = f"{row['low']:+.2f} to {row['high']:+.2f}"
            numbers = [f"{row['points']:.2f}", f"{row['games']:,}", f"{found['ties']:.0%}", flips]
            names = [html.text(judge, 40), html.text(row["model"], 60)]
            rows.append([*names, f"{row['strength']:+.2f}", drawn, spread, *numbers])
    return html.table(HEAD, rows, left=2) + f'<p class="quiet">{NOTE}</p>' if rows else ""
