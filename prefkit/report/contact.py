"""contact.html, a page of candidates with ids and scores, and the import of the decisions that people save on it."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import pandas as pd

from prefkit.errors import UsageError
from prefkit.report import html
from prefkit.report.pictures import thumbnails
from prefkit.store import Store
from prefkit.store.decisions import COLUMNS, VERDICTS, append_decisions, read_decisions
from prefkit.store.files import write_atomic
from prefkit.store.query import column, matching
from prefkit.store.summary import candidate_index, score_table
from prefkit.tables.delimited import header
from prefkit.types import digest

SIDE = 224
MOST = 1000
HELP = (
    "To decide, press a button, or focus a candidate and press K (keep), R (reject), X (remove) or 0 (undo); the arrow keys "
    "move the focus. {save} to decisions.csv in the run folder (<code>id,verdict,reason,by</code>; you can also write them by "
    "hand). A click selects a complete id."
)
SAVE = "Save, then <code>prefkit report RUN --decisions FILE</code> adds the lines"
SAVE_LIVE = "Save adds the lines"
BAR = """<div id="bar" hidden><label>Reason <input id="reason" maxlength="200"></label><label>By <input id="by" maxlength="80"></label>
<button id="save">Save decisions</button><button id="clear">Undo all</button><span id="marked" role="status"></span></div>"""
MARKS = "".join(f'<button data-mark="{verdict}" tabindex="-1">{verdict}</button>' for verdict in VERDICTS)


def contact_sheet(store: Store, request_ids: Sequence[str] | None = None, filter: str | None = None) -> Path:
    """Write RUN/contact.html with the candidates that match `request_ids` and `filter`, and return its path.

    See `contact_page`. Raises UsageError if both arguments are missing.
    """
    if not request_ids and not filter:
        raise UsageError("a contact sheet needs requests or a filter: `--request ID` or `--filter 'align < 0.2'`.")
    path = store.folder / "contact.html"
    write_atomic(path, contact_page(store, request_ids, filter))
    return path


def contact_page(
    store: Store,
    request_ids: Sequence[str] | None = None,
    filter: str | None = None,
    live: bool = False,
    most: int = MOST,
) -> str:
    """Return the HTML of a page with the candidates that match `request_ids` and `filter` (default: all).

    filter: a pandas query over the scores and the columns generator, request_id, index and seed, e.g. "align < 0.2". A
    score named like one of these columns becomes score_NAME. live: send decisions to the server that the page came from.
    The page shows at most `most` candidates, and how many match. Raises UsageError for an unknown request or an invalid
    query, or without match.
    """
    table = candidate_index(store).drop_duplicates("id").set_index("id")  # generators may share candidates
    table = table.join(score_table(store).rename(columns=column))
    if request_ids:
        _check_requests(table, request_ids)
        table = table[table.request_id.isin(list(request_ids))]
    if filter:
        table = table[matching(table, filter, "--filter")]
    if table.empty:
        asked = filter or ", ".join(request_ids or [])
        raise UsageError(
            f"no candidate of {store.folder} matches {asked!r}." if asked else f"{store.folder} has no candidates."
        )
    total = len(table)
    table = table.sort_values(["request_id", "generator", "index"], kind="stable").iloc[:most]
    script, style = (html.asset(f"contact.{kind}") for kind in ("js", "css"))
    title = f"Contact sheet · {store.folder.resolve().name}"
    return html.page(title, _body(store, table, total, live), script=script, style=style, live=live)


def _check_requests(table: pd.DataFrame, request_ids: Sequence[str]) -> None:
    known = set(table.request_id)
    for request in request_ids:
        if request not in known:
            near = get_close_matches(request, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else "`requests.parquet` in the run folder lists all requests."
            raise UsageError(f"no candidate belongs to request {request!r}; {hint}")


def _body(store: Store, table: pd.DataFrame, total: int, live: bool) -> str:
    prompts = {r.request_id: r.prompt for r in store.requests()}
    decisions = store.decisions()
    verdicts = dict(zip(decisions.id.astype(str), decisions.verdict.astype(str)))
    images = thumbnails(store, table.index, SIDE)
    aliases = {alias: column(alias) for alias in store.names("scores")}
    parts = []
    for request, members in table.groupby("request_id", sort=False):
        cells = "".join(_cell(row, aliases, images, verdicts) for row in members.to_dict("index").items())
        head = f'<h3>Request <span class="id">{html.text(request, 80)}</span></h3>{html.prompt(prompts.get(str(request), ""), 600)}'
        parts.append(f'<section>{head}<div class="sheet">{cells}</div></section>')
    shown = f"{total:,} candidates" if total == len(table) else f"the first {len(table):,} of {total:,} candidates"
    title = html.text(store.folder.resolve().name, 80)
    head = f'<header><h1>{title}: contact sheet</h1><p class="lead">{shown}. {HELP.format(save=SAVE_LIVE if live else SAVE)}</p></header>'
    listed = set(table.index.astype(str))
    sheet = digest("sheet", str(store.folder.resolve()), length=8)
    known = {"sheet": sheet, "verdicts": {k: v for k, v in verdicts.items() if k in listed}, "live": live}
    data = html.data("known", known)
    return f"{head}{BAR}<main>{''.join(parts)}</main>{data}"


def _cell(
    item: tuple[object, dict], aliases: dict[str, str], images: dict[str, str | None], verdicts: dict[str, str]
) -> str:
    name, row = item
    lines = [f'<span class="id">{html.text(name, 80)}</span>']
    lines.append(f"{html.text(row['generator'], 40)} · {row['index']} · seed {row['seed']}")
    lines += [f"{html.text(alias, 40)} <b>{html.number(row[column])}</b>" for alias, column in aliases.items()]
    if isinstance(row["error"], str):
        lines.append(f'<span class="warn">{html.text(row["error"], 160)}</span>')
    if name in verdicts:
        lines.append(f'<span class="tag">{html.text(verdicts[str(name)])}</span>')
    picture = html.picture(images.get(str(name)), f"candidate {name}", "<br>".join(lines))
    key = html.text(name, 200)
    marks = f'<div class="marks" role="group" aria-label="Decision">{MARKS}</div><p class="why"></p>'
    return f'<div class="decide" tabindex="0" role="group" aria-label="Candidate {key}" data-id="{key}">{picture}{marks}</div>'


def add_decisions(store: Store, source: str | Path) -> dict[str, int]:
    """Append the new lines of `source`, a file saved by a contact sheet, to RUN/decisions.csv.

    All lines must have a known verdict and a candidate of this run, else nothing is written. Existing bytes are kept.
    Returns {new, known}, two line counts. Raises UsageError and StoreError naming the file and the line or id.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        raise UsageError(f"--decisions: {path} does not exist. The contact sheet saves decisions to decisions-….csv.")
    decisions = read_decisions(path)
    ids = set(candidate_index(store).id)
    for name in decisions.id:
        if name not in ids:
            raise UsageError(
                f"{path}: {name!r} is not a candidate of {store.folder}. Is it from another run's contact sheet?"
            )
    target = store.folder / "decisions.csv"
    with store.lock("decisions"):
        known = set(read_decisions(target)[list(COLUMNS)].itertuples(index=False, name=None))
        new = [row for row in decisions[list(COLUMNS)].itertuples(index=False, name=None) if row not in known]
        if new:
            missing = set(COLUMNS) - set(header(target, str(target)).names) if target.exists() else set()
            if missing:
                raise UsageError(f"{target}: add the column {', '.join(sorted(missing))} to its first line.")
            append_decisions(target, [dict(zip(COLUMNS, row)) for row in new])
    return {"new": len(new), "known": len(decisions) - len(new)}
