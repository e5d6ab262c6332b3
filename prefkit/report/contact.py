"""contact.html: all candidates of some requests with ids and scores, to decide on (decisions.csv)."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from prefkit.errors import UsageError
from prefkit.registry import nearest
from prefkit.report import html
from prefkit.report.pictures import thumbnails
from prefkit.store.decisions import VERDICTS
from prefkit.store.files import write_atomic
from prefkit.store.summary import INDEX, candidate_index, score_table
from prefkit.types import digest

if TYPE_CHECKING:
    import pandas as pd

    from prefkit.store import Store

SIDE = 224
MOST = 1000
HOW = (
    "To decide, press a button, or with a candidate in focus K (keep), R (reject), X (remove), 0 (take back) and the arrows. "
    "Save, then <code>prefkit report RUN --decisions FILE</code> adds the lines to decisions.csv in the run folder "
    "(<code>id,verdict,reason,by</code>; writing them by hand does the same). A click selects a whole id."
)
BAR = """<div id="bar" hidden><label>Reason <input id="reason" maxlength="200"></label><label>By <input id="by" maxlength="80"></label>
<button id="save">Save decisions</button><button id="clear">Take all back</button><span id="marked" role="status"></span></div>"""
MARKS = "".join(f'<button data-mark="{verdict}" tabindex="-1">{verdict}</button>' for verdict in VERDICTS)


def contact_sheet(store: Store, request_ids: Sequence[str] | None = None, filter: str | None = None) -> Path:
    """Write RUN/contact.html and return its path: the candidates of these requests, of this filter, or of both at once.

    filter: a pandas query over the aliases and generator, request_id, index, seed, e.g. "align < 0.2"; a score of one of
    these names is called score_NAME. The page holds
    at most 1,000 candidates and says how many there are. Raises UsageError: neither given, an unknown request, a query
    that does not parse, or nothing found.
    """
    if not request_ids and not filter:
        raise UsageError("a contact sheet needs requests or a filter: `--request ID` or `--filter 'align < 0.2'`.")
    table = (
        candidate_index(store).drop_duplicates("id").set_index("id")
    )  # generators of equal settings share candidates
    table = table.join(score_table(store).rename(columns=_column))
    if request_ids:
        _check_requests(table, request_ids)
        table = table[table.request_id.isin(list(request_ids))]
    if filter:
        table = _filtered(table, filter)
    if table.empty:
        raise UsageError(f"no candidate of {store.folder} answers {filter or ', '.join(request_ids or [])!r}.")
    total = len(table)
    table = table.sort_values(["request_id", "generator", "index"], kind="stable").iloc[:MOST]
    path = store.folder / "contact.html"
    script, style = (Path(__file__).with_name(f"contact.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    title = f"Contact sheet · {store.folder.resolve().name}"
    write_atomic(path, html.page(title, _body(store, table, total), script=script, style=style))
    return path


def _column(alias: str) -> str:
    return f"score_{alias}" if alias in (*INDEX, "generator") else alias


def _check_requests(table: pd.DataFrame, request_ids: Sequence[str]) -> None:
    known = set(table.request_id)
    for request in request_ids:
        if request not in known:
            near = get_close_matches(request, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else "`requests.parquet` in the run folder lists them."
            raise UsageError(f"no candidate belongs to a request {request!r}; {hint}")


def _filtered(table: pd.DataFrame, query: str) -> pd.DataFrame:
    import pandas as pd

    columns = [name for name in table.columns if name != "error"]
    try:
        # empty scopes: a query sees columns, not this program's variables
        mask = table.eval(query, engine="python", local_dict={}, global_dict={})
    except pd.errors.UndefinedVariableError as error:
        unknown = str(error).split("'")[1::2]
        raise UsageError(
            f"--filter: there is no column {', '.join(unknown)}.{nearest(''.join(unknown[:1]), columns)} Columns are "
            f"{', '.join(columns)}."
        ) from error
    except Exception as error:  # pandas raises whatever Python's parser and the operators raise
        raise UsageError(
            f"--filter: {query[:200]!r} is not a query over the scores ({str(error)[:200] or 'it cannot be read'}). Columns are "
            f'{", ".join(columns)}; write names with a dash or dot in `backticks`, e.g. "align < 0.2 and index == 0".'
        ) from error
    if not isinstance(mask, pd.Series) or mask.dtype != bool:
        raise UsageError(
            f'filter {query!r} gives no yes or no for each candidate; write a comparison, e.g. "align < 0.2".'
        )
    return table[mask]


def _body(store: Store, table: pd.DataFrame, total: int) -> str:
    prompts = {r.request_id: r.prompt for r in store.requests()}
    decided = store.decisions()
    verdicts = dict(zip(decided.id.astype(str), decided.verdict.astype(str)))
    images = thumbnails(store, table.index, SIDE)
    aliases = {alias: _column(alias) for alias in store.names("scores")}
    parts = []
    for request, members in table.groupby("request_id", sort=False):
        cells = "".join(_cell(row, aliases, images, verdicts) for row in members.to_dict("index").items())
        head = f'<h3>Request <span class="id">{html.text(request, 80)}</span></h3>{html.prompt(prompts.get(str(request), ""), 600)}'
        parts.append(f'<section>{head}<div class="sheet">{cells}</div></section>')
    shown = f"{total:,} candidates" if total == len(table) else f"the first {len(table):,} of {total:,} candidates"
    title = html.text(store.folder.resolve().name, 80)
    head = f'<header><h1>{title}: contact sheet</h1><p class="lead">{shown}. {HOW}</p></header>'
    listed = set(table.index.astype(str))
    known = {"sheet": digest("sheet", str(store.folder.resolve()), length=8)}
    data = html.data("known", known | {"verdicts": {k: v for k, v in verdicts.items() if k in listed}})
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
    own = html.text(name, 200)
    marks = f'<div class="marks" role="group" aria-label="Decision">{MARKS}</div><p class="why"></p>'
    return f'<div class="decide" tabindex="0" role="group" aria-label="Candidate {own}" data-id="{own}">{picture}{marks}</div>'
