"""The home page of the live server: links, and the progress of each annotator."""

from __future__ import annotations

import time
from typing import Any

from prefkit.human.page import counts_of
from prefkit.output import duration, shell_quoted
from prefkit.report import html
from prefkit.store import Store

REFRESH = """"use strict";
const refresh = async () => {
  try {
    const answer = await fetch("progress", { cache: "no-store" });
    if (!answer.ok) throw new Error();
    document.getElementById("progress").innerHTML = await answer.text();
    document.getElementById("lost").hidden = true;
  } catch {
    document.getElementById("lost").hidden = false;
  }
};
setInterval(refresh, 3000);
"""
STYLE = """
form { display: flex; flex-wrap: wrap; gap: 8px; align-items: center; margin: 10px 0; }
input, button { padding: 7px 12px; font: inherit; color: var(--ink); background: var(--card); border: 1px solid var(--axis); border-radius: 8px; }
input { flex: 0 1 36ch; min-width: 0; } button { cursor: pointer; }
a { color: var(--accent); }
.person { margin: 10px 0; max-width: 900px; } .person b { margin-right: 8px; }
progress { width: 160px; margin-right: 8px; accent-color: var(--accent); }
.address { overflow-wrap: anywhere; user-select: all; }
[hidden] { display: none; }
"""


def page(store: Store, key: dict[str, Any], table: str) -> str:
    """Return the page. key: content of RUN/votes/PAGE.json; table: the result of `progress`."""
    name, counts = html.text(store.folder.resolve().name, 80), counts_of(key)
    models = " and ".join(html.text(model, 60) for model in key.get("models", []))
    what = f"{models}, evaluation {html.text(key['eval'], 60)}" if models else "candidates of one request"
    repeats = f" and {counts['repeats']:,} of them again with sides swapped" if counts["repeats"] else ""
    lead = f"“{html.text(key['question'], 200)}” {counts['pairs']:,} pairs{repeats}: {what}."
    run = html.text(shell_quoted(store.folder), 400)
    then = f"prefkit eval {run}" if models else f"prefkit pair {run} --use comparisons"
    voting = (
        f'<p id="lost" class="warn" hidden>The server does not answer. The numbers are those of its last answer.</p>'
        f'<div id="progress">{table}</div><p class="quiet">Every vote is stored in the run at once. You can stop the server '
        f"with Ctrl-C and start it again with the same command; the addresses and all votes stay.</p>"
        f"<p>Then: <code>{then}</code></p>"
    )
    images = (
        '<p>These pages show which model made an image. Do not open them if you vote yourself.</p><p><a href="report">'
        'Report</a> (built when you open it)</p><form action="contact"><label for="filter">Contact sheet of the candidates '
        'that match</label><input id="filter" name="filter" placeholder="all, or for example: align &lt; 0.2"><button>Open'
        "</button></form>"
    )
    body = f"<header><h1>{name}</h1></header><main>" + html.section("voting", "Voting", voting, lead)
    body += html.section("pages", "Results", images) + "</main>"
    return html.page(f"{store.folder.resolve().name} · prefkit", body, script=REFRESH, style=STYLE, live=True)


def progress(rows: list[dict[str, Any]], asked: int, links: dict[str, str], hashed: dict[str, str]) -> str:
    """Return the annotators' addresses and progress. rows: see `Ballot.progress`; asked: number of pairs to vote on.

    links: name -> address, "" -> the address that all share; hashed: name -> hashed name.
    """
    known = {row["annotator"]: row for row in rows}
    names = {hashed[name]: name for name in links if name}
    none = {"votes": 0, "skipped": 0, "last": None}
    cards = []
    for who in dict.fromkeys([*names, *known]):
        row = known.get(who, none)
        done = row["votes"] + row["skipped"]
        name = names.get(who)
        title = f"<b>{html.text(name, 60)}</b> {_address(links[name])}" if name else f"<b>{html.text(who)}</b>"
        bar = f'<progress max="{asked}" value="{done}" aria-label="{done} of {asked}"></progress>'
        state = f"{done:,} of {asked:,}" + (f", {row['skipped']:,} skipped" if row["skipped"] else "")
        state += "" if row["last"] is None else f", last vote {_ago(time.time() - row['last'])}"
        cards.append(f'<div class="card person"><p>{title}</p><p>{bar} {state}</p></div>')
    shared = f"<p>Address for all annotators, who choose a name there: {_address(links[''])}</p>" if "" in links else ""
    return shared + ("".join(cards) or html.missing("Nobody has voted yet."))


def message(text: str) -> str:
    """Return a page that shows an error."""
    return html.page("prefkit", f"<header><h1>prefkit</h1></header><main>{html.missing(html.text(text, 2000))}</main>")


def _ago(seconds: float) -> str:
    return "less than a minute ago" if seconds < 60 else f"{duration(seconds)} ago"


def _address(link: str) -> str:
    return f'<a class="address" href="{html.text(link)}">{html.text(link)}</a>'
