"""The section on votes: sentences, tables, and agreement.json beside the page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefkit.human.agreement import FEW, assess
from prefkit.report import html, plot
from prefkit.report.evidence import results
from prefkit.store.files import write_json

if TYPE_CHECKING:
    from prefkit.store import Store

LEAD = (
    "Blind votes of people on two pictures of one request. Every clear vote counts the same; a scorer that has no preference "
    "counts half, ties of people are left out and stated. Intervals are 95 %: of scorers and of win rates a bootstrap over "
    "requests, of annotators one over pairs. A scorer can hardly agree with people more than they do with each other."
)
LITTLE = f'<p class="quiet">▵ fewer than {FEW} requests or pairs: the interval is too narrow.</p>'


def section(store: Store) -> str:
    """The section, and RUN/agreement.json with the same numbers. Nothing was voted on: how to begin."""
    found = assess(store)
    path = store.folder / "agreement.json"
    if found is None:
        path.unlink(missing_ok=True)
        begin = "Nobody has voted yet. <code>prefkit report RUN --vote</code> writes the page to vote on."
        return html.section("votes", "Votes", html.missing(begin))
    write_json(path, found)
    lines = "".join(f"<li>{html.text(row['sentence'], 200)}</li>" for row in found["scorers"].values())
    body = f'<ul class="outcome">{lines}</ul>' if lines else html.missing("No scorer has scored what people voted on.")
    body += _people(found) + _scorers(found) + _evaluations(store, found["evaluations"])
    return html.section("votes", "Votes", body, LEAD)


def _people(found: dict[str, Any]) -> str:
    several = found["pairs_of_several"]
    rows = [
        ["Annotators agree (raw, ties count as a verdict)", *_cells(found["agreement"], several, "pairs")],
        ["Krippendorff's alpha (nominal: a, b, tie)", *_cells(found["alpha"], several, "pairs", percent=False)],
        ["The same verdict on a pair shown again", *_cells(found["consistency"], found["consistency"]["n"], "repeats")],
        ["Chose the left of two (50 % without a habit)", *_cells(found["left"], found["left"]["n"], "votes")],
    ]
    caption = (
        f"{found['votes']:,} votes of {found['annotators']:,} annotators on {found['pairs']:,} pairs, {several:,} of them seen "
        f"by several; {found['ties']:.0%} ties"
    )
    return html.table(["People", "", "95 % interval", "", "Of"], rows, caption) + _few(
        [found[k] for k in ("agreement", "consistency", "left")]
    )


def _scorers(found: dict[str, Any]) -> str:
    human = found["human"]
    ceiling = ["<b>an annotator, against the others</b>", *_cells(human["votes"], human["votes"]["n"], "votes"),
               *_cells(human["majority"], human["majority"]["n"], "votes"), "–", "–"]  # fmt: skip
    rows = [ceiling] if human["votes"]["value"] is not None else []
    ranked = sorted(found["scorers"].items(), key=lambda item: -item[1]["votes"]["value"])
    for alias, row in ranked:
        cells = [
            *_cells(row["votes"], row["votes"]["n"], "votes"),
            *_cells(row["majority"], row["majority"]["n"], "pairs"),
        ]
        rows.append([html.text(alias, 60), *cells, f"{row['even']:,}", f"{row['unscored']:,}"])
    if not rows:
        return ""
    head = [
        "Agrees with",
        "single votes",
        "95 % interval",
        "",
        "Of",
        "the majority",
        "95 % interval",
        "",
        "Of",
        "No preference",
        "No score",
    ]
    return html.table(head, rows) + _few([row["votes"] for row in found["scorers"].values()])


def _evaluations(store: Store, rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    judged = results(store)
    shown = []
    for row in rows:
        rate = row["win_rate"]
        name, set_name, model = row["eval"], row["set"], row["model"]
        judges = (
            judged.get(name, {}).get("sets", {}).get(set_name, {}).get(model, {}) if row["against"] == "base" else {}
        )
        beside = "; ".join(
            f"{html.text(alias, 40)} {found['win_rate']:.0%}"
            for alias, found in judges.items()
            if found.get("win_rate") is not None
        )
        words = f"{html.text(model, 60)} over {html.text(row['against'], 60)}"
        shown.append(
            [
                words,
                html.text(f"{name}, {set_name}", 80),
                beside or "–",
                *_cells(rate, rate["n"], "votes"),
                f"{row['ties']:.0%}",
                f"{rate['groups']:,}",
                f"{row['annotators']:,}",
            ]
        )
    head = [
        "People chose",
        "Evaluation",
        "Its judges' win rates",
        "Win rate",
        "95 % interval",
        "",
        "Of",
        "Ties",
        "Requests",
        "Annotators",
    ]
    return "<h3>Votes on evaluations</h3>" + html.table(head, shown, left=3) + _few([row["win_rate"] for row in rows])


def _cells(found: dict[str, Any], n: int, what: str, percent: bool = True) -> list[str]:
    """value, interval in words, interval as a picture, of how many."""
    if found["value"] is None:
        return ["–", "–", "", f"{n:,} {what}"]
    value, low, high = (f"{found[key]:.0%}" if percent else f"{found[key]:.2f}" for key in ("value", "low", "high"))
    mark = " ▵" if found["groups"] < FEW else ""
    drawn = plot.interval(found["low"], found["value"], found["high"], "share") if percent else ""
    return [value, f"{low} to {high}{mark}", drawn, f"{n:,} {what}"]


def _few(estimates: list[dict[str, Any]]) -> str:
    return LITTLE if any(e["value"] is not None and e["groups"] < FEW for e in estimates) else ""
