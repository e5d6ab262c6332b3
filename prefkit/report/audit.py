"""The audit of a pair set: spread, agreement of scorers, and what else names the winner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefkit.report import html
from prefkit.store.files import read_json

if TYPE_CHECKING:
    from prefkit.store import Store

CURATED = (
    "flagged_by_safety_checker",
    "decided_reject",
    "decided_remove",
    "exact_duplicates",
    "near_duplicates",
    "black",
    "blank",
    "saturated",
    "unreadable",
    "missing_scores",
)


def audits(store: Store) -> str:
    """A section for all pair sets that were made with an audit; empty without any."""
    paths = {name: store.pairs(name) / "audit.json" for name in store.names("pairs")}
    body = "".join(_audit(name, read_json(path)) for name, path in paths.items() if path.exists())
    lead = "What was taken out, how the pairs are spread, and whether something cheap names the winner. Intervals: 95 %, bootstrap over requests."
    return html.section("audit", "Audit of the pairs", body, lead) if body else ""


def _audit(name: str, report: dict[str, Any]) -> str:
    warned = "".join(
        f'<p class="missing warn">{html.text(text[:1].upper() + text[1:])}</p>' for text in report.get("warnings", [])
    )
    counts = report.get("counts", {})
    rows = [
        ["pairs", html.number(report["pairs"])],
        [
            "requests without pairs",
            f"{html.number(report['requests_without_pairs'])} of {html.number(report['requests'])}",
        ],
        ["tie rate", _share(report["tie_rate"])],
        ["pairs on which scorers conflict", _share(report["conflict_share"])],
    ]
    rows += [[key.replace("_", " "), html.number(counts[key])] for key in CURATED if counts.get(key)]
    leaks = report.get("splits", {})
    rows += [
        [f"{key} with a twin in another split", html.number(leaks[key])]
        for key in ("prompts", "images")
        if key in leaks
    ]
    spread = [[html.text(size), html.number(count)] for size, count in report["pairs_per_request"].items()]
    tables = [html.table(["", ""], rows) + html.table(["Pairs of a request", "Requests"], spread), _shortcuts(report)]
    for key, title in (
        ("agreement", "Pairs of candidates ordered alike"),
        ("rank_correlation", "Rank correlation within requests"),
    ):
        if report.get(key):
            tables.append(_matrix(title, report["scorers"], report[key]))
    spread_out = "".join(f"<div>{table}</div>" for table in tables)
    return f'<h3>{html.text(name, 60)}</h3>{warned}<div class="beside">{spread_out}</div>'


def _matrix(title: str, names: list[str], cells: list[list[Any]]) -> str:
    rows = [[html.text(name, 40), *(_interval(cell) for cell in row)] for name, row in zip(names, cells)]
    return html.table(["", *(html.text(name, 40) for name in names)], rows, caption=title)


def _shortcuts(report: dict[str, Any]) -> str:
    if not report["shortcuts"]:
        return html.missing("Too few requests to ask what else names the winner.")
    rows = [
        [
            html.text(name.replace("_", " ")),
            _interval([row["accuracy"], row["low"], row["high"]]),
            "above chance" if row["warn"] else "–",
        ]
        for name, row in report["shortcuts"].items()
    ]
    body = html.table(
        ["Winner predicted from", "Accuracy", ""],
        rows,
        caption="Cross-validated by request; chance is 0.5. Intervals: 95 % for all rows at once",
    )
    absent = ", ".join(html.text(name.replace("_", " ")) for name in report.get("not_measured", []))
    return body + (html.missing(f"Images were not looked at, so that these are missing: {absent}.") if absent else "")


def _interval(cell: list[float] | None) -> str:
    return f"{cell[0]:.2f} [{cell[1]:.2f}, {cell[2]:.2f}]" if cell else "–"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
