"""The live votes on one page: each is stored when it arrives, where `prefkit import` stores the votes of a file."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefkit.human.votes import (
    ANNOTATOR,
    LOCK_SECONDS,
    TABLE,
    check_entries,
    comparisons,
    copy_of,
    read_file,
    vote_file,
)
from prefkit.store import Store
from prefkit.store.files import read_json, write_json
from prefkit.store.table import comparison_row


class Conflict(Exception):
    """Raised for a vote on a pair on which the annotator has already voted otherwise, such as in another tab."""


class Ballot:
    """The votes of all annotators on a page. Any number of threads and processes may use it at once.

    RUN/votes/PAGE.ANNOTATOR.json holds an annotator's votes in order, and one part of comparisons/votes those of them
    that are not skips. Both are written atomically for each vote, so that a killed server has lost no confirmed vote.
    """

    def __init__(self, store: Store, key: dict[str, Any]) -> None:
        """key: the content of RUN/votes/PAGE.json. Completes the table, in case an earlier server was killed."""
        self.store, self.key, self.page = store, key, str(key["page"])
        self.turn = threading.Lock()
        with self._locked():
            self.table = store.comparisons(TABLE)
            self._claim(write=False)
            others = [store.comparisons(name) for name in store.names("comparisons") if name != TABLE]
            # a vote that was imported under another name is not stored twice
            self.others = [table for table in others if (table.spec() or {}).get("imported") == "votes"]
            self.elsewhere = {name for table in self.others for name in table.ids()}
            for annotator in self.annotators():
                self._write_part(annotator, self.votes(annotator))

    def annotators(self) -> list[str]:
        """Return the hashed names of those who have voted."""
        paths = sorted(copy_of(self.store.folder, self.page, "person-*").parent.glob(f"{self.page}.person-*.json"))
        names = [path.name.removeprefix(f"{self.page}.").removesuffix(".json") for path in paths]
        return [name for name in names if ANNOTATOR.fullmatch(name)]

    def votes(self, annotator: str) -> list[dict[str, Any]]:
        """Return an annotator's votes, oldest first."""
        path = self._path(annotator)
        return list(read_file(self.store.folder, path)["votes"]) if path.exists() else []

    def add(self, annotator: str, vote: dict[str, Any]) -> None:
        """Store a vote; the same vote again changes nothing. Raises Conflict, and UsageError for an invalid vote."""
        check_entries("this vote", self.key["pairs"], [vote])
        with self._locked():
            votes = self.votes(annotator)
            earlier = next((other for other in votes if other["pair"] == vote["pair"]), None)
            if earlier is None:
                votes.append({name: vote[name] for name in ("pair", "order", "choice", "time")})
                check_entries(annotator, self.key["pairs"], votes)
                write_json(self._path(annotator), self._file(annotator, votes))
                self._write_part(annotator, votes)
            elif any(earlier[name] != vote[name] for name in ("order", "choice")):
                raise Conflict
            else:  # sent again, perhaps because the table could not be written
                self._write_part(annotator, votes)

    def undo(self, annotator: str, pair: str) -> None:
        """Remove the annotator's vote on a pair, if there is one."""
        with self._locked():
            votes = self.votes(annotator)
            gone = [vote for vote in votes if vote["pair"] == pair]
            if gone:
                left = [vote for vote in votes if vote["pair"] != pair]
                ids = {row["id"] for row in self._rows(annotator, gone)}
                for table in (self.table, *self.others):  # votes imported from files
                    table.remove(ids)
                self.elsewhere -= ids  # the same vote may be given again
                self._write_part(annotator, left)
                write_json(self._path(annotator), self._file(annotator, left))  # last: until then, it can be repeated

    def progress(self) -> list[dict[str, Any]]:
        """Return {annotator, votes, skipped, asked, last} of each annotator; last: Unix time of the latest vote."""
        rows = []
        for annotator in self.annotators():
            votes = read_json(self._path(annotator))["votes"]
            skipped = sum(vote["choice"] == "skip" for vote in votes)
            row: dict[str, Any] = {"annotator": annotator, "votes": len(votes) - skipped, "skipped": skipped}
            last = max((vote["time"] / 1000 for vote in votes), default=None)
            rows.append(row | {"asked": len(self.key["pairs"]), "last": last})
        return rows

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self.turn, self.store.lock(f"comparisons/{TABLE}", LOCK_SECONDS, tidy=False):
            yield

    def _path(self, annotator: str) -> Path:
        return copy_of(self.store.folder, self.page, annotator)

    def _file(self, annotator: str, votes: list[dict[str, Any]]) -> dict[str, Any]:
        return vote_file(self.page, annotator, votes, run=self.key["run"], asked=len(self.key["pairs"]))

    def _rows(self, annotator: str, votes: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [comparison_row(c) for c in comparisons(self.store.folder, self._file(annotator, votes))]

    def _write_part(self, annotator: str, votes: list[dict[str, Any]]) -> None:
        """Write the annotator's votes, without skips, as a part of the table; remove the part if there are none."""
        part = f"part-live-{self.page}-{annotator}.parquet"
        rows = [row for row in self._rows(annotator, votes) if row["id"] not in self.elsewhere]
        if rows:
            self._claim()
            self.table.write(part, rows)
        else:
            (self.table.folder / part).unlink(missing_ok=True)

    def _claim(self, write: bool = True) -> None:
        remedy = "Live votes are stored in this folder: rename the folder, then start the server again."
        self.table.claim({"name": TABLE, "imported": "votes"}, remedy, empty=False, write=write)
