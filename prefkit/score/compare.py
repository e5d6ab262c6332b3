"""compare: which of two images of a request is better, by a judge that sees both orders, into comparisons/<alias>/."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from prefkit.config import Compare, Recipe, bounds, compatibility
from prefkit.distributed import device_of
from prefkit.errors import NotYet, PrefkitError, UsageError
from prefkit.images import Background
from prefkit.output import Progress, note, shell_quoted
from prefkit.plugin_guard import copies, error_summary, guarded
from prefkit.registry import nearest
from prefkit.score.core import close, decode, make_scorer, trusted
from prefkit.score.judge.compare import check_verdicts, rates
from prefkit.score.licence import check_licence
from prefkit.score.overlap import in_order
from prefkit.score.run import wanted_keys
from prefkit.store import Store
from prefkit.store.files import write_json
from prefkit.store.rows import comparison_row
from prefkit.store.table import Table, note_pace
from prefkit.types import Candidate, Comparison, Score, digest

FLUSH_ROWS, FLUSH_SECONDS = 96, 20.0
AHEAD = 4  # times `concurrency`: verdicts kept while the oldest call is waited for
Ids = tuple[str, str]


def run_compare(store: Store, recipe: Recipe, alias: str, *, limit: int | None = None) -> dict[str, Any]:
    """Ask about the pairs that have no verdict yet (failures are asked again). Returns counts, flip and first rate.

    limit: at most this many pairs. Each pair gives three rows: orders "ab" and "ba" as shown, and "both", the verdict.
    Raises UsageError for a judge that cannot compare and for invalid settings, FingerprintError where the
    table is another judge's or another question's.
    """
    settings = recipe.compare[alias]
    judge, pairs, _, spec = checked(store, recipe, alias)
    with store.lock(f"comparisons/{alias}"):
        table = store.comparisons(alias)
        done = decided(table)  # another command may have asked until it freed the lock
        _claim(table, spec, done)
        todo = [pair for pair in pairs if pair not in done][:limit]
        present = sum(pair in done for pair in pairs)
        counts: dict[str, Any] = {"wanted": present + len(todo), "present": present, "compared": 0, "failed": 0}
        start = time.monotonic()
        if todo:
            note(f"compare {alias}: {len(todo)} pairs with {settings.use}, each in both orders")
            try:
                judge.load(device_of(settings.device), settings.dtype)
                _ask(store, settings, judge, table, todo, counts)
            finally:
                close(judge, f"compare {alias}")
        flip, first = rates(_shown(table))
        counts |= {"flip_rate": flip, "first_rate": first, "seconds": round(time.monotonic() - start, 2)}
        write_json(table.folder / "spec.json", spec | {"measured": {"flip_rate": flip, "first_rate": first}})
        note_pace(table.folder, counts["compared"], counts["seconds"])
    return counts


def checked(store: Store, recipe: Recipe, alias: str) -> tuple[Any, list[Ids], set[Ids], dict[str, Any]]:
    """(judge, not loaded; pairs to ask about; those decided; what the table means), after every check that needs no
    weights. Writes nothing. Raises UsageError, FingerprintError."""
    from prefkit.models.precision import dtype_of

    settings = recipe.compare[alias]
    compatibility.check("compare", alias, recipe)
    judge = judge_of(settings, alias)
    pairs, table = chosen_pairs(store, settings, alias), store.comparisons(alias)
    done = decided(table)
    spec = {**judge.judge_spec(), "dtype": settings.dtype, "question": settings.template, "aspect": settings.aspect}
    if Background.suffix():
        spec["background"] = Background.name()
    _claim(table, spec, done, write=False)
    if any(pair not in done for pair in pairs):
        dtype_of(settings.dtype)
        device_of(settings.device)
    return judge, pairs, done, spec


def _claim(table: Table, spec: dict[str, Any], done: set[Ids], write: bool = True) -> None:
    measured = (table.spec() or {}).get("measured")
    claimed = spec | ({"measured": measured} if measured is not None else {})
    table.claim(claimed, f"Use another name under compare, or remove {table.folder}.", empty=not done, write=write)


def judge_of(settings: Compare, alias: str) -> Any:
    """The judge, not loaded. Raises UsageError for a scorer that cannot compare."""
    bounds.check(settings, f"compare.{alias}")
    judge = make_scorer(settings.use, settings.options, f"compare.{alias}")
    if not callable(getattr(judge, "compare", None)) or not callable(getattr(judge, "judge_spec", None)):
        raise UsageError(
            f"compare.{alias}: {settings.use} scores single images and cannot compare two. Use mllm, or a class with "
            "compare(pairs, template, aspect) and judge_spec()."
        )
    check_licence(judge, settings.accept_license, f"compare.{alias}")
    return judge


def chosen_pairs(store: Store, settings: Compare, alias: str) -> list[Ids]:
    """Which pairs are asked about, request by request: the same ones on every call. Which id is a goes by hash, so that a
    is not the better one by some score.

    all: up to `most` of the pairs of a request, by hash. extremes: the best with the worst by the score `by`, the second
    best with the second worst, and so on, up to `most`.
    """
    keys = wanted_keys(store, settings.generators)
    if not keys:
        text = (
            f"there is nothing to compare in {store.folder}: run `prefkit generate {shell_quoted(store.folder)}` first."
        )
        raise NotYet(text, "generate")
    requests: dict[str, list[str]] = {}
    for cid, request in keys:
        requests.setdefault(request, []).append(cid)
    if settings.pairs == "all":
        found = [
            pair
            for ids in requests.values()
            for pair in sorted(itertools.combinations(ids, 2), key=lambda pair: digest(*sorted(pair)))[: settings.most]
        ]
    elif settings.pairs == "extremes":
        best = _best_first(store, settings, alias)
        found = []
        for ids in requests.values():
            ranked = sorted((cid for cid in ids if cid in best), key=lambda cid: (best[cid], cid))
            found += [(ranked[i], ranked[-1 - i]) for i in range(min(settings.most, len(ranked) // 2))]
    else:
        raise UsageError(f"compare.{alias}.pairs is {settings.pairs!r}: choose all or extremes.")
    return [(a, b) if digest(a, b) < digest(b, a) else (b, a) for a, b in found]


def _best_first(store: Store, settings: Compare, alias: str) -> dict[str, float]:
    """Candidate -> number that is smaller the better it is, of those with a score."""
    there = store.names("scores")
    if settings.by not in there:
        raise UsageError(
            f"compare.{alias}.by: no scores called {settings.by!r}.{nearest(settings.by, there)} There are: "
            f"{', '.join(there) or 'none'}."
        )
    table = store.scores(settings.by)
    frame = table.frame(["id", "value"]).dropna()
    sign = -1.0 if (table.spec() or {}).get("higher_is_better", True) else 1.0
    return dict(zip(frame.id, sign * frame.value))


def decided(table: Table) -> set[Ids]:
    frame = table.frame(["id", "id_a", "id_b", "order", "outcome"])
    frame = frame[(frame.order == "both") & frame.outcome.notna()]
    return set(zip(frame.id_a, frame.id_b))


def _shown(table: Table) -> list[Comparison]:
    """The verdicts as shown, the two orders of a pair beside each other; what was asked again counts once."""
    rows = table.read(["id_a", "id_b", "order", "outcome"]).to_pylist()
    found = {(row["id_a"], row["id_b"], row["order"]): row["outcome"] for row in rows}
    pairs = dict.fromkeys((a, b) for a, b, _ in found)
    return [Comparison(a, b, found.get((a, b, order)), "", order=order) for a, b in pairs for order in ("ab", "ba")]


def _ask(
    store: Store, settings: Compare, judge: Any, table: Table, todo: Sequence[Ids], counts: dict[str, Any]
) -> None:
    rows: list[dict[str, Any]] = []
    flushed = time.monotonic()
    width = getattr(judge, "concurrency", 1)
    size = settings.batch_size if width == 1 else getattr(judge, "batch", None) or 1
    with Progress("compare", len(todo)) as progress:
        try:
            calls = in_order(
                lambda part: verdicts(judge, settings, part), _parts(store, settings, todo, size), width, AHEAD * width
            )
            for part, found in calls:
                now = time.time()
                rows += [comparison_row(dataclasses.replace(c, time=now)) for c in found]
                both = [c for c in found if c.order == "both"]
                counts["compared"] += sum(c.outcome is not None for c in both)
                counts["failed"] += sum(c.outcome is None for c in both)
                progress.update(len(part))
                if len(rows) >= FLUSH_ROWS or time.monotonic() - flushed > FLUSH_SECONDS:
                    table.append(rows)
                    rows, flushed = [], time.monotonic()
        finally:
            table.append(rows)


def verdicts(judge: Any, settings: Compare, part: Sequence[tuple[Any, Any]]) -> list[Comparison]:
    """Three rows a pair. An exception is pinned on its pair by asking one by one; an undecodable image fails its pairs."""
    live = [pair for pair in part if isinstance(pair[0], Candidate) and isinstance(pair[1], Candidate)]
    failed = [_failure(pair, settings) for pair in part if pair not in live]
    if not live:
        return failed
    try:
        with guarded(f"judge {settings.use}"):
            shown = live if trusted(judge) else [(a, b) for a, b in zip(*(copies(side) for side in zip(*live)))]
            found = judge.compare(shown, settings.template, settings.aspect)
    except PrefkitError:
        raise
    except Exception as error:
        if len(live) > 1:
            return failed + [row for pair in live for row in verdicts(judge, settings, [pair])]
        (a, b) = live[0]
        return [
            *failed,
            Comparison(a.id, b.id, None, settings.use, None, "both", settings.aspect, error_summary(error)),
        ]
    check_verdicts(found, [(a.id, b.id) for a, b in live], settings.use)
    return [*failed, *found.shown, *found.rows]


def _failure(pair: tuple[Any, Any], settings: Compare) -> Comparison:
    (a, wrong_a), (b, wrong_b) = (
        (item.id, None) if isinstance(item, Candidate) else (item[0], item[1].error) for item in pair
    )
    return Comparison(a, b, None, settings.use, None, "both", settings.aspect, wrong_a or wrong_b)


def _parts(store: Store, settings: Compare, todo: Sequence[Ids], size: int) -> Iterator[list[tuple[Any, Any]]]:
    """Pairs of decoded candidates (or of (id, failed Score)) as soon as both have been read; each image is decoded once
    and forgotten after its last pair."""
    uses = Counter(cid for pair in todo for cid in pair)
    partners: dict[str, list[Ids]] = {}
    for pair in todo:
        for cid in pair:
            partners.setdefault(cid, []).append(pair)
    here: dict[str, Any] = {}
    part: list[tuple[Any, Any]] = []
    columns = ["id", "request_id", "index", "seed", "image", "path", "sha256", "extra", "error"]
    for candidate in store.iter_candidates(settings.generators, set(uses), columns):
        (item,) = decode([candidate])
        here[candidate.id] = (candidate.id, item) if isinstance(item, Score) else item
        for a, b in partners[candidate.id]:
            if a in here and b in here:
                part.append((here[a], here[b]))
                for cid in (a, b):
                    uses[cid] -= 1
                    if not uses[cid]:
                        del here[cid]
                if len(part) == size:
                    yield part
                    part = []
    if part:
        yield part
