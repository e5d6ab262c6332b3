"""One page that compares several runs: settings that differ, evaluations, images of the same seeds, and curves."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefkit.errors import UsageError
from prefkit.report import evidence, html, learning, plot, same_seeds
from prefkit.report.grids import CONTROL_SUFFIXES, evaluated
from prefkit.report.overview import SECRET_KEY
from prefkit.store import Store
from prefkit.store.files import read_json, write_atomic
from prefkit.store.summary import metrics, status

FOOTER = "Made by prefkit. Each run's own report has the details."
#: sections of a recipe whose entries have names
NAMED = ("generate", "score", "compare", "pair", "train", "eval")
#: keys that differ between any two runs, or that only describe a recipe
UNINTERESTING = ("run", "about")
#: kinds of curves that are left out: one chart per timestep bin and run would be too many
LEFT_OUT = ("by timestep",)
SETTINGS = (
    "A dash means that the run has no such setting. An entry that only some runs have is listed by its plug-in or by its "
    "objective, without its settings."
)
EVALUATIONS = (
    "Every row compares a tuned model with the base of its own run. Rows of different runs are comparable if the base, the "
    "held-out requests and the seeds are the same."
)
CURVES = "The trainings of all runs, without controls. A metric that shows nothing in any run has no chart."
HEAD = ["Judge", "Run", *evidence.HEAD[:1], *evidence.HEAD[2:]]
Runs = dict[str, Store]


def compare_runs(stores: Sequence[Store]) -> Path:
    """Write the comparison of at least two runs next to the first run's folder and return its path.

    Raises UsageError for a folder that is not a run, a run that is given twice or has rounds, or runs without a request
    in common.
    """
    runs = _labelled(stores)
    differ = _settings(runs)
    sections = [
        _overview(runs),
        html.section("settings", "Settings that differ", differ, SETTINGS),
        html.section("evaluation", "Evaluations", _evaluations(runs), EVALUATIONS),
        html.section("images", "The same seeds", same_seeds.pictures(runs), same_seeds.LEAD),
        html.section("curves", "Training", _curves(runs), CURVES),
    ]
    anchors = re.findall(r'<section id="(\w+)"><h2>(.*?)</h2>', "".join(sections))
    links = "".join(f'<a href="#{anchor}">{title}</a>' for anchor, title in anchors)
    names = ", ".join(runs)
    head = f'<header><h1>{html.text(names, 200)}</h1><nav aria-label="Sections">{links}</nav></header>'
    body = f"{head}<main>\n{''.join(sections)}</main><footer>{FOOTER}</footer>"
    first = next(iter(runs.values())).folder.resolve()
    name = re.sub(r"[^\w.]+", "-", f"compare-{'-'.join(runs)}")[:100].strip("-.")
    path = first.parent / f"{name}.html"
    write_atomic(path, html.page(f"{names} · prefkit", body, script=html.asset("report.js")))
    return path


def _labelled(stores: Sequence[Store]) -> Runs:
    """Return {shortest unique end of the folder's path: run}."""
    for store in stores:
        if not store.exists():
            raise UsageError(f"{store.folder} is not a run folder: it has no run.json.")
        store.check_single()
    paths = [store.folder.resolve() for store in stores]
    if twice := [path for i, path in enumerate(paths) if path in paths[:i]]:
        raise UsageError(f"{twice[0]} is given twice. Name at least two different runs.")
    length = next(n for n in range(1, 100) if len({path.parts[-n:] for path in paths}) == len(paths))
    runs = {"/".join(path.parts[-length:]).lstrip("/"): store for path, store in zip(paths, stores)}
    requests = {name: {request.request_id for request in store.requests()} for name, store in runs.items()}
    first = next(iter(runs))
    for name, found in requests.items():
        if not found & requests[first]:
            raise UsageError(
                f"{runs[name].folder} and {runs[first].folder} have no request in common ({len(found):,} and "
                f"{len(requests[first]):,} requests), so their results cannot be compared. Runs of the same "
                "requests.source share their requests."
            )
    return runs


def _overview(runs: Runs) -> str:
    rows = []
    for name, store in runs.items():
        state = status(store)
        link = html.text(name, 80)
        trained = ", ".join(f"{n} ({entry['step']:,} steps)" for n, entry in state["train"].items())
        made = sum(entry["done"] for entry in state["candidates"].values())
        pairs = sum(sum(splits.values()) for splits in state["pairs"].values())
        counts = [html.value(n) for n in (sum(state["requests"].values()), made, pairs)]
        rows.append([link, html.text(trained, 200) or "–", *counts])
    return html.section("runs", "Runs", html.table(["Run", "Trained", "Requests", "Candidates", "Pairs"], rows, left=2))


def _settings(runs: Runs) -> str:
    """Return the table of the recipes' settings, and of package versions, that are not the same in all runs."""
    recipes = [_recipe(store) for store in runs.values()]
    flat = [dict(_flat(recipe)) for recipe in recipes]
    entries = {f"{kind}.{name}" for recipe in recipes for kind in NAMED for name in recipe.get(kind) or {}}
    partial = {entry for entry in entries if not all(_entry(recipe, entry) for recipe in recipes)}
    keys = dict.fromkeys(key for settings in flat for key in settings)
    rows = [[entry, *(_entry(recipe, entry) or "–" for recipe in recipes)] for entry in sorted(partial)]
    for key in keys:
        values = [settings.get(key, "–") for settings in flat]
        if len(set(values)) > 1 and key not in UNINTERESTING and ".".join(key.split(".")[:2]) not in partial:
            hidden = SECRET_KEY.search(key.rpartition(".")[2])
            rows.append([key, *(["(hidden)"] * len(values) if hidden else values)])
    cells = [[html.text(cell, 300) for cell in row] for row in rows]
    if not cells:
        return html.missing("The runs have the same settings and package versions.")
    return html.table(["Setting", *(html.text(name, 60) for name in runs)], cells, left=1 + len(runs))


def _recipe(store: Store) -> dict[str, Any]:
    import yaml

    path = store.folder / "recipe.yaml"
    recipe = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {**recipe, "package": read_json(store.folder / "run.json").get("packages", {})}


def _entry(recipe: Mapping[str, Any], entry: str) -> str:
    """Return the plug-in or objective of an entry such as "score.align", "" if the recipe does not have the entry."""
    kind, _, name = entry.partition(".")
    found = (recipe.get(kind) or {}).get(name)
    if found is None:
        return ""
    return str(found.get("use") or (found.get("objective") or {}).get("use") or "yes")


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(tree, list) and tree and not any(isinstance(value, (list, Mapping)) for value in tree):
        yield prefix, ", ".join(map(str, tree))
    elif isinstance(tree, list) and any(isinstance(value, Mapping) for value in tree):
        for i, value in enumerate(tree):  # each key by itself, so that a secret one is hidden
            yield from _flat(value, f"{prefix}[{i}]")
    elif tree not in (None, {}, []):
        yield prefix, tree if isinstance(tree, str) else json.dumps(tree, ensure_ascii=False, default=str)


def _evaluations(runs: Runs) -> str:
    """Return one table per evaluation and set: the verdicts of a judge on all runs stand below each other."""
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    requests: dict[tuple[str, str], dict[str, set[str]]] = {}
    for run, store in runs.items():
        for name, result in evidence.results(store).items():
            for set_name, models in result.get("sets", {}).items():
                found.setdefault((name, set_name), {})[run] = models
                requests.setdefault((name, set_name), {})[run] = evaluated(result, store.eval(name) / set_name)
    parts = []
    for (name, set_name), per_run in found.items():
        judges = dict.fromkeys(alias for models in per_run.values() for row in models.values() for alias in row)
        rows = [
            _row(alias, run, model, scorers[alias])
            for alias in judges
            for run, models in per_run.items()
            for model, scorers in models.items()
            if alias in scorers and not model.startswith("base-")
        ]
        title = name if name == set_name else f"{name}, requests {set_name}"
        parts += [f"<h3>{html.text(title, 120)}</h3>", _overlap(requests[name, set_name])]
        parts.append(html.table(HEAD, rows, left=5) if rows else html.missing("No model was compared."))
    return "".join(parts) or html.missing("No run has been evaluated yet.")


def _row(alias: str, run: str, model: str, row: dict[str, Any]) -> list[str]:
    name, judge, tag, *numbers = evidence.cells(model, alias, row)
    kind = ' <span class="tag">control</span>' if model.endswith(CONTROL_SUFFIXES) else ""
    return [f'<span class="name">{judge}</span>', html.text(run, 60), name + kind, tag, *numbers[:-2]]


def _overlap(sets: Mapping[str, set[str]]) -> str:
    """Return a warning if the runs were not evaluated on the same requests, else "". sets: run -> ids of its requests."""
    if len(set(map(frozenset, sets.values()))) < 2:
        return ""
    counts = ", ".join(f"{html.text(run, 60)} {len(found):,}" for run, found in sets.items())
    shared = len(set.intersection(*sets.values()))
    return f'<p class="warn">The runs were evaluated on different requests ({counts}; {shared:,} in all of them).</p>'


def _curves(runs: Runs) -> str:
    found: dict[str, dict[str, learning.Curve]] = {}
    for run, store in runs.items():
        names = [name for name in store.names("train") if not name.endswith(CONTROL_SUFFIXES)]
        for name in names:
            label = run if len(names) == 1 else f"{run}: {name}"
            for key, curve in learning.series(metrics(store.train(name))).items():
                found.setdefault(key, {})[label] = curve
    figures = []
    for title, unit, zero, keys in learning.by_kind(found):
        for key in keys if not title.endswith(LEFT_OUT) else ():
            curves = {label: curve for label, curve in found[key].items() if learning.varies(*curve)}
            if curves:
                heading = title if len(keys) == 1 else key.replace("_", " ")
                legend = "".join(learning.key(label, i, len(curves)) for i, label in enumerate(curves))
                figures.append(
                    html.figure(plot.lines(curves, unit, zero=zero), f"<b>{html.text(heading, 80)}</b>{legend}")
                )
    return f'<div class="plots">{"".join(figures)}</div>' if figures else html.missing("No run has a curve to show.")
