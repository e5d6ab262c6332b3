"""The compare stage: a judge decides which of two images is better, and comparisons/NAME/ stores the verdicts."""

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
from prefkit.store.table import Table, comparison_row, note_pace
from prefkit.types import Candidate, Comparison, Score, digest

FLUSH_ROWS, FLUSH_SECONDS = 96, 20.0
AHEAD = 4  # up to AHEAD * concurrency calls are submitted after the oldest running call
Ids = tuple[str, str]


def run_compare(store: Store, recipe: Recipe, name: str, *, limit: int | None = None) -> dict[str, Any]:
    """Ask the judge about all pairs that have no verdict yet, including pairs that failed.

    Returns the counts of pairs and the two rates of `judge.compare.Verdicts`. limit: maximum number of pairs. Each
    compared pair adds three rows: two answers (`order` "ab" and "ba") and the verdict ("both"). Raises UsageError if
    the settings are invalid or the scorer cannot compare images, FingerprintError if the judge or question changed.
    """
    settings = recipe.compare[name]
    judge, pairs, _, spec = checked(store, recipe, name)
    with store.lock(f"comparisons/{name}"):
        return ask_all(store, settings, judge, store.comparisons(name), spec, pairs, name, limit)


def ask_all(
    source: Any,
    settings: Compare,
    judge: Any,
    table: Table,
    spec: dict[str, Any],
    pairs: Sequence[Ids],
    name: str,
    limit: int | None = None,
) -> dict[str, Any]:
    """Ask about the pairs that have no verdict in `table`, at most `limit`, and return the counts of `run_compare`.

    source: a run, or another object with its method `iter_candidates`; spec: the table's settings.
    """
    done = decided(table)  # read again, since another command may have held the lock and added verdicts
    _claim(table, spec, done)
    todo = [pair for pair in pairs if pair not in done][:limit]
    present = sum(pair in done for pair in pairs)
    counts: dict[str, Any] = {"wanted": present + len(todo), "present": present, "compared": 0, "failed": 0}
    start = time.monotonic()
    if todo:
        note(f"compare {name}: {len(todo)} pairs with {settings.use}, each in both orders")
        try:
            judge.load(device_of(settings.device), settings.dtype)
            _ask(source, settings, judge, table, todo, counts)
        finally:
            close(judge, f"compare {name}")
    flip, first = rates(answers(table))
    counts |= {"flip_rate": flip, "first_rate": first, "seconds": round(time.monotonic() - start, 2)}
    write_json(table.folder / "spec.json", spec | {"measured": {"flip_rate": flip, "first_rate": first}})
    note_pace(table.folder, counts["compared"], counts["seconds"])
    return counts


def checked(store: Store, recipe: Recipe, name: str) -> tuple[Any, list[Ids], set[Ids], dict[str, Any]]:
    """Run all checks that need no weights; return (judge, all pairs, decided pairs, table spec). Writes nothing."""
    from prefkit.models.precision import dtype_of

    settings = recipe.compare[name]
    compatibility.check("compare", name, recipe)
    judge = judge_of(settings, name)
    pairs, table = chosen_pairs(store, settings, name), store.comparisons(name)
    done = decided(table)
    spec = spec_of(settings, judge)
    _claim(table, spec, done, write=False)
    if any(pair not in done for pair in pairs):
        dtype_of(settings.dtype)
        device_of(settings.device)
    return judge, pairs, done, spec


def spec_of(settings: Compare, judge: Any) -> dict[str, Any]:
    """Return the settings on which verdicts depend, for the table's fingerprint."""
    spec = {**judge.judge_spec(), "dtype": settings.dtype, "question": settings.template, "aspect": settings.aspect}
    return spec | ({"background": Background.name()} if Background.suffix() else {})


def _claim(table: Table, spec: dict[str, Any], done: set[Ids], write: bool = True) -> None:
    measured = (table.spec() or {}).get("measured")
    claimed = spec | ({"measured": measured} if measured is not None else {})
    table.claim(claimed, "Use another name under compare.", empty=not done, write=write)


def judge_of(settings: Compare, name: str) -> Any:
    """Create the judge without loading weights. Raises UsageError for a scorer that cannot compare images."""
    bounds.check(settings, f"compare.{name}")
    judge = make_scorer(settings.use, settings.options, f"compare.{name}")
    if not callable(getattr(judge, "compare", None)) or not callable(getattr(judge, "judge_spec", None)):
        raise UsageError(
            f"compare.{name}: {settings.use} scores single images and cannot compare two. Use mllm, or a class with "
            "the methods compare(pairs, template, aspect) and judge_spec()."
        )
    check_licence(judge, settings.accept_license, f"compare.{name}")
    return judge


