"""Imports vote files, which voting pages (`prefkit report RUN --vote`) save, as comparisons/NAME.

A vote file contains the page id and a hash of the annotator's name. Only RUN/votes/PAGE.json maps its pairs to
candidates. Its checksum `check` reveals truncation, damage and manual edits, but not forgery.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from prefkit.errors import UsageError
from prefkit.hub.importing.walk import describe_skipped, kind_of
from prefkit.output import warn
from prefkit.paths import open_regular, read_regular
from prefkit.store import Store
from prefkit.store.files import read_json, write_json
from prefkit.store.table import comparison_row
from prefkit.types import Comparison

VERSION = 1
TABLE = "votes"  # of live votes, and by default of those in files
LOCK_SECONDS = 10.0
MOST_BYTES = 64 << 20
CHOICES = {"left": ("a", "b"), "right": ("b", "a"), "tie": ("tie", "tie"), "skip": (None, None)}
ANNOTATOR = re.compile(r"person-[0-9a-f]{12}")
MARK = b'"prefkit_votes"'
FIX = "Ask the annotator for the unchanged file that the page saved."


def vote_files(source: str | Path) -> list[Path]:
    """Return the vote files at `source`, a file or a folder; [] if there are none."""
    path = Path(source).expanduser()
    members = sorted(path.glob("*.json")) if path.is_dir() else [path] if path.is_file() else []
    return [file for file in members if MARK in _head(file)]


def import_votes(store: Store, source: str | Path, name: str = TABLE) -> dict[str, int]:
    """Import a vote file, or all vote files in a folder, as comparisons/NAME; return counts. Skips known votes.

    All files are checked before anything is written. Raises UsageError naming file and vote.
    """
    store.check_single()
    files = vote_files(source)
    if not files:
        raise UsageError(
            f"import: {source} holds no file of votes. Save one on the page that `prefkit report RUN --vote` makes."
        )
    bodies = {file: read_file(store.folder, file) for file in files}
    _check_agreeing(store.folder, bodies)
    counts = dict.fromkeys(("files", "annotators", "votes", "skipped", "comparisons"), 0)
    with ExitStack() as locks:
        for held in sorted({f"comparisons/{TABLE}", f"comparisons/{name}"}):  # a server with live votes locks the first
            locks.enter_context(store.lock(held, LOCK_SECONDS))
        table = store.comparisons(name)
        table.claim({"name": name, "imported": "votes"}, "Give the votes another --name.", empty=False)
        known = table.ids()
        for body in bodies.values():
            votes = list(comparisons(store.folder, body))
            rows = {row["id"]: row for row in map(comparison_row, votes) if row["id"] not in known}
            table.append(list(rows.values()))
            known |= rows.keys()
            counts["votes"] += len(votes)
            counts["skipped"] += len(body["votes"]) - len(votes)
            counts["comparisons"] += len(rows)
            _keep(copy_of(store.folder, body["page"], body["annotator"]), body)
    path = Path(source).expanduser()
    ignored = Counter(kind_of(file) for file in path.iterdir() if file not in bodies) if path.is_dir() else Counter()
    if ignored:
        warn(f"{source}: {describe_skipped(ignored)}")
    counts["files"], counts["annotators"] = len(files), len({body["annotator"] for body in bodies.values()})
    return counts


def votes(path: Path) -> Iterator[Comparison]:
    """Yield the votes in a vote file that was copied to the run folder, RUN/votes/PAGE.ANNOTATOR.json."""
    folder = path.resolve().parent.parent
    return comparisons(folder, read_file(folder, path))


def read_file(folder: Path, path: Path) -> dict[str, Any]:
    """Read a vote file and check it against the page of the run `folder`. Raises UsageError naming file and vote."""
    body = _parsed(path)
    page, annotator, votes = body.get("page"), body.get("annotator"), body.get("votes")
    if body.get("prefkit_votes") != VERSION:
        raise UsageError(
            f"{path}: the file has version {body.get('prefkit_votes')!r}, but this prefkit reads version {VERSION}. "
            "Vote on a page made by this prefkit."
        )
    key = folder / "votes" / f"{page}.json"
    if not isinstance(page, str) or not re.fullmatch(r"[0-9a-f]{10}", page) or not key.exists():
        raise UsageError(
            f"{path}: its page {str(page)[:20]!r} (of run {str(body.get('run'))[:60]!r}) was not made from {folder}. "
            "Import the file into the run that made the page."
        )
    if not isinstance(annotator, str) or not ANNOTATOR.fullmatch(annotator) or not isinstance(votes, list):
        raise UsageError(f"{path}: the file has no valid annotator or no list of votes. {FIX}")
    check_entries(path, read_json(key)["pairs"], votes)
    if body.get("check") != checksum(page, annotator, votes):
        raise UsageError(f"{path}: its {len(votes)} votes do not match its checksum: it was edited or cut short. {FIX}")
    return body


def comparisons(folder: Path, body: dict[str, Any]) -> Iterator[Comparison]:
    """Yield the votes in `body`, the content of a checked vote file, in order and without skipped pairs."""
    pairs = {item["pair"]: item for item in read_json(folder / "votes" / f"{body['page']}.json")["pairs"]}
    for vote in body["votes"]:
        outcome = CHOICES[vote["choice"]][vote["order"] == "ba"]
        if outcome is not None:
            pair = pairs[vote["pair"]]
            seconds = vote["time"] / 1000
            yield Comparison(pair["a"], pair["b"], outcome, body["annotator"], order=vote["order"], time=seconds)


def checksum(page: str, annotator: str, votes: list[dict[str, Any]]) -> str:
    """Return the checksum of a vote file, as computed by prefkit/human/vote.js."""
    lines = [f"{v['pair']} {v['order']} {v['choice']} {v['time']}" for v in votes]
    return hashlib.sha256("\n".join([page, annotator, str(len(votes)), *lines]).encode()).hexdigest()[:16]


def check_entries(path: Path | str, pairs: list[dict[str, Any]], votes: list[Any]) -> None:
    """Raise UsageError, naming `path` and the vote, unless all votes are valid votes on different pairs of a page."""
    known = {item["pair"]: item for item in pairs}
    orders: dict[str, str] = {}
    for number, vote in enumerate(votes, 1):
        where = f"{path} vote {number}"
        if not isinstance(vote, dict) or not {"pair", "order", "choice", "time"} <= set(vote):
            raise UsageError(f"{where}: a vote must have pair, order, choice and time. {FIX}")
        pair, order, choice, time = (vote[key] for key in ("pair", "order", "choice", "time"))
        if not isinstance(pair, str) or pair not in known:
            raise UsageError(f"{where}: unknown pair {str(pair)[:40]!r}. {FIX}")
        if pair in orders:
            raise UsageError(f"{where}: pair {pair} occurs twice in this file. {FIX}")
        if order not in ("ab", "ba") or choice not in list(CHOICES) or type(time) is not int or not 0 < time < 10**14:
            raise UsageError(f"{where}: invalid order {order!r}, choice {choice!r} or time {time!r}. {FIX}")
        orders[pair] = order
    for number, vote in enumerate(votes, 1):
        if orders.get(known[vote["pair"]].get("again", "")) == vote["order"]:
            raise UsageError(f"{path} vote {number}: a repeated pair must have its sides swapped. {FIX}")


def _check_agreeing(folder: Path, bodies: dict[Path, dict[str, Any]]) -> None:
    """Raise UsageError if two files of one annotator disagree on a pair; files imported earlier are checked too."""
    copies = {copy_of(folder, body["page"], body["annotator"]) for body in bodies.values()}
    first: dict[tuple[str, str, str], tuple[Path, str, str]] = {}
    for path, body in [*((copy, read_json(copy)) for copy in copies if copy.exists()), *bodies.items()]:
        for number, vote in enumerate(body["votes"], 1):
            key = (body["page"], body["annotator"], vote["pair"])
            other, order, choice = first.setdefault(key, (path, vote["order"], vote["choice"]))
            if (order, choice) != (vote["order"], vote["choice"]):
                fix = "Import only the file that was saved last."
                if other in copies:
                    fix = f"To replace it, remove {other} and its comparisons, then import all files again."
                raise UsageError(
                    f"{path} vote {number}: {vote['choice']!r} on pair {vote['pair']}, but {other} by the same "
                    f"annotator has {choice!r}. {fix}"
                )


def copy_of(folder: Path, page: str, annotator: str) -> Path:
    """Return the path of an annotator's votes on a page in the run `folder`."""
    return folder / "votes" / f"{page}.{annotator}.json"


def vote_file(page: str, annotator: str, votes: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """Return the content of a vote file, as saved by prefkit/human/vote.js."""
    check = checksum(page, annotator, votes)
    return {"prefkit_votes": VERSION, **more, "page": page, "annotator": annotator, "votes": votes, "check": check}


def _keep(copy: Path, body: dict[str, Any]) -> None:
    """Add the votes of a checked vote file to the run's copy, after those that it already holds."""
    before = read_json(copy)["votes"] if copy.exists() else []
    known = {vote["pair"] for vote in before}
    new = [vote for vote in body["votes"] if vote["pair"] not in known]
    if new or not before:
        more = {key: body[key] for key in ("run", "asked") if key in body}
        write_json(copy, vote_file(body["page"], body["annotator"], [*before, *new], **more))


def _head(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read(200)
    except OSError:  # a pipe, a broken link, or a file without read permission holds no votes
        return b""


def _parsed(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(read_regular(path, MOST_BYTES))
        if not isinstance(body, dict):
            raise ValueError("it is not a JSON object")
        return body
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{path}: not the JSON that a voting page saves ({error}); it may be cut short. {FIX}"
        ) from error
