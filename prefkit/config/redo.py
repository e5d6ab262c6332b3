"""`--redo`: the entries of a run as a graph, and the move of outdated entries to RUN/.old/TIME.

An entry is a path in the run folder, such as scores/align. It is made from other entries: scores from candidates, pairs
from scores, trainings from pairs, and an evaluation's results from trainings.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from prefkit.config import Recipe
from prefkit.errors import FingerprintError, StoreError
from prefkit.output import note, shell_quoted
from prefkit.store import Store
from prefkit.store.files import read_json
from prefkit.store.litter import remove
from prefkit.store.table import Table

T = TypeVar("T")
Lead = Callable[[Callable[[], Any]], Any]
OLD = ".old"
#: kinds of entries; none is made from one of a later kind, except candidates that a trained model generates
KINDS = ("candidates", "scores", "comparisons", "pairs", "train", "eval")
CONTROLS = ("-sft", "-flipped")  # endings of the names of a training's controls


def made_from(store: Store, recipe: Recipe) -> dict[str, set[str]]:
    """Return {entry: entries from which it was made}, read from the tables and settings in the run folder.

    Imported tables are not made from other entries, because no command can make them again.
    """
    ids = {f"candidates/{name}": store.candidates(name).ids() for name in store.names("candidates")}
    graph: dict[str, set[str]] = {entry: set() for entry in ids}
    for name, settings in recipe.generate.items():
        if settings.model is not None:
            graph.setdefault(f"candidates/{name}", set()).add(f"train/{settings.model}")
    for kind, columns in (("scores", ["id"]), ("comparisons", ["id_a", "id_b"])):
        for name in store.names(kind):
            table = getattr(store, kind)(name)
            used = set() if "imported" in (table.spec() or {}) else _values(table, columns)
            graph[f"{kind}/{name}"] = {entry for entry, members in ids.items() if not used.isdisjoint(members)}
    for name in store.names("pairs"):
        graph[f"pairs/{name}"] = _inputs_of_pairs(store, name)
    for name in store.names("train"):
        graph[f"train/{name}"] = _inputs_of_training(store, name)
    for path in store.folder.glob("eval/*/*/*/candidates/*"):  # eval/NAME/SET/MODEL/candidates/GENERATOR
        graph.setdefault(path.parents[3].relative_to(store.folder).as_posix(), set()).add(f"candidates/{path.name}")
    for path in store.folder.glob("eval/*/*/*/run.json"):
        graph[path.parent.relative_to(store.folder).as_posix()] = {f"train/{path.parent.name}"}
    for path in store.folder.glob("eval/*/result.json"):
        models = {f"train/{part.parent.name}" for part in path.parent.glob("*/*/run.json")}
        graph[path.relative_to(store.folder).as_posix()] = models
    return graph


def _values(table: Table, columns: list[str]) -> set[Any]:
    return {value for column in table.read(columns).columns for value in column.to_pylist()}


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "spec.json"
    return read_json(path) if path.is_file() else {}


def _inputs_of_pairs(store: Store, name: str) -> set[str]:
    spec = _settings(store.pairs(name)).get("spec") or {}
    settings, votes = spec.get("settings") or {}, spec.get("comparisons")
    if isinstance(votes, str):  # imported verdicts
        return set()
    generators = settings.get("generators") or store.names("candidates")
    entries = {f"candidates/{generator}" for generator in generators}
    return (
        entries | {f"scores/{score}" for score in spec.get("scorers") or ()} | {f"comparisons/{v}" for v in votes or ()}
    )


def _inputs_of_training(store: Store, name: str) -> set[str]:
    spec = _settings(store.train(name))
    entries = {f"scores/{score}" for score in spec.get("scorers") or ()}  # online: a scorer's settings, not its table
    if pairs := (spec.get("train") or {}).get("pairs"):
        entries.add(f"pairs/{pairs}")
    return entries | {f"train/{name.removesuffix(end)}" for end in CONTROLS if name.endswith(end)}


def outdated(store: Store, recipe: Recipe, error: FingerprintError) -> list[str]:
    """Return the entry whose settings differ, and all existing entries made from it, in the order of the stages.

    [] if the table is not in this run folder, or was not made yet.
    """
    folder = Path(error.folder or "")
    if not error.folder or not folder.is_relative_to(store.folder) or not folder.exists():
        return []
    return with_later(store, recipe, [folder.relative_to(store.folder).as_posix()])


def with_later(store: Store, recipe: Recipe, roots: list[str]) -> list[str]:
    """Return the entries `roots`, and all entries made from them, in the order of the stages; only existing entries."""
    graph = made_from(store, recipe)
    entries = list(roots)
    for entry in entries:  # grows in the loop
        entries += [later for later, inputs in graph.items() if entry in inputs and later not in entries]
    apart = [e for e in entries if not any(e.startswith(f"{other}/") for other in entries)]
    apart = [entry for entry in apart if (store.folder / entry).exists()]
    later = sorted(set(apart).difference(roots), key=lambda entry: (KINDS.index(entry.partition("/")[0]), entry))
    return [*(entry for entry in apart if entry in roots), *later]


def refusal(store: Store, entries: list[str], error: FingerprintError) -> FingerprintError:
    """Return the error with the entries that --redo would make again, if there are any."""
    if not entries:
        return error
    text = f"{error} To make it again, add --redo, which moves {described(store, entries)}."
    listing = FingerprintError(text, error.folder, error.keys)
    listing.elsewhere = error.elsewhere
    return listing


def described(store: Store, entries: list[str]) -> str:
    """Return the text `ENTRY and everything made from it (...) to RUN/.old`."""
    first, *others = _names(entries)
    others += ["the rounds after this one"] if _later_rounds(store, entries) else []
    rest = f" and everything made from it ({', '.join(others)})" if others else ""
    return f"{first}{rest} to {store.folder / OLD}"


def _names(entries: list[str]) -> list[str]:
    """Return the entries as KIND/NAME, each once: those of an evaluation are several folders and a file."""
    return list(dict.fromkeys("/".join(entry.split("/")[:2]) for entry in entries))


def _later_rounds(store: Store, entries: list[str]) -> bool:
    """True if the store is one of several rounds, and later rounds start from one of the trainings in `entries`."""
    folder = store.folder
    if folder.parent.name != "rounds" or not folder.name.isdigit() or not any(e.startswith("train/") for e in entries):
        return False
    return any(path.name.isdigit() and int(path.name) > int(folder.name) for path in folder.parent.iterdir())


def redoing(
    store: Store, recipe: Recipe, act: Callable[[], T], lead: Lead, outdate: Callable[[list[str]], Any] | None
) -> T:
    """Call `act`, and return its result; call it again after each refusal of an entry with other settings.

    outdate: called in rank 0 with the refused entry and everything made from it, to get them out of the way; None: raise
    FingerprintError, which lists them. lead: runs a function in rank 0 and returns its result in all processes.
    """
    while True:
        try:
            return act()
        except FingerprintError as error:
            refused = error
        entries = lead(partial(outdated, store, recipe, refused))
        if not entries or outdate is None:
            raise refusal(store, entries, refused)
        lead(partial(outdate, entries))


def put_away(store: Store, entries: list[str]) -> str:
    """Move entries to RUN/.old/TIME and return that folder. Raises StoreError if another process works on one of them."""
    with ExitStack() as locks:
        for name in _names(entries):
            locks.enter_context(store.lock(name))
        place = move(store.folder, entries)
    text = " The controls are made again with --controls." if any(entry.endswith(CONTROLS) for entry in entries) else ""
    text += f" `prefkit clean {shell_quoted(store.folder)}` removes old entries for good."
    note(f"moved to {place}: {', '.join(_names(entries))}.{text}")
    return str(place)


def move(folder: Path, entries: list[str]) -> Path:
    """Move entries of a folder to FOLDER/.old/TIME, the last ones first, and return the new folder. Raises StoreError."""
    stamp = datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    places = (folder / OLD / (f"{stamp}-{n}" if n else stamp) for n in count())
    place = next(place for place in places if not any((place / entry).exists() for entry in entries))
    for entry in reversed(entries):  # so that after a kill an entry that is left still shows what is outdated
        try:
            (place / entry).parent.mkdir(parents=True, exist_ok=True)
            os.replace(folder / entry, place / entry)
        except OSError as error:
            raise StoreError(f"{folder / entry} could not be moved to {place}: {error.strerror or error}.") from error
    return place


def clean(store: Store) -> tuple[int, int]:
    """Remove RUN/.old, also of each round. Returns (number of moves removed, bytes freed). Raises StoreError."""
    moves = size = 0
    for part in (store, *store.rounds().values()):
        folder = part.folder / OLD
        if folder.is_dir():
            moves += len(list(folder.iterdir()))
            size += sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
            remove(folder)
        if folder.exists():
            raise StoreError(f"{folder} could not be removed. Give yourself permission to write to it.")
    return moves, size
