"""Base and tuned side by side at the same seeds: requests chosen by hash, and the worst regressions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prefkit.report import html
from prefkit.report.pictures import thumbnails
from prefkit.store import Store
from prefkit.store.summary import candidate_index, higher_is_better
from prefkit.types import digest

if TYPE_CHECKING:
    import pandas as pd

CONTROL_SUFFIXES = ("-sft", "-flipped")
BY_HASH, WORST = 6, 6
SEEDS, MODELS = 4, 3
SIDE = 144


def both(folder: Path, result: dict[str, Any], models: dict[str, dict[str, Any]]) -> str:
    """The two columns of one set: `folder` holds base/ and a run-shaped folder per model."""
    names = sorted((model for model in models if not model.startswith("base-")), key=is_variant)[:MODELS]
    opened = {name: Store(folder / name) for name in ["base", *names] if (folder / name / "run.json").exists()}
    if len(opened) < 2:
        return html.missing("There are no images of base and tuned to show.")
    generator = result.get("settings", {}).get("generator")
    seeds = min(SEEDS, result.get("settings", {}).get("eval", {}).get("seeds", SEEDS))
    frames = {name: _index(store, generator) for name, store in opened.items()}
    frames = {name: frame[frame["index"] < seeds] for name, frame in frames.items()}
    prompts = {r.request_id: r.prompt for r in opened["base"].requests()}
    shared = set.intersection(set(prompts), *(set(frame.request_id) for frame in frames.values()))
    chosen = by_hash(shared)
    model = next(name for name in opened if name != "base")
    judge = _judge(models[model])
    gaps = regressions(opened, frames, model, judge, shared) if judge else {}
    worst = [request for request, gap in gaps.items() if gap < 0][:WORST]
    images = _images(opened, frames, [*chosen, *worst])
    left = "".join(_request(prompts[r], r, frames, images) for r in chosen)
    right = "".join(
        _request(prompts[r], r, frames, images, f"{html.text(judge or '', 40)} fell by {html.number(-gaps[r])}")
        for r in worst
    )
    regress = f"Worst regressions of {html.text(model, 60)}" + (f" by {html.text(judge, 40)}" if judge else "")
    return (
        '<div class="pair-of-columns">'
        f'<div><h3>Chosen by hash, never picked</h3><div class="stack">{left or html.missing("No request.")}</div></div>'
        f'<div><h3>{regress}</h3><div class="stack">{right or html.missing("No request got worse.")}</div></div></div>'
    )


def is_variant(model: str) -> bool:
    """A control, or the base at other settings: shown beside the models, never as a finding."""
    return model.endswith(CONTROL_SUFFIXES) or model.startswith("base-")


def by_hash(requests: set[str], count: int = BY_HASH) -> list[str]:
    """The first `count` requests in the order of a hash of their ids."""
    return sorted(requests, key=lambda request: digest("grid", request))[:count]


def regressions(
    opened: dict[str, Store], frames: dict[str, pd.DataFrame], model: str, judge: str, requests: set[str]
) -> dict[str, float]:
    """Mean change of the judge's score by request, higher is better, the worst first; only requests scored in both."""
    sign = 1.0 if higher_is_better(opened["base"], judge) else -1.0
    means = []
    for name in ("base", model):
        scores = opened[name].scores(judge).frame(["id", "value"])
        frame = frames[name].merge(scores, on="id")
        means.append(frame[np.isfinite(frame.value)].set_index(["request_id", "index"]).value)
    change = (sign * (means[1] - means[0])).dropna().groupby("request_id").mean().sort_values(kind="stable")
    return {str(request): float(gap) for request, gap in change.items() if request in requests}


def _judge(scorers: dict[str, Any]) -> str | None:
    """The first held-out judge, else the first scorer."""
    return next(
        (alias for alias, row in scorers.items() if row.get("used_for_pairs") is False), next(iter(scorers), None)
    )


def _index(store: Store, generator: str | None) -> pd.DataFrame:
    """One row per request and index: of the evaluation's generator."""
    frame = candidate_index(store)
    return frame[frame.generator == generator] if generator in set(frame.generator) else frame


def _images(
    opened: dict[str, Store], frames: dict[str, pd.DataFrame], requests: list[str]
) -> dict[tuple[str, str], str | None]:
    """(model, candidate id) -> data URI."""
    found: dict[Any, Any] = {}
    for name, store in opened.items():
        frame = frames[name]
        ids = frame[frame.request_id.isin(requests)].id
        found |= {(name, key): uri for key, uri in thumbnails(store, ids, SIDE).items()}
    return found


def _request(
    prompt: str,
    request: str,
    frames: dict[str, pd.DataFrame],
    images: dict[tuple[str, str], str | None],
    note: str = "",
) -> str:
    rows = []
    for name, frame in frames.items():
        members = frame[frame.request_id == request].sort_values("index")
        cells = "".join(
            html.picture(images.get((name, str(row.id))), f"{name}, seed {row.seed}: {prompt}")
            for row in members.itertuples()
        )
        rows.append(f'<div class="row"><b>{html.text(name, 40)}</b><div class="seeds">{cells}</div></div>')
    below = f'<p class="quiet">{note}</p>' if note else ""
    return f'<div class="card">{html.prompt(prompt)}{"".join(rows)}{below}</div>'
