"""The files that voting pages save (`prefkit report RUN --vote`) -> comparisons/NAME.

A file names the page and an annotator's salted name; which candidates a pair is stands in RUN/votes/PAGE.json alone.
Its `check` finds files that were cut short, damaged or edited by hand; it is a checksum, no signature.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.errors import UsageError
from prefkit.hub.importing.walk import kind_of, told
from prefkit.output import warn
from prefkit.paths import open_regular, read_regular
from prefkit.store.files import read_json, write_json
from prefkit.store.table import comparison_row
from prefkit.types import Comparison

if TYPE_CHECKING:
    from prefkit.store import Store

VERSION = 1
MOST_BYTES = 64 << 20
CHOICES = {"left": ("a", "b"), "right": ("b", "a"), "tie": ("tie", "tie"), "skip": (None, None)}
ANNOTATOR = re.compile(r"person-[0-9a-f]{12}")
MARK = b'"prefkit_votes"'
REMEDY = "Ask for the file again as the page saved it."


def vote_files(source: str | Path) -> list[Path]:
    """The saved votes that `source` is, or that lie in it as a folder; none where it is something else."""
    path = Path(source).expanduser()
    members = sorted(path.glob("*.json")) if path.is_dir() else [path] if path.is_file() else []
    return [file for file in members if MARK in _head(file)]


def import_votes(store: Store, source: str | Path, name: str = "votes") -> dict[str, int]:
    """Import one saved file, or all of a folder, as comparisons/NAME. Returns counts; what is known already adds nothing.

    All files are checked before anything is written. Raises UsageError naming file and entry.
    """
    files = vote_files(source)
    if not files:
        raise UsageError(
            f"import: {source} is no file of votes and holds none: prefkit report RUN --vote makes the page that saves them."
        )
    found = {file: read_file(store.folder, file) for file in files}
    _agreeing(found)
    counts = dict.fromkeys(("files", "annotators", "votes", "skipped", "comparisons"), 0)
    with store.lock(f"comparisons/{name}"):
        table = store.comparisons(name)
        table.claim({"name": name, "imported": "votes"}, "Give the votes another --name.", empty=False)
        known = table.ids()
        for body in found.values():
            said = list(comparisons(store.folder, body))
            rows = [row for row in map(comparison_row, said) if row["id"] not in known]
            rows = list({row["id"]: row for row in rows}.values())
            table.append(rows)
            known |= {row["id"] for row in rows}
            counts["votes"] += len(said)
            counts["skipped"] += len(body["votes"]) - len(said)
            counts["comparisons"] += len(rows)
            copy = _copy(store.folder, body)
            if not copy.exists() or len(read_json(copy)["votes"]) < len(body["votes"]):
                write_json(copy, body)
    path = Path(source).expanduser()
    left = Counter(kind_of(file) for file in path.iterdir() if file not in found) if path.is_dir() else Counter()
    if left:
        warn(f"{source}: {told(left)}")
    counts["files"], counts["annotators"] = len(files), len({body["annotator"] for body in found.values()})
    return counts


def votes(path: Path) -> Iterator[Comparison]:
    """The votes of a saved file that lies in the run folder (RUN/votes/PAGE.ANNOTATOR.json)."""
    folder = path.resolve().parent.parent
    return comparisons(folder, read_file(folder, path))


def read_file(folder: Path, path: Path) -> dict[str, Any]:
    """A saved file, checked against the page of this run folder. Raises UsageError naming file and entry."""
    body = _parsed(path)
    page, who, said = body.get("page"), body.get("annotator"), body.get("votes")
    if body.get("prefkit_votes") != VERSION:
        raise UsageError(
            f"{path}: written by another version of the page ({body.get('prefkit_votes')!r}, not {VERSION}). Use this prefkit's page."
        )
    key = folder / "votes" / f"{page}.json"
    if not isinstance(page, str) or not re.fullmatch(r"[0-9a-f]{10}", page) or not key.exists():
        raise UsageError(
            f"{path}: its page {str(page)[:20]!r} (of a run {str(body.get('run'))[:60]!r}) was not made from {folder}. "
            "Import it into the run that made the page."
        )
    if not isinstance(who, str) or not ANNOTATOR.fullmatch(who) or not isinstance(said, list):
        raise UsageError(f"{path}: it has no annotator or no list of votes. {REMEDY}")
    _entries(path, read_json(key)["pairs"], said)
    if body.get("check") != checksum(page, who, said):
        raise UsageError(
            f"{path}: its {len(said)} votes are not those that the page saved: edited or cut short. {REMEDY}"
        )
    _unchanged(path, _copy(folder, body), said)
    return body


def comparisons(folder: Path, body: dict[str, Any]) -> Iterator[Comparison]:
    """A checked file's votes, in order; skipped pairs are none."""
    pairs = {item["pair"]: item for item in read_json(folder / "votes" / f"{body['page']}.json")["pairs"]}
    for vote in body["votes"]:
        outcome = CHOICES[vote["choice"]][vote["order"] == "ba"]
        if outcome is not None:
            pair = pairs[vote["pair"]]
            seconds = vote["time"] / 1000
            yield Comparison(pair["a"], pair["b"], outcome, body["annotator"], order=vote["order"], time=seconds)


