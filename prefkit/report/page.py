"""report.html: one static file that shows a whole run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from prefkit.human import section as agreement_section
from prefkit.report import evidence, html, learning, overview
from prefkit.report.audit import audits
from prefkit.store.files import write_atomic
from prefkit.store.summary import candidate_index, score_table, status

if TYPE_CHECKING:
    from prefkit.config import Recipe
    from prefkit.store import Store

SECTIONS = {
    "run": "What was run",
    "scores": "Scores",
    "pairs": "Pairs",
    "audit": "Audit",
    "training": "Training",
    "evaluation": "Evaluation",
    "votes": "Votes",
    "failures": "Failures",
}


def write_report(store: Store, recipe: Recipe | None = None) -> Path:
    """Write RUN/report.html, whole or not at all, and return its path. A stage that has not run is said to be missing.

    The page holds everything it shows: no server, no script, no link that leaves it. Images are thumbnails, and only
    those shown are read, so that a run of 100,000 candidates gives a page of a few megabytes too.
    """
    state = status(store)
    found = evidence.results(store)
    audited = audits(store)
    anchors = {anchor: title for anchor, title in SECTIONS.items() if anchor != "audit" or audited}
    body = [
        overview.header(store, state, anchors),
        evidence.outcome(found),
        "<main>",
        overview.what_was_run(store, state, recipe),
        overview.scores(store, score_table(store), state),
        learning.pairs(store),
        audited,
        learning.training(store),
        evidence.evaluation(store, found),
        agreement_section.section(store),
        overview.failures(store, candidate_index(store)),
        "</main><footer>Made by prefkit. Thumbnails are shrunk; the run folder holds the images as they were made.</footer>",
    ]
    path = store.folder / "report.html"
    write_atomic(path, html.page(f"{store.folder.resolve().name} · prefkit", "\n".join(body)))
    return path
