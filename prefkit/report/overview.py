"""The header of the report, and its sections on tables, scores and failures."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from prefkit.report import html, plot
from prefkit.report.grids import CONTROL_SUFFIXES
from prefkit.store import Store
from prefkit.store.files import read_json
from prefkit.store.summary import higher_is_better, rank_correlation

if TYPE_CHECKING:
    from prefkit.config import Recipe

SECRET_KEY = re.compile("(?i)token|secret|password|api[_-]?key")
SECRET = re.compile(rf"(?im)^(\s*[\w-]*(?:{SECRET_KEY.pattern[4:]})[\w-]*\s*:).+$")
#: generator settings that are shown
SHOWN = ("use", "steps", "guidance", "scheduler", "height", "width", "dtype", "seed")
#: maximum number of failure reasons shown per table
REASONS = 10


def header(store: Store, state: dict[str, Any], anchors: dict[str, str]) -> str:
    """Return the header of the page: title, counts and links to the sections."""
    tiles = {
        "requests": sum(state["requests"].values()),
        "candidates": sum(c["done"] for c in state["candidates"].values()),
        "samples of online training": online_samples(store),
        "scorers": len({name.rpartition("/")[2] for name in state["scores"]}),  # with rounds: "round 2/NAME"
        "pairs": sum(sum(splits.values()) for splits in state["pairs"].values()),
        "trained models": sum(bool(t["final"]) for t in state["train"].values()),
        "failures": sum(c["failed"] for kind in ("candidates", "scores") for c in state[kind].values()),
    }
    if tiles["samples of online training"]:  # it makes and scores its own candidates, and no pairs
        names = [name for name in ("candidates", "scorers", "pairs") if not tiles[name]]
    else:
        names = ["samples of online training"]
    tiles = {name: n for name, n in tiles.items() if name not in names}
    counts = "".join(f'<div class="tile"><b>{n:,}</b><span>{name}</span></div>' for name, n in tiles.items())
    links = "".join(f'<a href="#{anchor}">{title}</a>' for anchor, title in anchors.items())
    title = html.text(store.folder.resolve().name, 80)
    return f'<header><h1>{title}</h1><div class="tiles">{counts}</div><nav aria-label="Sections">{links}</nav></header>'


def online_samples(store: Store) -> int:
    """Return the number of samples that the finished online trainings of a run drew."""
    paths = [store.train(name) / "result.json" for name in store.names("train")]
    return sum(int(read_json(path).get("queries") or 0) for path in paths if path.exists())


def use(store: Store, recipe: Recipe | None) -> str:
    """Return the lines that load each trained diffusion model in diffusers, or ""."""
    base = recipe.model.base if recipe is not None else ""
    if (
        recipe is None or not base or base.endswith((".safetensors", ".ckpt"))
    ):  # a single file needs its pipeline's class
        return ""
    lines: list[str] = []
    for name in store.names("train"):
        final = store.train(name) / "final"
        if name.endswith(CONTROL_SUFFIXES):
            continue
        if (final / "pytorch_lora_weights.safetensors").exists():
            lines.append(f'pipe.load_lora_weights("{final}")  # {name}')
        elif (final / "model_index.json").exists():
            lines.append(f'pipe = DiffusionPipeline.from_pretrained("{final}")  # {name}')
    if not lines:
        return ""
    lines[1:] = [f"# {line}" for line in lines[1:]]  # one adapter at a time
    start = "from diffusers import DiffusionPipeline\n"
    if base == "tiny":
        start += "from prefkit import tiny\n"
    source = "tiny.PIPELINE" if base == "tiny" else f'"{base}"'
    source += f', revision="{recipe.model.revision}"' if recipe.model.revision else ""
    code = html.text(f"{start}\npipe = DiffusionPipeline.from_pretrained({source})\n" + "\n".join(lines), 4000)
    return f"<details><summary>Load the trained model in diffusers</summary><pre>{code}</pre></details>"


def what_was_run(store: Store, state: dict[str, Any], recipe: Recipe | None) -> str:
    """Return the section with row counts per table, generator settings, recipe and packages."""
    if not store.exists():
        return html.section("run", "What was run", html.missing("This is not a run folder: it has no run.json."))
    rows = [["requests", html.text(split, 60), html.value(n), "–"] for split, n in state["requests"].items()]
    for kind in ("candidates", "scores"):
        for name, count in state[kind].items():
            failed = html.value(count["failed"])
            failed = f'<span class="warn">{failed}</span>' if count["failed"] else failed
            rows.append([kind, html.text(name, 60), html.value(count["done"]), failed])
    for name, splits in state["pairs"].items():
        for split, n in splits.items():
            rows.append(["pairs", f"{html.text(name, 60)}, {html.text(split, 40)}", html.value(n), "–"])
    for verdict, n in state["decisions"].items():
        rows.append(["decisions", html.text(verdict), html.value(n), "–"])
    head = ["Table", "Name", "Rows", "Failed"]
    left = html.table(head, rows, left=2) if rows else html.missing("No table has a row yet.")
    right = f"{_generators(store)}{_recipe(store, recipe)}{_packages(store)}"
    return html.section("run", "What was run", f'<div class="side"><div>{left}</div><div>{right}</div></div>')


def _generators(store: Store) -> str:
    rows = []
    for name in store.names("candidates"):
        spec = store.candidates(name).spec() or {}
        flat = {k: v for part in [spec, *(v for v in spec.values() if isinstance(v, dict))] for k, v in part.items()}
        rows.append([html.text(name, 60), *(html.value(flat.get(key)) for key in SHOWN)])
    return html.table(["Generator", *SHOWN], rows, caption="Settings; a dash means the default") if rows else ""


def _recipe(store: Store, recipe: Recipe | None) -> str:
    path = store.folder / "recipe.yaml"
    if path.exists():
        body = path.read_text(encoding="utf-8")
    elif recipe is not None:
        import yaml

        from prefkit.config import plain

        body = yaml.safe_dump(plain(recipe), sort_keys=False, allow_unicode=True)
    else:
        return html.missing("The run has no recipe.yaml.")
    shown = html.text(SECRET.sub(r"\1 (hidden)", body), 40_000)
    return f"<details><summary>Resolved recipe</summary><pre>{shown}</pre></details>"


def _packages(store: Store) -> str:
    packages = read_json(store.folder / "run.json").get("packages", {})
    line = ", ".join(f"{html.text(name)} {html.text(version)}" for name, version in packages.items())
    return f'<p class="quiet">Made with {line}.</p>' if line else ""


def scores(store: Store, table: pd.DataFrame, state: dict[str, Any]) -> str:
    """Return the section with a histogram per scorer and the scorers' rank correlation."""
    if not len(table.columns):
        return html.section("scores", "Scores", html.missing("Nothing has been scored yet."))
    figures = []
    for alias in table.columns:
        values = table[alias].to_numpy(np.float64)
        values = values[np.isfinite(values)]
        failed = state["scores"][alias]["failed"]
        if not len(values):
            figures.append(html.missing(f"<b>{html.text(alias)}</b>: all {failed:,} scores failed; see Failures."))
            continue
        spec = store.scores(alias).spec() or {}
        direction = "higher is better" if higher_is_better(store, alias) else "lower is better"
        note = f", {failed:,} failed" if failed else ""
        only = ", for evaluation only" if spec.get("evaluation_only") else ""
        with np.errstate(over="ignore", invalid="ignore"):  # an overflow is shown as a dash
            mean, std = html.number(float(values.mean())), html.number(float(values.std()))
        caption = f"<b>{html.text(alias)}</b>: {len(values):,} scores{note}; mean {mean}, std {std}; {direction}{only}"
        figures.append(html.figure(plot.histogram(values, alias), caption))
    body = f'<div class="plots">{"".join(figures)}</div>'
    if len(table.columns) > 1:
        correlation = rank_correlation(store, table)
        note = "Spearman, over all candidates that both scorers scored; scores are negated if lower is better."
        matrix = plot.matrix([str(name) for name in correlation.columns], correlation.to_numpy().tolist())
        body += f'<h3>Rank correlation of the scorers</h3><p class="quiet">{note}</p>{matrix}'
    lead = "Distribution of each score over the candidates. The dashed line is the median."
    return html.section("scores", "Scores", body, lead)


