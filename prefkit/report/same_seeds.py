"""Images of several runs, of the same held-out requests at the same seeds, below each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from prefkit.report import html
from prefkit.report.evidence import results
from prefkit.report.grids import SEEDS, SIDE, by_hash, evaluated, index, is_variant
from prefkit.report.pictures import thumbnails
from prefkit.store import Store

#: at most this many models of a run are shown
MODELS = 2
LEAD = (
    "Held-out requests that all runs evaluated, chosen by a hash. The images of a column have the same seed. The base of a "
    "further run is shown only if its images differ."
)
Frames = dict[str, tuple[Store, pd.DataFrame]]  # row label -> the images' folder, and their index


def pictures(runs: Mapping[str, Store]) -> str:
    """Return a card for each of some requests, with a row of images per run and model."""
    frames: Frames = {}
    for name, store in runs.items():
        frames |= _frames(name, store)
    if len({label.partition(": ")[0] for label in frames}) < 2:
        return html.missing("Fewer than two runs have been evaluated.")
    keys = [set(zip(frame.request_id, frame.seed)) for _, frame in frames.values()]
    shared = set.intersection(*keys)
    if not shared:
        return html.missing("The runs were evaluated on other requests or with other seeds.")
    chosen = by_hash({request for request, _ in shared})
    prompts = {r.request_id: r.prompt for r in next(iter(frames.values()))[0].requests()}
    images = {label: _images(*found, chosen, shared) for label, found in frames.items()}
    rows = _without_repeats(images)
    cards = "".join(_card(prompts[request], request, rows) for request in chosen)
    return f'<div class="pair-of-columns">{cards}</div>'


def _frames(name: str, store: Store) -> Frames:
    """Return the images of the first evaluated set of a run: of its base and its trained models."""
    for evaluation, result in results(store).items():
        generator = result.get("settings", {}).get("generator")
        for set_name, models in result.get("sets", {}).items():
            folder = store.eval(evaluation) / set_name
            wanted = ["base", *[model for model in models if not is_variant(model)][:MODELS]]
            stores = {model: Store(folder / model) for model in wanted if (folder / model / "run.json").exists()}
            if len(stores) > 1:
                frames = {model: index(part, generator, SEEDS) for model, part in stores.items()}
                requests = evaluated(result, folder)
                return {
                    f"{name}: {model}": (stores[model], frame[frame.request_id.isin(requests)])
                    for model, frame in frames.items()
                }
    return {}


def _images(
    store: Store, frame: pd.DataFrame, chosen: list[str], shared: set[Any]
) -> dict[tuple[str, int], str | None]:
    """Return {(request, seed): data URI}."""
    members = frame[frame.request_id.isin(chosen)]
    found = thumbnails(store, members.id, SIDE)
    pairs = zip(members.request_id, members.seed, members.id)
    return {(request, seed): found.get(key) for request, seed, key in pairs if (request, seed) in shared}


def _without_repeats(
    images: dict[str, dict[tuple[str, int], str | None]],
) -> dict[str, dict[tuple[str, int], str | None]]:
    """Drop the rows of bases whose images equal those of an earlier base."""
    kept: dict[str, dict[tuple[str, int], str | None]] = {}
    for label, found in images.items():
        if not (label.endswith(": base") and found in kept.values()):
            kept[label] = found
    bases = [label for label in kept if label.endswith(": base")]
    return {("base" if bases == [label] else label): found for label, found in kept.items()}


def _card(prompt: str, request: str, rows: dict[str, dict[tuple[str, int], str | None]]) -> str:
    parts = []
    for label, found in rows.items():
        seeds = sorted(seed for key, seed in found if key == request)
        cells = "".join(html.picture(found[request, seed], f"{label}, seed {seed}: {prompt}") for seed in seeds)
        parts.append(f'<div class="row"><b>{html.text(label, 60)}</b><div class="seeds">{cells}</div></div>')
    return f'<div class="card">{html.prompt(prompt)}{"".join(parts)}</div>'
