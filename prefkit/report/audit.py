"""The report section on the audit of pair sets: pairs per request, agreement of scorers, features that predict the winner."""

from __future__ import annotations

from typing import Any

from prefkit.report import html
from prefkit.store import Store
from prefkit.store.files import read_json

#: counts of removed candidates, in the order shown
REMOVED = (
    *("flagged_by_safety_checker", "decided_reject", "decided_remove", "exact_duplicates", "near_duplicates"),
    *("black", "blank", "saturated", "unreadable", "missing_scores"),
)
MOST_ASPECTS = 20  # rows of the table of aspects
LEAD = (
    "Candidates removed before pairing, pairs per request, and features that predict the winner. Intervals: 95 %, "
    "bootstrap over requests."
)


def audits(store: Store) -> str:
    """Return a section on all pair sets that have an audit, or "" without any."""
    paths = {name: store.pairs(name) / "audit.json" for name in store.names("pairs")}
    body = "".join(_audit(name, read_json(path)) for name, path in paths.items() if path.exists())
    return html.section("audit", "Audit of the pairs", body, LEAD) if body else ""


def _audit(name: str, report: dict[str, Any]) -> str:
    warnings = [html.text(text[:1].upper() + text[1:]) for text in report.get("warnings", [])]
    counts, leaks = report.get("counts", {}), report.get("splits", {})
    without = f"{html.value(report['requests_without_pairs'])} of {html.value(report['requests'])}"
    rows = [
        ["pairs", html.value(report["pairs"])],
        ["requests without pairs", without],
        ["tie rate", _percent(report["tie_rate"])],
        ["pairs on which scorers conflict", _percent(report["conflict_share"])],
        *([key.replace("_", " "), html.value(counts[key])] for key in REMOVED if counts.get(key)),
        *([f"{k} that another split repeats", html.value(leaks[k])] for k in ("prompts", "images") if k in leaks),
    ]
    sizes = [[html.text(size), html.value(count)] for size, count in report["pairs_per_request"].items()]
    tables = [html.table(["", ""], rows) + html.table(["Pairs of a request", "Requests"], sizes), _shortcuts(report)]
    if by_aspect := sorted(counts.get("pairs_by_aspect", {}).items(), key=lambda item: -item[1]):
        shown = [[html.text(name, 60), html.value(count)] for name, count in by_aspect[:MOST_ASPECTS]]
        more = f", the {MOST_ASPECTS} most frequent of {len(by_aspect)}" if len(by_aspect) > MOST_ASPECTS else ""
        tables.append(html.table(["Aspect", "Pairs"], shown, f"The aspect that the loser lacks{more}"))
    titles = {
        "agreement": "Candidate pairs that two scorers order the same way",
        "rank_correlation": "Rank correlation within requests",
    }
    tables += [_matrix(title, report["scorers"], report[key]) for key, title in titles.items() if report.get(key)]
    warned = "".join(f'<p class="missing warn">{text}</p>' for text in warnings)
    columns = "".join(f"<div>{table}</div>" for table in tables)
    return f'<h3>{html.text(name, 60)}</h3>{warned}<div class="columns">{columns}</div>'


def _matrix(title: str, names: list[str], cells: list[list[Any]]) -> str:
    rows = [[html.text(name, 40), *(_interval(cell) for cell in row)] for name, row in zip(names, cells)]
    return html.table(["", *(html.text(name, 40) for name in names)], rows, caption=title)


def _shortcuts(report: dict[str, Any]) -> str:
    if not report["shortcuts"]:
        return html.missing("Not enough requests to measure which features predict the winner.")
    rows = []
    for name, row in report["shortcuts"].items():
        accuracy = _interval([row["accuracy"], row["low"], row["high"]])
        rows.append([html.text(name.replace("_", " ")), accuracy, "above chance" if row["warn"] else "–"])
    caption = "Cross-validated by request; chance is 0.5. Intervals: 95 %, simultaneous over all rows"
    body = html.table(["Winner predicted from", "Accuracy", ""], rows, caption)
    absent = ", ".join(html.text(name.replace("_", " ")) for name in report.get("not_measured", []))
    return body + (html.missing(f"Not measured, because no image was read: {absent}.") if absent else "")


def _interval(cell: list[float] | None) -> str:
    if not cell:
        return "–"
    middle, low, high = (html.value(number, f"{number:.2f}") for number in cell)
    return f"{middle} [{low}, {high}]"


def _percent(value: float | None) -> str:
    return "–" if value is None else html.value(value, f"{value:.1%}")