def failures(store: Store, candidates: pd.DataFrame) -> str:
    """Return the section with the reasons for failures, each with its count and an example id."""
    rows = []
    for generator, group in candidates[candidates.error.notna()].groupby("generator"):
        rows += _reasons(f"candidates / {generator}", group)
    for alias in store.names("scores"):
        frame = store.scores(alias).frame(["id", "value", "error"])
        failed = frame[frame.value.isna()]
        rows += _reasons(f"scores / {alias}", failed.assign(error=failed.error.fillna("no reason was stored")))
    head = ["Where", "Reason", "For example", "Items"]
    body = html.table(head, rows, left=3) if rows else html.missing("Nothing failed.")
    lead = "Failed items are left out of every number above; they never count as 0."
    return html.section("failures", "Failures", body, lead)


def _reasons(where: str, frame: pd.DataFrame) -> list[list[str]]:
    groups = sorted(frame.groupby("error").id, key=lambda item: -len(item[1]))
    rows = []
    for reason, ids in groups[:REASONS]:
        example = f'<span class="id">{html.text(ids.iloc[0], 70)}</span>'
        rows.append([html.text(where, 80), html.text(reason, 300), example, html.value(len(ids))])
    rest = groups[REASONS:]
    if rest:
        total = sum(len(ids) for _, ids in rest)
        rows.append([html.text(where, 80), f"{len(rest):,} further reasons", "", html.value(total)])
    return rows
