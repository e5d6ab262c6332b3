"""The import core: an importer's items -> the tables of a run. Streaming, resumable, failures counted."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from prefkit import registry
from prefkit.config import plugin_options
from prefkit.errors import TooManyFailures, UsageError
from prefkit.hub.importing.archives import Unpacker
from prefkit.hub.importing.earlier import totals
from prefkit.hub.importing.image_check import Checked, check
from prefkit.hub.importing.index import Known, merge_requests
from prefkit.hub.importing.readers import HUB, SUFFIXES
from prefkit.hub.importing.records import Item
from prefkit.hub.importing.sink import Progress, Sink, trace
from prefkit.hub.importing.walk import told
from prefkit.output import LINE_EVERY, message, note, warn
from prefkit.paths import shown
from prefkit.store import Store
from prefkit.store.files import NAME, checked

THREADS = 4
BATCH = 16
SHOWN = 5
MOST = 580  # characters of a message


def run_import(
    store: Store,
    source: str,
    *,
    layout: str | None = None,
    name: str | None = None,
    flags: Mapping[str, Any] | None = None,
    keep: bool = True,
    pairs: bool = False,
    test_share: float = 0.1,
    max_failed: float = 0.001,
) -> dict[str, Any]:
    """Import `source` into the run as candidates/NAME, comparisons/NAME and scores/NAME.rating. Returns counts.

    keep: images that are files stay where they are (path and sha256); False copies them in. pairs: also write
    pairs/NAME from the verdicts, ready for training. Raises UsageError, and TooManyFailures once all is done.
    """
    layout = layout or sniff(source)
    _present(source)
    plugin = registry.load_class("importer", layout)
    options = plugin_options.options(plugin, dict(flags or {}), f"import --as {layout}")
    name = checked(name or layout)
    path = Path(source).expanduser()
    what = {"layout": layout, "source": str(path.resolve()) if path.exists() else source, "options": asdict(options),
            "keep": keep}  # fmt: skip
    before = {p.name for p in store.folder.glob("*")} if store.folder.exists() else set()
    there = store.folder.exists()
    store = Store.create(store.folder)
    try:
        with ExitStack() as locks:
            for table in ("imports", f"candidates/{name}", f"comparisons/{name}", f"pairs/{name}"):
                locks.enter_context(store.lock(table))
            if pairs:
                from prefkit.hub.importing.pair_writer import check_place, write_pairs

                check_place(store, name)
            counts, progress = _import(store, plugin(options), source, name, what, test_share, keep)
            if pairs:
                counts["pairs"] = write_pairs(store, name, test_share)
            failed = counts["failed"]
            progress.whole = failed <= max_failed * counts["items"]
            progress.save(what)
    except UsageError as error:
        store.undo(before if there else ())
        raise UsageError(message(str(error), MOST)) from error
    if not progress.whole:
        raise TooManyFailures(
            f"import: done, but {failed} of {counts['items']} rows could not be used, more than --max-failed {max_failed:g}; "
            f"{progress.path} says which. Fix the source and run it again: only those are read again.",
            counts,
        )
    return counts


def _present(source: str) -> None:
    """Raises UsageError for a file that was not found. A datasets id is looked for when it is read."""
    path = Path(source).expanduser()
    hub = HUB.fullmatch(source) and path.suffix.lower() not in SUFFIXES and not path.parent.is_dir()
    if not path.exists() and not hub:
        raise UsageError(f"import: {source} was not found. Give a file, a folder, or a datasets id such as owner/name.")


def sniff(source: str) -> str:
    """The layout that `source` plainly has. Raises UsageError where none or several fit, saying what to write."""
    known = registry.builtin("importer")
    names = ", ".join(sorted(known))
    path = Path(source).expanduser()
    if not path.exists():
        raise UsageError(
            f"import: {source} was not found. If it is a datasets id, choose its layout with --as: {names}."
        )
    found = {n: why for n in known if (why := registry.load("importer", n).sniff(path))}
    if len(found) == 1:
        layout, why = next(iter(found.items()))
        note(f"{source} looks like {layout}: {why}")
        return layout
    fits = "; ".join(f"{n} ({why})" for n, why in found.items())
    raise UsageError(
        f"import: {source} could be {fits}; choose one with --as: {names}."
        if found
        else f"import: could not detect the layout of {source}; choose one with --as: {names}."
    )


def _import(
    store: Store, importer: Any, source: str, name: str, what: dict[str, Any], test_share: float, keep: bool
) -> tuple[dict[str, Any], Progress]:
    folder = store.folder / ".imports"
    progress = Progress.open(folder / f"{name}.json", what, store)
    progress.whole = False
    known = Known(folder / "known.sqlite")
    work = Unpacker(folder / f"{name}.unpacked")
    spec = {"imported": what["layout"], "source": what["source"], "model": f"imported:{what['layout']}"}
    sink = Sink(store, name, known, keep, test_share, spec)
    try:
        known.fill(store, name)
        _stream(importer.read(source, work), sink, progress, what)
        merge_requests(store, name)
        progress.counts |= totals(store, name, progress.pictures)
        work.clear()
    finally:
        known.close()
    if sink.repeated:
        warn(
            f"{sink.repeated} ratings were left out: an image has one rating of a name, the first. Where several people rated "
            "it, average them before the import."
        )
    if work.left:
        warn(f"{source}: {told(work.left)}")
    for text in list(progress.failed.values())[:SHOWN]:
        warn(text)
    if len(progress.failed) > SHOWN:
        warn(f"{len(progress.failed) - SHOWN} more rows could not be used; see {progress.path}.")
    return {**progress.counts, "failed": len(progress.failed), "left_out": dict(sorted(work.left.items()))}, progress


def _stream(items: Iterator[Item], sink: Sink, progress: Progress, what: Any) -> None:
    number, said, then, again, last = 0, "", "", dict(progress.failed), time.monotonic()
    before, old, pictures = progress.done, progress.trace, progress.pictures
    counts = dict(progress.counts)
    failed = dict(progress.failed)

    def save() -> None:
        sink.flush()
        progress.done, progress.trace = max(number, before), said if number >= before else old
        progress.counts, progress.failed = {**counts, "items": progress.done}, dict(failed)
        progress.pictures = pictures
        progress.save(what)

    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for batch in _batches(items, BATCH):
                numbers = range(number, number + len(batch))
                wanted = [n >= before or str(n) in again for n in numbers]
                found = pool.map(lambda pair: _pictures(*pair), zip(batch, wanted))
                for n, item, use, (images, error) in zip(numbers, batch, wanted, found):
                    then = trace(then, item, str(n) not in again)
                    if n + 1 == before and then != old:
                        raise UsageError(
                            f"import: the first {before} rows of {what['source']} are not those that were imported as "
                            f"{progress.path.stem}. Give the changed source another --name."
                        )
                    number = n + 1
                    error = error or (sink.leak(item) if use else None)
                    if use and error:
                        failed[str(n)] = f"{message(item.where, 240)}: {shown(error, 300)}"
                    elif use:
                        failed.pop(str(n), None)
                        sink.put(n, item, images, counts)
                        pictures += len(item.pictures)
                    said = trace(said, item, str(n) not in failed)
                    if sink.full() and number >= before:
                        save()
                if time.monotonic() - last > LINE_EVERY:
                    last = time.monotonic()
                    note(f"import {progress.path.stem}: {number} rows")
        finally:
            close = getattr(items, "close", None)
            if number >= before:
                save()  # also where reading broke off: what was read is kept
            if close is not None:
                close()
    if number < before:
        raise UsageError(f"import: {what['source']} has {number} rows now, {before} were imported as {progress.path.stem}. "
                         "Give the changed source another --name.")  # fmt: skip
    if not number:
        raise UsageError(f"import: {what['source']} holds nothing to import.")


def _batches(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    """Lists of items. What was read before an error is handed on before the error."""
    while True:
        batch: list[Item] = []
        try:
            for item in islice(items, size):
                batch.append(item)
        except UsageError:
            if batch:
                yield batch
            raise
        if not batch:
            return
        yield batch


def _pictures(item: Item, use: bool) -> tuple[dict[str, Checked], str | None]:
    if not use:
        return {}, None
    if item.error:
        return {}, item.error
    if item.asked is not None and not item.asked.prompt.strip():
        return {}, "the prompt is empty"
    if item.asked is not None and item.asked.split is not None and not NAME.fullmatch(item.asked.split):
        return {}, f"{shown(item.asked.split)!r} cannot name a split"
    try:
        if item.asked is not None:
            item.asked.prompt.encode()
        for picture in item.pictures:
            _check_seed(picture.seed)
        return {picture.key: check(picture) for picture in item.pictures}, None
    except UnicodeEncodeError:
        return {}, "the prompt holds half of a character (a lone surrogate)"
    except ValueError as error:
        return {}, str(error)


def _check_seed(seed: Any) -> None:
    """Raises ValueError for what the tables cannot hold."""
    if seed is not None and not (isinstance(seed, (int, float)) and seed == seed // 1 and -(2**63) <= seed < 2**63):
        raise ValueError(f"the seed {str(seed)[:40]!r} is no whole number of 64 bits")
