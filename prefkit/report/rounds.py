"""The report section on offline rounds: counts per round with a link to the round's report, and scores by round."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prefkit.report import evidence, html
from prefkit.report.grids import is_variant
from prefkit.store import Store
from prefkit.store.summary import status

LEAD = (
    "Each round generates candidates with the previous round's model, scores and pairs them, and continues the "
    "training. The model of every round is evaluated on the same held-out requests and seeds as the base. A cell "
    "is the mean score with its 95 % bootstrap interval over requests; ▲, ▼ and ○ mark a win rate against the base "
    "whose interval is above, below or around 1/2; = marks images that hardly changed."
)
MARKS = {True: "*", False: "", None: "?"}
Row = dict[str, Any]


def section(store: Store) -> str:
    """Return the section on rounds."""
    rows = [_counts(number, part) for number, part in store.rounds().items()]
    parts = [html.table(["Round", "Candidates", "Pairs", "Steps"], rows)]
    numbers = list(store.rounds())
    cells = [
        [html.text(f"{model}{f' ({where})' if where else ''}", 80), html.text(judge, 60), *_drawn(base, found, numbers)]
        for where, model, judge, base, found in _compared(store)
    ]
    head = ["Model", "Score", "Base", *(f"Round {number}" for number in numbers)]
    parts.append(html.table(head, cells, left=2) if cells else html.missing("No round has been evaluated yet."))
    return html.section("rounds", "Rounds", "".join(parts), LEAD)


def _counts(number: int, part: Store) -> list[str]:
    link = f"Round {number}"
    if (part.folder / "report.html").exists():
        link = f'<a href="rounds/{number}/report.html">{link}</a>'
    return [link, *(html.value(count) for count in _numbers(part).values())]


def _numbers(part: Store) -> dict[str, int]:
    state = status(part)
    return {
        "candidates": sum(entry["done"] for entry in state["candidates"].values()),
        "pairs": sum(sum(splits.values()) for splits in state["pairs"].values()),
        "steps": max((entry["step"] for entry in state["train"].values()), default=0),
    }


def _drawn(base: str, found: dict[int, Row], numbers: list[int]) -> list[str]:
    cells = []
    for number in numbers:
        row = found.get(number)
        symbol = evidence.SYMBOLS.get(row.get("verdict", ""), "") if row else ""
        cells.append(f"{html.text(row['cell'])} {symbol}".rstrip() if row else "–")
    return [html.text(base), *cells]


def score_rows(store: Store) -> list[Row]:
    """Return the scores as table rows for the terminal: model, judge, base, round 1, round 2, ..."""
    return [
        {**({"set": where} if where else {}), "model": model, "judge": judge, "base": base}
        | {f"round {number}": row["cell"] for number, row in found.items()}
        for where, model, judge, base, found in _compared(store)
    ]


def line(part: Store, number: int, rounds: int) -> str:
    """Return the counts and scores of one round as one line of text."""
    texts = [", ".join(f"{count:,} {name}" for name, count in _numbers(part).items())]
    for _, model, judge, base, found in _compared_in({number: part}):
        texts.append(f"{model} {judge} {base} -> {found[number]['cell']}")
    return f"round {number} of {rounds} is done: {'; '.join(texts)}; {part.folder / 'report.html'}"


def _compared(store: Store) -> list[tuple[str, str, str, str, dict[int, Row]]]:
    return _compared_in(store.rounds())


def _compared_in(rounds: dict[int, Store]) -> list[tuple[str, str, str, str, dict[int, Row]]]:
    """Return (evaluation and set, model, score name, base value, {round: row}) for every model and score.

    The first item is "" if there is only one evaluation and set. A score's name ends in * if the score was the
    training signal, and in ? if that is unknown. The diversity of images is listed like a score.
    """
    found: dict[tuple[str, str, str], dict[int, Row]] = {}
    bases: dict[tuple[str, str, str], str] = {}
    for number, part in rounds.items():
        for key, base, row in _cells(part):
            found.setdefault(key, {})[number] = row
            bases.setdefault(key, base)
    several = len({key[0] for key in found}) > 1
    return [(key[0] if several else "", *key[1:], bases[key], rows) for key, rows in found.items()]


def _cells(part: Store) -> Iterator[tuple[tuple[str, str, str], str, Row]]:
    for name, result in evidence.results(part).items():
        for set_name, models in result["sets"].items():
            for model, scorers in models.items():
                if is_variant(model):
                    continue
                for alias, row in scorers.items():
                    cell = _mean(row["tuned"], row.get("tuned_interval"))
                    key = f"{name}, {set_name}", model, alias + MARKS[row["used_for_pairs"]]
                    yield key, _mean(row["base"], row.get("base_interval")), {"cell": cell, "verdict": row["verdict"]}
                first: Row = next(iter(scorers.values()), {})
                if first.get("diversity_tuned") is not None:
                    key = f"{name}, {set_name}", model, "diversity of images"
                    yield key, _mean(first["diversity_base"]), {"cell": _mean(first["diversity_tuned"])}


def _mean(mean: float | None, interval: list[float] | None = None) -> str:
    if mean is None:
        return "–"
    return f"{mean:.3g}" + (f" [{interval[0]:.3g}, {interval[1]:.3g}]" if interval else "")
