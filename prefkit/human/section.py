"""The report section on votes: sentences, tables, and agreement.json next to the page."""

from __future__ import annotations

from typing import Any

from prefkit.human.agreement import FEW, assess
from prefkit.report import arena, html, plot
from prefkit.report.evidence import results
from prefkit.store import Store
from prefkit.store.files import write_json

LEAD = (
    "People voted blindly on two images of the same request. All votes have the same weight; ties are left out and "
    "reported separately. A scorer without a preference counts as half an agreement. Intervals: 95 %, bootstrap over "
    "requests for scorers and win rates, over pairs for annotators. A scorer can hardly agree with people more than "
    "people agree with each other."
)
FEW_NOTE = f'<p class="quiet">▵ fewer than {FEW} requests or pairs: the interval is too narrow.</p>'
INTERVAL = ["95 % interval", "", "Of"]


def section(store: Store, by: str | None = None) -> str:
    """Return the section and write its numbers to RUN/agreement.json. Without votes, it explains how to get votes.

    by: a column of the requests, by whose values the scorers' agreement is also shown.
    """
    result = assess(store, by)
    path = store.folder / "agreement.json"
    if result is None:
        path.unlink(missing_ok=True)
        note = "Nobody has voted yet. <code>prefkit report RUN --vote</code> writes a voting page."
        return html.section("votes", "Votes", html.missing(note))
    write_json(path, result)
    lines = "".join(f"<li>{html.text(row['sentence'], 200)}</li>" for row in result["scorers"].values())
    body = (
        f'<ul class="findings">{lines}</ul>'
        if lines
        else html.missing("No scorer has scored the pairs that people voted on.")
    )
    body += (
        _people(result)
        + _scorers(result)
        + _by(result, by)
        + _evaluations(
            store, result["evaluations"], {f"people: {name}": found for name, found in result["standings"].items()}
        )
    )
    return html.section("votes", "Votes", body, LEAD)


def _people(result: dict[str, Any]) -> str:
    several = result["pairs_of_several"]
    rows = [
        ["Annotators agree (raw, ties count as a verdict)", *_cells(result["agreement"], "pairs", several)],
        ["Krippendorff's alpha (nominal: a, b, tie)", *_cells(result["alpha"], "pairs", several, percent=False)],
        ["The same verdict on a repeated pair", *_cells(result["consistency"], "repeats")],
        ["Chose the left image (50 % if the side does not matter)", *_cells(result["left"], "votes")],
    ]
    caption = (
        f"{result['votes']:,} votes by {result['annotators']:,} annotators on {result['pairs']:,} pairs; "
        f"{several:,} pairs have several votes; {result['ties']:.0%} ties"
    )
    few = _few([result[key] for key in ("agreement", "consistency", "left")])
    return html.table(["People", "", *INTERVAL], rows, caption) + few


def _scorers(result: dict[str, Any]) -> str:
    human, scorers = result["human"], result["scorers"]
    rows = []
    if human["votes"]["value"] is not None:
        cells = [*_cells(human["votes"], "votes"), *_cells(human["majority"], "votes")]
        rows.append(["<b>one annotator, against the rest</b>", *cells, "–", "–"])
    for alias, row in sorted(scorers.items(), key=lambda item: -item[1]["votes"]["value"]):
        cells = [*_cells(row["votes"], "votes"), *_cells(row["majority"], "pairs")]
        rows.append([html.text(alias, 60), *cells, f"{row['even']:,}", f"{row['unscored']:,}"])
    if not rows:
        return ""
    head = ["Agrees with", "single votes", *INTERVAL, "the majority", *INTERVAL, "No preference", "No score"]
    return html.table(head, rows) + _few([row["votes"] for row in scorers.values()])


def _by(result: dict[str, Any], by: str | None) -> str:
    """Return the tables of the agreement by the column `by`, and of judges' answers in each order; "" without both."""
    rows = [
        [html.text(label, 60), html.text(alias, 60), *_cells(estimate, "votes")]
        for label, scorers in result.get("by", {}).items()
        for alias, estimate in scorers.items()
    ]
    table = (
        html.table([html.text(by or "", 40), "Agrees with single votes", "", *INTERVAL], rows, left=2) if rows else ""
    )
    orders = [
        [html.text(alias, 60), f"{order}: image {order[0]} first", *_cells(row["orders"][order], "votes")]
        for alias, row in result["scorers"].items()
        for order in row.get("orders", {})
    ]
    return table + (html.table(["Judge", "Order of the images", "", *INTERVAL], orders, left=2) if orders else "")


def _evaluations(store: Store, rows: list[dict[str, Any]], ranked: dict[str, Any]) -> str:
    if not rows:
        return ""
    judged = results(store)
    cells = []
    for row in rows:
        name, set_name, model, against, rate = (row[key] for key in ("eval", "set", "model", "against", "win_rate"))
        models = judged.get(name, {}).get("sets", {}).get(set_name, {}) if against == "base" else {}
        rates = {alias: result.get("win_rate") for alias, result in models.get(model, {}).items() if alias != "people"}
        judges = "; ".join(f"{html.text(alias, 40)} {value:.0%}" for alias, value in rates.items() if value is not None)
        title = f"{html.text(model, 60)} over {html.text(against, 60)}"
        numbers = [f"{row['ties']:.0%}", f"{rate['groups']:,}", f"{row['annotators']:,}"]
        cells.append([title, html.text(f"{name}, {set_name}", 80), judges or "–", *_cells(rate, "votes"), *numbers])
    head = [
        "People chose",
        "Evaluation",
        "Its judges' win rates",
        "Win rate",
        *INTERVAL,
        "Ties",
        "Requests",
        "Annotators",
    ]
    few = _few([row["win_rate"] for row in rows])
    return "<h3>Votes on evaluations</h3>" + html.table(head, cells, left=3) + few + arena.table(ranked)


def _cells(estimate: dict[str, Any], unit: str, n: int | None = None, percent: bool = True) -> list[str]:
    """Return table cells: value, interval as text, interval as a plot, and the number of items."""
    count = f"{estimate['n'] if n is None else n:,} {unit}"
    if estimate["value"] is None:
        return ["–", "–", "", count]
    value, low, high = (
        html.value(estimate[key], f"{estimate[key]:.0%}" if percent else f"{estimate[key]:.2f}")
        for key in ("value", "low", "high")
    )
    mark = " ▵" if estimate["groups"] < FEW else ""
    drawn = plot.interval(estimate["low"], estimate["value"], estimate["high"], "fraction") if percent else ""
    return [value, f"{low} to {high}{mark}", drawn, count]


def _few(estimates: list[dict[str, Any]]) -> str:
    return FEW_NOTE if any(e["value"] is not None and e["groups"] < FEW for e in estimates) else ""
