"""The import itself: streams an importer's items into the tables of a run, resumes, and counts failures."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from itertools import count, islice
from pathlib import Path
from typing import Any

from prefkit import registry
from prefkit.config import plugin_options
from prefkit.errors import TooManyFailures, UsageError
from prefkit.hub.importing.archives import Unpacker
from prefkit.hub.importing.image_check import Checked, check
from prefkit.hub.importing.index import RunIndex, merge_requests
from prefkit.hub.importing.readers import HUB, SUFFIXES
from prefkit.hub.importing.records import Item
from prefkit.hub.importing.sink import FLUSH_BYTES, ChangedImport, Progress, Sink, totals, trace
from prefkit.hub.importing.walk import describe_skipped
from prefkit.output import LINE_EVERY, message, note, warn
from prefkit.paths import shown
from prefkit.store import Store
from prefkit.store.files import NAME, checked

THREADS = 4
BATCH = 16
GENERAL = "table"  # the layout of any table
SHOWN = 5  # failed rows that are printed
LONGEST = 580  # characters of a message


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

    keep: store only the paths of image files; False copies the files into the run. pairs: also write pairs/NAME from
    the verdicts. Raises UsageError, and at the end TooManyFailures if a larger fraction of rows than max_failed failed.
    """
    layout = layout or sniff(source)
    path = Path(source).expanduser()
    hub = HUB.fullmatch(source) and path.suffix.lower() not in SUFFIXES and not path.parent.is_dir()
    if not path.exists() and not hub:  # a Hub dataset is checked when it is read
        raise UsageError(f"import: {source} was not found. Give a file, a folder, or a Hub dataset such as owner/name.")
    plugin = registry.load_class("importer", layout)
    options = plugin_options.options(plugin, dict(flags or {}), f"import --as {layout}")
    name = checked(name or layout)
    resolved = str(path.resolve()) if path.exists() else source
    settings = {"layout": layout, "source": resolved, "options": asdict(options), "keep": keep}
    store.check_single()
    before = {p.name for p in store.folder.glob("*")} if store.folder.exists() else set()
    store = Store.create(store.folder)
    try:
        with ExitStack() as locks:
            for table in ("imports", f"candidates/{name}", f"comparisons/{name}", f"pairs/{name}"):
                locks.enter_context(store.lock(table))
            if pairs:
                from prefkit.hub.importing.pair_writer import check_place, write_pairs

                check_place(store, name)
            counts, progress = _import(store, plugin(options), source, name, settings, test_share, keep)
            if pairs and counts["failed"] < counts["items"]:
                try:
                    counts["pairs"] = write_pairs(store, name)
                except UsageError:
                    progress.forget(store)
                    raise
            failed = counts["failed"]
            progress.whole = failed <= max_failed * counts["items"]
            progress.save(settings)
    except UsageError as error:
        store.undo(before)
        kind = ChangedImport if isinstance(error, ChangedImport) else UsageError
        raise kind(message(str(error), LONGEST)) from error
    if not progress.whole:
        raise TooManyFailures(
            f"import: done, but {failed} of {counts['items']} rows could not be used, more than --max-failed "
            f"{max_failed:g}; {progress.path} lists them. Fix the source and import again to retry them.",
            counts,
        )
    return counts


def sniff(source: str) -> str:
    """Detect the layout of `source`. Raises UsageError, listing the layouts, if none or several fit."""
    names = ", ".join(sorted(registry.builtin("importer")))
    path = Path(source).expanduser()
    if not path.exists():
        raise UsageError(f"import: {source} was not found. For a Hub dataset, choose the layout with --as: {names}.")
    fits = {n: why for n in registry.builtin("importer") if (why := registry.load("importer", n).sniff(path))}
    if len(fits) > 1:  # a published layout says more than the names of columns, and a table more than loose images
        fits.pop(GENERAL, None)
    if not fits and path.suffix.lower() in SUFFIXES:
        return GENERAL  # it asks for --map
    if not fits:
        raise UsageError(f"import: could not detect the layout of {source}; choose one with --as: {names}.")
    if len(fits) > 1:
        several = "; ".join(f"{layout} ({why})" for layout, why in fits.items())
        raise UsageError(f"import: {source} could be {several}; choose one with --as: {names}.")
    layout, why = next(iter(fits.items()))
    note(f"{source} looks like {layout}: {why}")
    return layout


