"""report.html: one static file that shows a complete run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.human import section as votes
from prefkit.report import evidence, html, learning, overview, rounds
from prefkit.report.audit import audits
from prefkit.store import Store
from prefkit.store.files import write_atomic
from prefkit.store.summary import candidate_index, score_table, status

if TYPE_CHECKING:
    from prefkit.config import Recipe

FOOTER = "Made by prefkit. Images are shown as thumbnails; the run folder holds the originals."


def write_report(store: Store, recipe: Recipe | None = None, by: str | None = None) -> Path:
    """Write RUN/report.html atomically and return its path. A stage without results is shown as missing.

    The page needs no server and no network: its one script enlarges images and saves tables as CSV. It has no external
    link except to a training's tracker. Only the images that it shows are read, and stored as thumbnails; even for
    100,000 candidates, the page has only a few megabytes.
    by: a column of the requests, by whose values the scorers' agreement with votes is also shown.
    """
    state = status(store)
    evaluations = evidence.results(store)
    if store.rounds():
        sections = [rounds.section(store), overview.what_was_run(store, state, recipe)]
    else:
        sections = _sections(store, state, evaluations, recipe, by)
    main = f"<main>\n{''.join(sections)}</main><footer>{FOOTER}</footer>"
    anchors = dict(re.findall(r'<section id="(\w+)"><h2>(.*?)</h2>', main))
    body = [overview.header(store, state, anchors), evidence.outcome(evaluations), overview.use(store, recipe), main]
    path = store.folder / "report.html"
    title = f"{store.folder.resolve().name} · prefkit"
    write_atomic(path, html.page(title, "\n".join(body), script=html.asset("report.js")))
    return path


def _sections(
    store: Store,
    state: dict[str, Any],
    evaluations: dict[str, dict[str, Any]],
    recipe: Recipe | None,
    by: str | None,
) -> list[str]:
    table = score_table(store)
    offline = not overview.online_samples(store)  # an online training makes its own candidates, scores and pairs
    return [
        evidence.evaluation(store, evaluations),
        votes.section(store, by),
        overview.what_was_run(store, state, recipe),
        overview.scores(store, table, state) if offline or len(table.columns) else "",
        learning.pairs(store) if offline or state["pairs"] else "",
        audits(store),
        learning.training(store),
        overview.failures(store, candidate_index(store)),
    ]