def checksum(page: str, annotator: str, said: list[dict[str, Any]]) -> str:
    """As prefkit/human/vote.js has it."""
    lines = [f"{v['pair']} {v['order']} {v['choice']} {v['time']}" for v in said]
    return hashlib.sha256("\n".join([page, annotator, str(len(said)), *lines]).encode()).hexdigest()[:16]


def _entries(path: Path, pairs: list[dict[str, Any]], said: list[Any]) -> None:
    known = {item["pair"]: item for item in pairs}
    orders: dict[str, str] = {}
    for number, vote in enumerate(said, 1):
        where = f"{path} vote {number}"
        if not isinstance(vote, dict) or not {"pair", "order", "choice", "time"} <= set(vote):
            raise UsageError(f"{where}: it is no vote with pair, order, choice and time. {REMEDY}")
        pair, order, choice, when = (vote[key] for key in ("pair", "order", "choice", "time"))
        if not isinstance(pair, str) or pair not in known:
            raise UsageError(f"{where}: there is no pair {str(pair)[:40]!r} on this page. {REMEDY}")
        if pair in orders:
            raise UsageError(f"{where}: pair {pair} was voted on before in this file. {REMEDY}")
        if order not in ("ab", "ba") or choice not in CHOICES or type(when) is not int or not 0 < when < 10**14:
            raise UsageError(
                f"{where}: order {order!r}, choice {choice!r}, time {when!r} is nothing the page saves. {REMEDY}"
            )
        orders[pair] = order
    for number, vote in enumerate(said, 1):
        if orders.get(known[vote["pair"]].get("again", "")) == vote["order"]:
            raise UsageError(
                f"{path} vote {number}: a repeated pair has its sides as before, which the page never does. {REMEDY}"
            )


def _agreeing(found: dict[Path, dict[str, Any]]) -> None:
    """Two files of one annotator (saved twice, a vote taken back in between) must not say two things of one pair."""
    first: dict[tuple[str, str, str], tuple[Path, str, str]] = {}
    for path, body in found.items():
        for number, vote in enumerate(body["votes"], 1):
            key = (body["page"], body["annotator"], vote["pair"])
            other, order, choice = first.setdefault(key, (path, vote["order"], vote["choice"]))
            if (order, choice) != (vote["order"], vote["choice"]):
                raise UsageError(
                    f"{path} vote {number}: {vote['choice']!r} on pair {vote['pair']}, where {other} of the same annotator has "
                    f"{choice!r}. Import the one that was saved last, alone."
                )


def _unchanged(path: Path, copy: Path, said: list[dict[str, Any]]) -> None:
    """Votes that were imported before must not say something else now."""
    before = {v["pair"]: v for v in read_json(copy)["votes"]} if copy.exists() else {}
    for number, vote in enumerate(said, 1):
        old = before.get(vote["pair"], vote)
        if (old["order"], old["choice"]) != (vote["order"], vote["choice"]):
            raise UsageError(
                f"{path} vote {number}: {vote['choice']!r} on pair {vote['pair']}, which this annotator's earlier file imported "
                f"as {old['choice']!r}. To let the new one hold, remove {copy} and the comparisons, then import all files again."
            )


def _copy(folder: Path, body: dict[str, Any]) -> Path:
    return folder / "votes" / f"{body['page']}.{body['annotator']}.json"


def _head(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read(200)
    except OSError:  # a pipe, a broken link, a file of somebody else: no votes
        return b""


def _parsed(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(read_regular(path, MOST_BYTES))
        if not isinstance(body, dict):
            raise ValueError("it holds no object")
        return body
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{path}: not the JSON that a voting page saves ({error}); perhaps cut short. {REMEDY}"
        ) from error
