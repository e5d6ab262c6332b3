"""The sections on pairs and on training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prefkit.report import html, plot, watched
from prefkit.report.pictures import thumbnail, thumbnails
from prefkit.store.files import read_json
from prefkit.store.summary import Pairs, metrics

if TYPE_CHECKING:
    from prefkit.store import Store

EXTREMES = 12
SIDE = 200
#: a run with more pair sets or trained models is cut, and the page says so
PAIR_SETS, CURVED = 3, 6


def pairs(store: Store) -> str:
    names = store.names("pairs")
    if not names:
        return html.section("pairs", "Pairs", html.missing("No pairs have been made yet."))
    body = "".join(_pair_set(store, name) for name in names[:PAIR_SETS]) + _cut(names, PAIR_SETS)
    lead = "The gap is the difference of the combined, normalised score between winner and loser. Winners are outlined."
    return html.section("pairs", "Pairs", body, lead)


def _pair_set(store: Store, name: str) -> str:
    found = Pairs(store.pairs(name))
    title = f"<h3>{html.text(name, 60)}</h3>"
    known = found.gaps[np.isfinite(found.gaps)]
    if not len(known):
        reason = "its pairs carry no score gap" if len(found.gaps) else "it holds no pair"
        return title + html.missing(f"Nothing to show of this set: {reason}.")
    caption = f"{len(found.gaps):,} pairs; median gap {html.number(float(np.median(known)))}"
    body = f'<div class="plots">{html.figure(plot.histogram(known, "score gap", "pairs"), caption)}</div>'
    widest, narrowest = found.extremes(EXTREMES)
    rows = {number: found.row(number) for number in [*widest, *narrowest]}
    absent = [r[f"candidate_{i}"] for r in rows.values() for i in (0, 1) if r.get(f"jpg_{i}") is None]
    images = thumbnails(store, [name for name in absent if name], SIDE)
    for label, numbers in (("widest", widest), ("narrowest", narrowest)):
        if numbers:
            cards = "".join(_pair(rows[number], images) for number in numbers)
            body += f'<h3>The {len(numbers)} {label}</h3><div class="cards">{cards}</div>'
    return title + body


def _pair(row: Mapping[str, Any], images: Mapping[str, str | None]) -> str:
    """Winner left, loser right."""
    won = 0 if row["label_0"] >= row["label_1"] else 1
    sides = []
    for side, word in ((won, "win"), (1 - won, "lose")):
        blob = row.get(f"jpg_{side}")
        source = thumbnail(blob, SIDE) if blob is not None else images.get(row.get(f"candidate_{side}") or "")
        prefix = f"score_{side}_"
        values = [
            f"{html.text(k.removeprefix(prefix), 24)} {html.number(v)}" for k, v in row.items() if k.startswith(prefix)
        ]
        caption = "<br>".join([f"<b>{word}</b>", *values])
        sides.append(html.picture(source, f"{word}: {row.get('caption') or ''}", caption, word))
    gap = f'<p class="quiet">gap {html.number(row["score_gap"])}</p>'
    return f'<div class="card">{html.prompt(row.get("caption") or "", 90)}<div class="two">{"".join(sides)}</div>{gap}</div>'


def training(store: Store) -> str:
    names = store.names("train")
    if not names:
        return html.section("training", "Training", html.missing("Nothing has been trained yet."))
    parts = []
    for name in names[:CURVED]:
        rows = metrics(store.train(name))
        state = "finished" if (store.train(name) / "final").exists() else "not finished"
        parts.append(f'<h3>{html.text(name, 60)} <span class="tag">{state}</span></h3>')
        plots = "".join(_curves(rows))
        parts.append(f'<div class="plots">{plots}</div>' if plots else html.missing("No step has been recorded yet."))
        parts.append(_preflight(store.train(name)))
        parts.append(watched.summary(rows))
    return html.section(
        "training",
        "Training",
        "".join(parts) + _cut(names, CURVED),
        "Margins are measured against the frozen start: winner advantage above 0 means that winners became likelier. "
        "Long curves are averaged over runs of neighbouring steps.",
    )


def _preflight(folder: Path) -> str:
    """The start's error on the pairs' images against its own samples; nothing for a training without the measurement."""
    path = folder / "preflight.json"
    if not path.exists():
        return ""
    found = read_json(path)
    if "ratio" not in found:
        return html.missing(f"Preflight, the start's error on the pairs' images: {html.text(found['state'])}.")
    low, high = found["interval"]
    verdict = "far apart" if found["far"] else "not far apart"
    caption = (
        f"Preflight, before the first step: the start's error on {found['images']} of the pairs' images is {found['ratio']:.2f} "
        f"[{low:.2f}, {high:.2f}] times that on {found['own']} of its own samples: {verdict}."
    )
    columns = zip(found["bins"], found["error"], found["own_error"], found["bin_ratio"], strict=True)
    rows = [[html.text(name), *map(html.number, values)] for name, *values in columns]
    return html.table(["time", "pairs' images", "own samples", "ratio"], rows, caption)


def _curves(rows: list[dict[str, Any]]) -> Iterator[str]:
    """One figure per kind of metric that the run recorded."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    for i, row in enumerate(rows):
        for key, value in flat(row):
            if key not in ("step", "epoch", "time"):
                xs, ys = series.setdefault(key, ([], []))
                xs.append(float(row.get("step", i)))
                ys.append(value)
    kinds: dict[str, list[str]] = {}
    for key, (_, ys) in series.items():
        if any(math.isfinite(y) for y in ys):
            kinds.setdefault(kind(key), []).append(key)
    for title, unit, zero in CURVES:
        keys = kinds.get(title, [])
        if not keys:
            continue
        ordered = "by timestep" in title
        drawn = {key: series[key] for key in keys}
        caption = f"<b>{title}</b>{''.join(_key(k, i, len(keys), ordered) for i, k in enumerate(keys)) if len(keys) > 1 else ''}"
        yield html.figure(plot.lines(drawn, unit, zero=zero, ordered=ordered), caption)


