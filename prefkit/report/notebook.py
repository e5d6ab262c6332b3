"""A run in a notebook: the counts of its stages, and a contact sheet of some candidates."""

from __future__ import annotations

from typing import Any

from prefkit.report import html
from prefkit.report.pictures import thumbnails
from prefkit.store import Store
from prefkit.store.summary import candidate_index, score_table, status
from prefkit.types import digest

SHOWN = 12  # candidates
SIDE = 128
SHEET = "display:flex;flex-wrap:wrap;gap:8px"
CELL = "margin:0;width:{side}px;font-size:11px;overflow-wrap:anywhere"


def counts(store: Store) -> list[tuple[str, str, str]]:
    """Return (stage, entry, count) for each part of the run."""
    if not store.exists():
        return []
    state = status(store)
    rows = [("requests", str(split), f"{n:,}") for split, n in state["requests"].items()]
    for kind in ("candidates", "scores", "pairs", "train", "eval"):
        rows += [(kind, name, _count(kind, entry)) for name, entry in state[kind].items()]
    return rows


def _count(kind: str, entry: dict[str, Any]) -> str:
    if kind == "pairs":
        return ", ".join(f"{split} {n:,}" for split, n in entry.items()) or "0"
    if kind == "train":
        return f"{entry['step']:,} steps, {'finished' if entry['final'] else 'not finished'}"
    if kind == "eval":
        return "done" if entry["done"] else "not finished"
    return f"{entry['done']:,}" + (f", {entry['failed']:,} failed" if entry["failed"] else "")


def summary(store: Store) -> str:
    """Return the counts of a run as one line of text."""
    return "; ".join(f"{kind} {name}: {count}" for kind, name, count in counts(store)) or "no results yet"


def overview(store: Store) -> str:
    """Return the counts of a run and a contact sheet of at most 12 candidates as HTML that loads nothing."""
    title = f"<p><b>Run {html.text(store.folder, 120)}</b></p>"
    rows = [[html.text(cell, 120) for cell in row] for row in counts(store)]
    if not rows:
        return title + html.missing("No results yet.")
    return title + html.table(["Stage", "Entry", "Count"], rows, left=2) + _sheet(store)


def _sheet(store: Store) -> str:
    """Return thumbnails with prompt and scores: one candidate per request, requests chosen by a hash."""
    if store.rounds():
        return ""
    frame = candidate_index(store)
    frame = frame[frame.error.isna()].drop_duplicates("id").sort_values(["index", "id"])
    frame = frame.drop_duplicates("request_id")
    order = sorted(frame.index, key=lambda row: digest("sheet", frame.request_id[row]))
    frame = frame.loc[order[:SHOWN]]
    images, scores = thumbnails(store, frame.id, SIDE), score_table(store)
    prompts = {request.request_id: request.prompt for request in store.requests()}
    cells = []
    for name, request in zip(frame.id, frame.request_id):
        values = scores.loc[name].dropna().items() if name in scores.index else ()
        lines = [html.text(prompts.get(request, ""), 80), *(f"{html.text(k, 40)} {html.number(v)}" for k, v in values)]
        picture = html.picture(images.get(name), f"candidate {name}", "<br>".join(lines))
        cells.append(f'<div style="{CELL.format(side=SIDE)}">{picture}</div>')
    return f'<div style="{SHEET}">{"".join(cells)}</div>'