def chosen_pairs(store: Store, settings: Compare, name: str) -> list[Ids]:
    """Return the pairs to ask about, deterministically. A hash decides which candidate of a pair comes first.

    `pairs: all` chooses up to `most` pairs per request by a hash of the candidate ids. `pairs: extremes` ranks each
    request's candidates by the score `by` and pairs the best with the worst, and so on, up to `most` pairs.
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
    pairs: list[Ids] = []
    if settings.pairs == "all":
        for ids in requests.values():
            hashed = sorted(itertools.combinations(ids, 2), key=lambda pair: digest(*sorted(pair)))
            pairs += hashed[: settings.most]
    elif settings.pairs == "extremes":
        costs = _costs(store, settings, name)
        for ids in requests.values():
            ranked = sorted((cid for cid in ids if cid in costs), key=lambda cid: (costs[cid], cid))
            pairs += [(ranked[i], ranked[-1 - i]) for i in range(min(settings.most, len(ranked) // 2))]
    else:
        raise UsageError(f"compare.{name}.pairs is {settings.pairs!r}; it must be `all` or `extremes`.")
    return [(a, b) if digest(a, b) < digest(b, a) else (b, a) for a, b in pairs]


def _costs(store: Store, settings: Compare, name: str) -> dict[str, float]:
    """Return {candidate id: value of the score `by`}, negated if higher is better, so that smaller is always better."""
    existing = store.names("scores")
    if settings.by not in existing:
        raise UsageError(
            f"compare.{name}.by: no score is called {settings.by!r}.{nearest(settings.by, existing)} Scores of this run: "
            f"{', '.join(existing) or 'none'}."
        )
    table = store.scores(settings.by)
    frame = table.frame(["id", "value"]).dropna()
    sign = -1.0 if (table.spec() or {}).get("higher_is_better", True) else 1.0
    return dict(zip(frame.id, sign * frame.value))


def decided(table: Table) -> set[Ids]:
    frame = table.frame(["id", "id_a", "id_b", "order", "outcome"])
    frame = frame[(frame.order == "both") & frame.outcome.notna()]
    return set(zip(frame.id_a, frame.id_b))


def answers(table: Table) -> list[Comparison]:
    """Return the latest two answers about each pair, order "ab" before order "ba"."""
    rows = table.read(["id_a", "id_b", "order", "outcome"]).to_pylist()
    outcomes = {(row["id_a"], row["id_b"], row["order"]): row["outcome"] for row in rows}
    pairs = dict.fromkeys((a, b) for a, b, _ in outcomes)
    return [Comparison(a, b, outcomes.get((a, b, order)), "", order=order) for a, b in pairs for order in ("ab", "ba")]


def _ask(store: Any, settings: Compare, judge: Any, table: Table, todo: Sequence[Ids], counts: dict[str, Any]) -> None:
    rows: list[dict[str, Any]] = []
    flushed = time.monotonic()
    width = getattr(judge, "concurrency", 1)
    size = settings.batch_size if width == 1 else getattr(judge, "batch", None) or 1
    parts = _parts(store, settings, todo, size)
    with Progress("compare", len(todo)) as progress:
        try:
            for part, result in in_order(lambda part: verdicts(judge, settings, part), parts, width, AHEAD * width):
                now = time.time()
                rows += [comparison_row(dataclasses.replace(c, time=now)) for c in result]
                outcomes = [c.outcome for c in result if c.order == "both"]
                counts["failed"] += outcomes.count(None)
                counts["compared"] += len(outcomes) - outcomes.count(None)
                progress.update(len(part))
                if len(rows) >= FLUSH_ROWS or time.monotonic() - flushed > FLUSH_SECONDS:
                    table.append(rows)
                    rows, flushed = [], time.monotonic()
        finally:
            table.append(rows)


def verdicts(judge: Any, settings: Compare, part: Sequence[tuple[Any, Any]]) -> list[Comparison]:
    """Ask about these pairs and return three rows per pair, or one failed row if an image cannot be decoded.

    If the judge raises an exception, each pair is asked about alone, so that only the pair at fault fails."""
    live = [pair for pair in part if isinstance(pair[0], Candidate) and isinstance(pair[1], Candidate)]
    failed = [_failure(pair, settings) for pair in part if pair not in live]
    if not live:
        return failed
    try:
        with guarded(f"judge {settings.use}"):
            shown = live if trusted(judge) else [(a, b) for a, b in zip(*(copies(side) for side in zip(*live)))]
            result = judge.compare(shown, settings.template, settings.aspect)
    except PrefkitError:
        raise
    except Exception as error:
        if len(live) > 1:
            return failed + [row for pair in live for row in verdicts(judge, settings, [pair])]
        ((a, b),) = live
        return [
            *failed,
            Comparison(a.id, b.id, None, settings.use, None, "both", settings.aspect, error_summary(error)),
        ]
    check_verdicts(result, [(a.id, b.id) for a, b in live], settings.use)
    return [*failed, *result.shown, *result.rows]


def _failure(pair: tuple[Any, Any], settings: Compare) -> Comparison:
    (a, error_a), (b, error_b) = (
        (item.id, None) if isinstance(item, Candidate) else (item[0], item[1].error) for item in pair
    )
    return Comparison(a, b, None, settings.use, None, "both", settings.aspect, error_a or error_b)


def _parts(store: Any, settings: Compare, todo: Sequence[Ids], size: int) -> Iterator[list[tuple[Any, Any]]]:
    """Yield lists of up to `size` pairs of decoded candidates; (id, failed Score) replaces an undecodable one."""
    uses = Counter(cid for pair in todo for cid in pair)
    partners: dict[str, list[Ids]] = {}
    for pair in todo:
        for cid in pair:
            partners.setdefault(cid, []).append(pair)
    items: dict[str, Any] = {}
    part: list[tuple[Any, Any]] = []
    columns = ["id", "request_id", "index", "seed", "image", "path", "sha256", "extra", "error"]
    for candidate in store.iter_candidates(settings.generators, set(uses), columns):
        (item,) = decode([candidate])
        items[candidate.id] = (candidate.id, item) if isinstance(item, Score) else item
        for a, b in partners[candidate.id]:
            if a in items and b in items:
                part.append((items[a], items[b]))
                for cid in (a, b):
                    uses[cid] -= 1
                    if not uses[cid]:
                        del items[cid]
                if len(part) == size:
                    yield part
                    part = []
    if part:
        yield part