def _key(key: str, i: int, count: int, ordered: bool) -> str:
    css, inline = plot.style(i, count, ordered)
    return f' <span class="named"><span class="key {css}"{inline}></span>{html.text(shortened(key), 40)}</span>'


#: kinds of curves in the order shown: title, label of the axis, line of reference
CURVES: list[tuple[str, str, float | None]] = [
    ("reward", "reward", None),
    ("scores of the rewards", "score", None),
    ("held-out scores", "score", None),
    ("gain of the held-out scores", "deviations", 0.0),
    ("diversity of the watched requests", "diversity", None),
    ("ratio", "ratio", 1.0),
    ("share clipped", "share", 0.0),
    ("KL", "KL", 0.0),
    ("loss", "loss", None),
    ("implicit accuracy", "accuracy", 0.5),
    ("margin", "margin", 0.0),
    ("winner and loser advantage", "advantage", 0.0),
    ("validation margin by timestep", "margin", 0.0),
    ("validation accuracy by timestep", "accuracy", 0.5),
    ("validation winner advantage by timestep", "advantage", 0.0),
    ("score gap", "score gap", None),
    ("gradient norm", "norm", None),
    ("learning rate", "learning rate", None),
]


def kind(key: str) -> str:
    """Which figure a metric belongs to; "" for none."""
    if key.startswith("validation/"):
        measured = {"margin": "margin", "implicit_accuracy": "accuracy", "win_advantage": "winner advantage"}
        name = measured.get(key.split("/")[1])
        return f"validation {name} by timestep" if name else ""
    if key.startswith("watch/"):
        whole = {"watch/gain": "gain of the held-out scores", "watch/diversity": "diversity of the watched requests"}
        return whole.get(key, "held-out scores" if key.endswith("/mean") else "")
    if key.startswith(("score/", "seconds/")):
        return "scores of the rewards" if key.startswith("score/") else ""
    online = {"reward": "reward", "ratio": "ratio", "approx_kl": "KL", "kl": "KL"}
    online |= {"clip_high": "share clipped", "clip_low": "share clipped", "clamped": "share clipped"}
    if key in online:
        return online[key]
    for word, title in (
        ("accuracy", "implicit accuracy"),
        ("margin", "margin"),
        ("advantage", "winner and loser advantage"),
        ("loss", "loss"),
        ("gap", "score gap"),
        ("grad", "gradient norm"),
        ("learning_rate", "learning rate"),
    ):
        if word in key:
            return title
    return "learning rate" if key == "lr" else ""


def shortened(key: str) -> str:
    if key.startswith("watch/"):
        return key.split("/")[1].replace("_", " ")
    return key.rsplit("/", 1)[-1].replace("_", " ")


def flat(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Numbers by path; the entries of a list are named by the `bins` beside it. null counts as NaN.

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


def _cut(names: list[str], most: int) -> str:
    rest = len(names) - most
    return html.missing(f"{rest} more are in the run folder: {html.text(', '.join(names[most:]))}.") if rest > 0 else ""
