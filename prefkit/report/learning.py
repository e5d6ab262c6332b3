"""The report sections on pairs and on training."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prefkit.report import html, plot
from prefkit.report.pictures import thumbnail, thumbnails
from prefkit.store import Store
from prefkit.store.files import read_json
from prefkit.store.summary import Pairs, metrics

Curve = tuple[list[float], list[float]]
MARGINS = "Margins are relative to the frozen reference: a winner advantage above 0 means that winners became likelier."
EXTREMES = 12
SIDE = 288
SHEET = 900  # longer side of a sheet of images made while training, in pixels
#: maximum numbers of pair sets and of trainings that the page shows; it only names the others
PAIR_SETS, CURVED = 3, 6
PLAIN = "^(?!validation/|watch/|score/|seconds/).*"
#: kinds of curves in the order shown: (title, axis label, y of the reference line, pattern of the metric names)
CURVES: list[tuple[str, str, float | None, str]] = [
    ("reward", "reward", None, "^reward$"),
    ("scores of the rewards", "score", None, "^score/"),
    ("held-out scores", "score", None, "^watch/.*/mean$"),
    ("gain of the held-out scores", "std", 0.0, "^watch/gain$"),
    ("diversity of the watched requests", "diversity", None, "^watch/diversity$"),
    ("ratio", "ratio", 1.0, "^ratio$"),
    ("fraction clipped", "fraction", 0.0, "^(clip_high|clip_low|clamped)$"),
    ("KL", "KL", 0.0, "^(approx_)?kl$"),
    ("loss", "loss", None, "^(?!validation/|watch/|score/|seconds/|.*(accuracy|margin|advantage)).*loss"),
    ("implicit accuracy", "accuracy", 0.5, f"{PLAIN}accuracy"),
    ("margin", "margin", 0.0, f"{PLAIN}margin"),
    ("winner and loser advantage", "advantage", 0.0, f"{PLAIN}advantage"),
    ("validation margin by timestep", "margin", 0.0, "^validation/margin(/|$)"),
    ("validation accuracy by timestep", "accuracy", 0.5, "^validation/implicit_accuracy(/|$)"),
    ("validation winner advantage by timestep", "advantage", 0.0, "^validation/win_advantage(/|$)"),
    ("score gap", "score gap", None, f"{PLAIN}gap"),
    ("gradient norm", "norm", None, f"{PLAIN}grad"),
    ("learning rate", "learning rate", None, f"{PLAIN}learning_rate|^lr$"),
]


def pairs(store: Store) -> str:
    """Return the section on pair sets: histogram of score gaps, and the pairs with the widest and narrowest gaps."""
    names = store.names("pairs")
    if not names:
        return html.section("pairs", "Pairs", html.missing("No pairs have been made yet."))
    body = "".join(_pair_set(store, name) for name in names[:PAIR_SETS]) + _rest(names, PAIR_SETS)
    lead = "The gap is the winner's minus the loser's combined, normalised score. Winners are outlined."
    return html.section("pairs", "Pairs", body, lead)


def _pair_set(store: Store, name: str) -> str:
    pair_set = Pairs(store.pairs(name))
    title = f"<h3>{html.text(name, 60)}</h3>"
    gaps = pair_set.gaps[np.isfinite(pair_set.gaps)]
    if not len(gaps):
        reason = "its pairs have no score gap" if len(pair_set.gaps) else "it holds no pair"
        return title + html.missing(f"No plot of this set: {reason}.")
    caption = f"{len(pair_set.gaps):,} pairs; median gap {html.number(float(np.median(gaps)))}"
    body = f'<div class="plots">{html.figure(plot.histogram(gaps, "score gap", "pairs"), caption)}</div>'
    widest, narrowest = pair_set.extremes(EXTREMES)
    rows = {number: pair_set.row(number) for number in [*widest, *narrowest]}
    absent = [r[f"candidate_{i}"] for r in rows.values() for i in (0, 1) if r.get(f"jpg_{i}") is None]
    images = thumbnails(store, [name for name in absent if name], SIDE)
    for label, numbers in (("widest", widest), ("narrowest", narrowest)):
        if numbers:
            cards = "".join(_pair(rows[number], images) for number in numbers)
            body += f'<h3>The {len(numbers)} {label}</h3><div class="cards">{cards}</div>'
    return title + body


def _pair(row: Mapping[str, Any], images: Mapping[str, str | None]) -> str:
    """Return a card with the winner on the left and the loser on the right."""
    won = 0 if row["label_0"] >= row["label_1"] else 1
    sides = []
    for side, word in ((won, "win"), (1 - won, "lose")):
        blob, prefix = row.get(f"jpg_{side}"), f"score_{side}_"
        source = thumbnail(blob, SIDE) if blob is not None else images.get(row.get(f"candidate_{side}") or "")
        scores = {k.removeprefix(prefix): v for k, v in row.items() if k.startswith(prefix)}
        lines = [f"<b>{word}</b>", *(f"{html.text(k, 24)} {html.number(v)}" for k, v in scores.items())]
        sides.append(html.picture(source, f"{word}: {row.get('caption') or ''}", "<br>".join(lines), word))
    aspect = f"; differ in {html.text(row['aspect'], 60)}" if row.get("aspect") else ""
    gap = f'<p class="quiet">gap {html.number(row["score_gap"])}{aspect}</p>'
    return f'<div class="card">{html.prompt(row.get("caption") or "", 90)}<div class="two">{"".join(sides)}</div>{gap}</div>'


def training(store: Store) -> str:
    """Return the section on trainings: curves, preflight measurement and sample evaluations of each."""
    names = store.names("train")
    if not names:
        return html.section("training", "Training", html.missing("Nothing has been trained yet."))
    parts, pairwise = [], False
    for name in names[:CURVED]:
        rows = metrics(store.train(name))
        pairwise = pairwise or any("win_advantage" in row for row in rows)
        state = "finished" if (store.train(name) / "final").exists() else "not finished"
        parts.append(f'<h3>{html.text(name, 60)} <span class="tag">{state}</span></h3>')
        plots, rest = _curves(rows)
        parts.append(f'<div class="plots">{"".join(plots)}</div>' if plots else "")
        parts.append(rest if plots or rest else html.missing("No step has been recorded yet."))
        folder = store.train(name)
        parts += [_samples(folder), _board(folder), _preflight(folder), _sample_evaluations(rows)]
    lead = "Long curves are averaged over neighbouring steps."
    if pairwise:
        lead = f"{MARGINS} {lead}"
    return html.section("training", "Training", "".join(parts) + _rest(names, CURVED), lead)


def _samples(folder: Path) -> str:
    """Return the first and the last sheet of images that the training made at fixed seeds, or ""."""
    sheets = sorted((folder / "watch").glob("*.png"))
    shown = [
        html.picture(thumbnail(str(path), SHEET), f"{folder.name}, {path.stem.replace('-', ' ')}", html.text(path.stem))
        for path in dict.fromkeys([*sheets[:1], *sheets[-1:]])
    ]
    lead = f'<p class="quiet">Images of the training at fixed seeds, first and last of {len(sheets):,}:</p>'
    return f'{lead}<div class="two sheets">{"".join(shown)}</div>' if shown else ""


def _board(folder: Path) -> str:
    """Return the link, or the command, that shows the training in an experiment tracker; "" if it used none."""
    path = folder / "board.json"
    if not path.exists():
        return ""
    stored = read_json(path)
    link, board = str(stored.get("link")), html.text(stored.get("board"), 40)
    shown = html.text(link, 300)
    if link.startswith("https://"):
        shown = f'<a href="{shown}" rel="noreferrer">{shown}</a>'
    return f'<p class="quiet">Also logged to {board}: {shown}</p>'


def _preflight(folder: Path) -> str:
    """Return a table of the reference model's errors on the pairs' candidates and on its own samples, or ""."""
    path = folder / "preflight.json"
    if not path.exists():
        return ""
    result = read_json(path)
    if "ratio" not in result:
        return html.missing(f"Preflight, the reference's error on the pairs' candidates: {html.text(result['state'])}.")
    low, high = result["interval"]
    verdict = "far apart" if result["far"] else "not far apart"
    caption = (
        f"Preflight, before the first step: the reference's error on {result['images']} of the pairs' candidates is "
        f"{result['ratio']:.2f} [{low:.2f}, {high:.2f}] times that on {result['own']} of its own samples: {verdict}."
    )
    columns = zip(result["bins"], result["error"], result["own_error"], result["bin_ratio"], strict=True)
    rows = [[html.text(name), *map(html.value, values)] for name, *values in columns]
    return html.table(["time", "pairs' candidates", "own samples", "ratio"], rows, caption)


def _sample_evaluations(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of an offline training's first and last sample evaluation, with all alarms; "" if none ran."""
    evaluations = [(row["step"], row["watch"]) for row in rows if "alarm" in row.get("watch", {})]
    if not evaluations:
        return ""
    alarms = [(step, result) for step, result in evaluations if result["alarm"]]
    (start, first), (end, last) = evaluations[0], evaluations[-1]
    scored = [alias for alias, value in last.items() if isinstance(value, Mapping)]
    if alarms:
        step, result = alarms[-1]
        accuracy = result.get("implicit_accuracy")
        verdict = (
            f"Over-optimisation alarm at step {', '.join(f'{step:,}' for step, _ in alarms)}. At step {step:,}, held-out scores "
            f"({html.text(', '.join(scored), 200)}) had changed by {result['gain']:+.2f} std on requests outside the training "
            f"set{'' if accuracy is None else f' while training accuracy was {accuracy:.2f}'}."
        )
    else:
        verdict = f"No over-optimisation alarm in {len(evaluations)} evaluations of requests outside the training set."
    table = [
        [html.text(alias, 40), *(html.value(result[alias]["mean"]) for result in (first, last))] for alias in scored
    ]
    table.append(["diversity within a request", html.value(first["diversity"]), html.value(last["diversity"])])
    heads = ["held out", f"step {start:,}", f"step {end:,}"]
    return html.table(heads, table, f"{verdict} Gain since the start: {last['gain']:+.2f} std.")