def _import(
    store: Store, importer: Any, source: str, name: str, settings: dict[str, Any], test_share: float, keep: bool
) -> tuple[dict[str, Any], Progress]:
    folder = store.folder / ".imports"
    progress = Progress.open(folder / f"{name}.json", settings, store)
    progress.whole = False
    index = RunIndex(folder / "known.sqlite")
    work = Unpacker(folder / f"{name}.unpacked")
    spec = {"imported": settings["layout"], "source": settings["source"], "model": f"imported:{settings['layout']}"}
    sink = Sink(store, name, index, progress.counts, keep, test_share, spec)
    try:
        index.fill(store, name)
        _stream(importer.read(source, work), sink, progress, settings)
        merge_requests(store, name)
        progress.counts |= totals(store, name, progress.pictures)
        work.clear()
    except UsageError:
        progress.forget(store)
        work.clear()
        raise
    finally:
        index.close()
    if sink.repeated:
        warn(
            f"{sink.repeated} ratings were left out: only an image's first rating under each name is stored. Average "
            "the ratings of several people before the import."
        )
    if work.skipped:
        warn(f"{source}: {describe_skipped(work.skipped)}")
    for text in list(progress.failed.values())[:SHOWN]:
        warn(text)
    if len(progress.failed) > SHOWN:
        warn(f"{len(progress.failed) - SHOWN} more rows could not be used; see {progress.path}.")
    return {**progress.counts, "failed": len(progress.failed), "left_out": dict(sorted(work.skipped.items()))}, progress


def _stream(items: Iterator[Item], sink: Sink, progress: Progress, settings: Any) -> None:
    """Store new items, and retry those that failed. Raises UsageError if items that are already stored have changed."""
    done, stored_trace, retried = progress.done, progress.trace, set(progress.failed)
    number, new_trace, old_trace, last = 0, "", "", time.monotonic()
    other_name = "Give the changed source another --name."

    def save() -> None:
        sink.flush()
        progress.done = progress.counts["items"] = number
        progress.trace = new_trace
        progress.save(settings)

    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for batch in _batches(items, BATCH):
                wanted = [n >= done or str(n) in retried for n in range(number, number + len(batch))]
                checks = pool.map(lambda pair: _check(*pair), zip(batch, wanted))
                for n, item, use, (images, error) in zip(count(number), batch, wanted, checks):
                    old_trace = trace(old_trace, item, str(n) not in retried)
                    if n + 1 == done and old_trace != stored_trace:
                        raise ChangedImport(
                            f"import: the first {done} rows of {settings['source']} are not those that were imported "
                            f"as {progress.path.stem}. {other_name}"
                        )
                    number = n + 1
                    error = error or (sink.leak(item) if use else None)
                    if use and error:
                        progress.failed[str(n)] = f"{message(item.where, 240)}: {shown(error, 300)}"
                    elif use:
                        progress.failed.pop(str(n), None)
                        sink.put(n, item, images)
                        progress.pictures += len(item.pictures)
                    new_trace = trace(new_trace, item, str(n) not in progress.failed)
                    if sink.full() and number >= done:
                        save()
                if time.monotonic() - last > LINE_EVERY:
                    last = time.monotonic()
                    note(f"import {progress.path.stem}: {number} rows")
        finally:
            if number >= done:
                save()  # after an error too: the rows read so far are kept
            if (close := getattr(items, "close", None)) is not None:
                close()
    if number < done:
        raise ChangedImport(
            f"import: {settings['source']} has {number} rows now, but {done} were imported as {progress.path.stem}. "
            f"{other_name}"
        )
    if not number:
        raise UsageError(f"import: {settings['source']} has no rows to import.")


def _batches(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of at most `size` items, or fewer with large images. Before an error, yields the items read so far."""
    while True:
        batch: list[Item] = []
        weight = 0
        try:
            for item in islice(items, size):
                batch.append(item)
                weight += sum(len(picture.data or b"") for picture in item.pictures)
                if weight >= FLUSH_BYTES:
                    break
        except UsageError:
            if batch:
                yield batch
            raise
        if not batch:
            return
        yield batch


def _check(item: Item, use: bool) -> tuple[dict[str, Checked], str | None]:
    """Return (picture key -> checked image, None), or ({}, the reason why the item cannot be used)."""
    if not use or item.error:
        return {}, item.error if use else None
    try:
        if item.asked is not None:
            if not item.asked.prompt.strip():
                raise ValueError("the prompt is empty")
            if item.asked.split is not None and not NAME.fullmatch(item.asked.split):
                raise ValueError(f"{shown(item.asked.split)!r} cannot be a split name")
            item.asked.prompt.encode()
        for picture in item.pictures:
            _check_seed(picture.seed)
        return {picture.key: check(picture) for picture in item.pictures}, None
    except UnicodeEncodeError:
        return {}, "the prompt holds half of a character (a lone surrogate)"
    except ValueError as error:
        return {}, str(error)


def _check_seed(seed: Any) -> None:
    """Raise ValueError for a seed that the tables cannot hold."""
    if seed is not None and not (isinstance(seed, (int, float)) and seed == seed // 1 and -(2**63) <= seed < 2**63):
        raise ValueError(f"the seed {str(seed)[:40]!r} is not a 64-bit integer")
