"""Unite the requests of a run folder and a target to which several machines write at the same moment.

A target has any number of lists of requests, requests/list-*.parquet, which never change: each machine adds one with the
requests that the others lack, so no machine overwrites another's. A machine reads all lists again after adding its own and
withdraws it if another machine has added other prompts meanwhile; of two such machines, at most one continues. The
target's requests.parquet, the union, makes the target a run folder; it is read as one more list.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from prefkit.errors import StoreError, UsageError
from prefkit.hub.target import Target
from prefkit.store.litter import unique
from prefkit.store.run import Store
from prefkit.store.seal import verify
from prefkit.types import Request

LIST = re.compile(r"(?P<run>(eval/[^/]+/[^/]+/[^/]+/)?)requests(/list-[^/]+)?\.parquet")
Requests = dict[str, Request]


def runs_of(names: Iterable[str]) -> set[str]:
    """Return the folders ("" or eval/.../) of the run folders whose requests are among `names`."""
    return {match["run"] for name in names if (match := LIST.fullmatch(name))}


def unite(folder: Path, target: Target, run: str, names: Iterable[str], scratch: Path) -> Callable[[], None]:
    """Return a function that writes the requests of both sides to both.

    Raises UsageError if a request differs; the function raises it if another machine has added one that differs.
    folder: the run folder. run: one of `runs_of`. names: the files of the target.
    """
    lists = _Lists(target, run, scratch)
    here = Store(folder / run)
    ours = {r.request_id: r for r in here.requests()}
    theirs = lists.read(names)
    _check(folder, target, ours, theirs)

    def write() -> None:
        united = theirs
        if added := [request for key, request in ours.items() if key not in theirs]:
            united = lists.add(added, lambda found: _check(folder, target, ours, found))
        if united.keys() - ours.keys():
            with here.lock("requests", seconds=60):  # a command on this machine may have added requests meanwhile
                here.write_requests((united | {r.request_id: r for r in here.requests()}).values())
        lists.write_union(united)

    return write


def _check(folder: Path, target: Target, ours: Requests, theirs: Requests) -> None:
    """Raise UsageError if both sides have a request that differs."""
    differing = next((key for key in ours if key in theirs and ours[key] != theirs[key]), None)
    if differing is not None:
        raise UsageError(
            f"request {differing!r} of {folder} has another prompt, split or column in {target.url}. Sync runs of the "
            "same prompts."
        )


class _Lists:
    """The lists of requests of `run` in `target`. scratch: a folder for downloads."""

    def __init__(self, target: Target, run: str, scratch: Path) -> None:
        self.target, self.run, self.scratch = target, run, scratch
        self.known: dict[str, Requests] = {}  # what was read

    def read(self, names: Iterable[str]) -> Requests:
        """Return the requests of the lists among `names`. Raises UsageError if two lists differ in a request."""
        found: dict[str, tuple[Request, str]] = {}
        for name in sorted(names):
            match = LIST.fullmatch(name)
            for key, request in self._requests(name).items() if match and match["run"] == self.run else ():
                other, where = found.setdefault(key, (request, name))
                if other != request:
                    raise UsageError(
                        f"{self.target.url}: request {key!r} has another prompt, split or column in {where} than in "
                        f"{name}. Remove the file that is wrong, then sync again."
                    )
        return {key: request for key, (request, _) in found.items()}

    def add(self, requests: Sequence[Request], check: Callable[[Requests], None]) -> Requests:
        """Add a list, and return the requests of all lists. If `check` of these raises, the new list is removed."""
        own = f"{self.run}requests/list-{unique()}.parquet"
        self._put(requests, own)
        try:
            others = self.read({*self.known, *self.target.names(f"{self.run}requests")} - {own})
            check(others)
        except UsageError:
            self.target.remove(own)
            raise
        return others | {request.request_id: request for request in requests}

    def write_union(self, requests: Requests) -> None:
        name = f"{self.run}requests.parquet"
        if requests and self.known.get(name) != requests:
            self._put(requests.values(), name)

    def _put(self, requests: Iterable[Request], name: str) -> None:
        store = Store(self.scratch / "new")
        store.write_requests(requests)
        self.target.put(store.folder / "requests.parquet", name)

    def _requests(self, name: str) -> Requests:
        if name not in self.known:
            store = Store(self.scratch / "lists" / name.removesuffix(".parquet"))
            try:
                self.target.get(name, store.folder / "requests.parquet", verify)
            except StoreError as error:
                if not isinstance(error.__cause__, FileNotFoundError):  # withdrawn by the machine that added it
                    raise
            self.known[name] = {r.request_id: r for r in store.requests()}
        return self.known[name]