def _curves(rows: list[dict[str, Any]]) -> tuple[list[str], str]:
    """Return one figure per kind of metric, and a table of the metrics that vary too little for a figure."""
    figures, rest = [], []
    for title, unit, zero, keys in by_kind(found := series(rows)):
        drawn = [key for key in keys if varies(*found[key])]
        rest += [key for key in keys if key not in drawn]
        if drawn:
            ordered = "by timestep" in title
            legend = "".join(key(k, i, len(drawn), ordered) for i, k in enumerate(drawn)) if len(drawn) > 1 else ""
            svg = plot.lines({key: found[key] for key in drawn}, unit, zero=zero, ordered=ordered)
            figures.append(html.figure(svg, f"<b>{title}</b>{legend}"))
    cells = [[html.text(key, 80), *_ends(*found[key])] for key in rest]
    if not cells:
        return figures, ""
    table = html.table(["Metric", "First", "Last", "Values"], cells, "Constant, or with fewer than three values")
    return figures, f"<details><summary>Metrics without a chart: {len(cells)}</summary>{table}</details>"


def series(rows: list[dict[str, Any]]) -> dict[str, Curve]:
    """Return {metric: (steps, values)} of the rows of metrics.jsonl, without metrics that were never finite."""
    found: dict[str, Curve] = {}
    for i, row in enumerate(rows):
        for key, value in flat(row):
            if key not in ("step", "epoch", "time"):
                xs, ys = found.setdefault(key, ([], []))
                xs.append(float(row.get("step", i)))
                ys.append(value)
    return {key: curve for key, curve in found.items() if any(math.isfinite(y) for y in curve[1])}


