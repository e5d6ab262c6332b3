"""Images of base and tuned models at the same seeds: requests chosen by hash, and the worst regressions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from prefkit.report import html
from prefkit.report.pictures import thumbnails
from prefkit.store import Store
from prefkit.store.summary import candidate_index, higher_is_better
from prefkit.types import digest

CONTROL_SUFFIXES = ("-sft", "-flipped")
BY_HASH, WORST = 6, 6
SEEDS, MODELS = 4, 3
SIDE = 288  # twice the size shown, for the enlarged image


def both(folder: Path, result: dict[str, Any], models: dict[str, dict[str, Any]]) -> str:
    """Return two columns of images for one prompt set. folder contains base/ and MODEL/, each laid out like a run."""
    names = sorted((model for model in models if not model.startswith("base-")), key=is_variant)[:MODELS]
    stores = {name: Store(folder / name) for name in ["base", *names] if (folder / name / "run.json").exists()}
    if len(stores) < 2:
        return html.missing("The images of base and tuned are missing.")
    settings = result.get("settings", {})
    seeds = min(SEEDS, settings.get("eval", {}).get("seeds", SEEDS))
    frames = {name: index(store, settings.get("generator"), seeds) for name, store in stores.items()}
    prompts = {r.request_id: r.prompt for r in stores["base"].requests()}
    requests = evaluated(result, folder)
    shared = set.intersection(requests, *(set(frame.request_id) for frame in frames.values()))
    model = next(name for name in stores if name != "base")
    judge = _judge({alias: row for alias, row in models[model].items() if alias in stores["base"].names("scores")})
    changes = regressions(stores, frames, model, judge, shared) if judge else {}
    worst = [request for request, change in changes.items() if change < 0][:WORST]
    chosen = by_hash(shared)
    images = _images(stores, frames, [*chosen, *worst])
    left = "".join(_request(prompts[r], r, frames, images) for r in chosen)
    notes = {r: f"{html.text(judge or '', 40)} fell by {html.number(-changes[r])}" for r in worst}
    right = "".join(_request(prompts[r], r, frames, images, note) for r, note in notes.items())
    title = f"Worst regressions of {html.text(model, 60)}" + (f" by {html.text(judge, 40)}" if judge else "")
    return (
        '<div class="pair-of-columns">'
        f'<div><h3>Chosen by hash, not by hand</h3><div class="stack">{left or html.missing("No request.")}</div></div>'
        f'<div><h3>{title}</h3><div class="stack">{right or html.missing("No request got worse.")}</div></div></div>'
    )


def is_variant(model: str) -> bool:
    """True for a control or for the base with changed settings, which are shown but never reported as findings."""
    return model.endswith(CONTROL_SUFFIXES) or model.startswith("base-")


def evaluated(result: dict[str, Any], folder: Path) -> set[str]:
    """Return the ids of the requests that an evaluation compared on the set in `folder`; base/ may hold more.

    If result.json does not name them (earlier versions): all requests of base/.
    """
    named = result.get("requests", {}).get(folder.name)
    return set(named) if named is not None else {r.request_id for r in Store(folder / "base").requests()}


def by_hash(requests: set[str]) -> list[str]:
    """Return the first BY_HASH requests in the order of a hash of their ids."""
    return sorted(requests, key=lambda request: digest("grid", request))[:BY_HASH]


def regressions(
    stores: dict[str, Store], frames: dict[str, pd.DataFrame], model: str, judge: str, requests: set[str]
) -> dict[str, float]:
    """Return {request: mean change of the judge's score from base to `model`}, worst first; positive is better.

    Images without a score for both models are left out.
    """
    sign = 1.0 if higher_is_better(stores["base"], judge) else -1.0
    values = []
    for name in ("base", model):
        frame = frames[name].merge(stores[name].scores(judge).frame(["id", "value"]), on="id")
        values.append(frame[np.isfinite(frame.value)].set_index(["request_id", "index"]).value)
    change = (sign * (values[1] - values[0])).dropna().groupby("request_id").mean().sort_values(kind="stable")
    return {str(request): float(mean) for request, mean in change.items() if request in requests}


def _judge(scorers: dict[str, Any]) -> str | None:
    """Return the first held-out judge, else the first scorer, else None."""
    held_out = [alias for alias, row in scorers.items() if row.get("used_for_pairs") is False]
    return next(iter([*held_out, *scorers]), None)


def index(store: Store, generator: str | None, seeds: int) -> pd.DataFrame:
    """Return the first `seeds` candidates of each request, made by `generator`."""
    frame = candidate_index(store)
    frame = frame[frame.generator == generator] if generator in set(frame.generator) else frame
    return frame[frame["index"] < seeds]


def _images(
    stores: dict[str, Store], frames: dict[str, pd.DataFrame], requests: list[str]
) -> dict[tuple[str, str], str | None]:
    """Return {(model, candidate id): data URI of a thumbnail}."""
    images: dict[tuple[str, str], str | None] = {}
    for name, store in stores.items():
        ids = frames[name][frames[name].request_id.isin(requests)].id
        images |= {(name, key): uri for key, uri in thumbnails(store, ids, SIDE).items()}
    return images


def _request(
    prompt: str,
    request: str,
    frames: dict[str, pd.DataFrame],
    images: dict[tuple[str, str], str | None],
    note: str = "",
) -> str:
    rows = []
    for name, frame in frames.items():
        members = frame[frame.request_id == request].sort_values("index").itertuples()
        cells = [html.picture(images.get((name, str(m.id))), f"{name}, seed {m.seed}: {prompt}") for m in members]
        rows.append(f'<div class="row"><b>{html.text(name, 40)}</b><div class="seeds">{"".join(cells)}</div></div>')
    below = f'<p class="quiet">{note}</p>' if note else ""
    return f'<div class="card">{html.prompt(prompt)}{"".join(rows)}{below}</div>'