def by_kind(keys: Iterable[str]) -> Iterator[tuple[str, str, float | None, list[str]]]:
    """Yield (title, axis label, y of the reference line, metrics) of each figure, in the order of CURVES."""
    kinds: dict[str, list[str]] = {}
    for key in keys:
        kinds.setdefault(kind(key), []).append(key)
    for title, unit, zero, _ in CURVES:
        if title in kinds:
            yield title, unit, zero, kinds[title]


def varies(xs: Sequence[float], ys: Sequence[float]) -> bool:
    """True if a curve shows something: at least three finite values, not all equal."""
    finite = [y for y in ys if math.isfinite(y)]
    return len(finite) > 2 and max(finite) > min(finite)


def _ends(xs: Sequence[float], ys: Sequence[float]) -> list[str]:
    finite = [y for y in ys if math.isfinite(y)]
    return [html.value(finite[0]), html.value(finite[-1]), html.value(len(finite))]


def key(metric: str, i: int, count: int, ordered: bool = False) -> str:
    """Return the legend entry of the i-th of `count` curves."""
    css, inline = plot.style(i, count, ordered)
    name = metric.split("/")[1] if metric.startswith("watch/") else metric.rsplit("/", 1)[-1]
    shown = html.text(name.replace("_", " "), 40)
    return f' <span class="named"><span class="key {css}"{inline}></span>{shown}</span>'


def kind(key: str) -> str:
    """Return the title of the figure that shows a metric, or "" if no figure does."""
    return next((title for title, _, _, pattern in CURVES if re.search(pattern, key)), "")


def flat(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield (path, number) for each metric in a row. The `bins` next to a list name its entries; null becomes NaN.

    {"a": {"bins": ["low", "high"], "b": [1, 2]}} -> ("a/b/low", 1), ("a/b/high", 2)
    """
    bins = row.get("bins", [])
    for key, value in row.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flat(value, f"{name}/")
        elif isinstance(value, list):
            yield from flat(dict(zip(bins, value)) if key != "bins" else {}, f"{name}/")
        elif value is None:
            yield name, math.nan
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield name, float(value)


def _rest(names: list[str], most: int) -> str:
    rest = names[most:]
    return html.missing(f"{len(rest)} more are in the run folder: {html.text(', '.join(rest))}.") if rest else ""
