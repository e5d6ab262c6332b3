"""Results of the study: a line for each picture of a held-out subject, and the tables over seeds.

Columns of a picture: row, request, index, law, category (the law `contradicts` the usual look, or the `usual` look is right), obeys and
recognized (the reader), reward (SciScore, which the trainings optimise), diversity (mean distance in pixels between the
pictures of a request, the same for all of them).

The seeds share the requests, the base generator and its captions; they differ in SciScore's fit, the pictures of SFT, and all trainings
and noise. So an interval, 95 %, is a bootstrap over requests, of the mean over seeds. The relative improvement is

    RI = (row - base) / (base with explicit prompts - base)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from prefkit.errors import UsageError
from prefkit.evaluate.distances import images
from prefkit.evaluate.tiers import MODELS, relative_improvement
from prefkit.score.diversity import diversity, thumbnail
from prefkit.store import Store

SAMPLES = 2000
SCORES = ("obeys", "recognized", "reward")
BASE, EXPLICIT, BEST = "base", "base, explicit prompts", "base, best of 4 by SciScore"
#: training or tier -> row of the tables
NAMES = {
    "base": BASE,
    MODELS["superficial"]: "base, superficial prompts",
    MODELS["explicit"]: EXPLICIT,
    "sft": "SFT",
    "oft": "SFT, then OFT",
    "oft_alone": "OFT without SFT",
    "oft_no_mask": "SFT, then OFT without mask",
    "dpo": "SFT, then Diffusion-DPO",
    "ddpo": "SFT, then DDPO",
}


def pictures(store: Store, trained: Sequence[str]) -> pd.DataFrame:
    """Return the table of pictures of the evaluation `held_out`."""
    folder = store.eval("held_out") / "subject"
    requests = pd.DataFrame(
        [
            {"request": r.request_id, **{k: r.extra[k] for k in ("law", "category")}}
            for r in Store(folder / "base").requests()
        ]
    )
    tables = {NAMES[name]: scored(Store(folder / name)) for name in ("base", *MODELS.values(), *trained)}
    seeds = min(int(table["index"].max()) + 1 for table in tables.values())
    whole = tables[BASE]
    best = whole.loc[whole.groupby("request")["reward"].idxmax()]
    tables = {name: table[table["index"] < seeds] for name, table in tables.items()}
    folders = {NAMES[name]: folder / name for name in ("base", *MODELS.values(), *trained)}
    tables = {name: with_diversity(table, folders[name], seeds) for name, table in tables.items()}
    both = pd.concat([table.assign(row=name) for name, table in (*tables.items(), (BEST, best))], ignore_index=True)
    return both.merge(requests, on="request", validate="many_to_one")


def scored(store: Store) -> pd.DataFrame:
    """Return request, index and scores of a model's pictures."""
    table = store.candidates("own").frame(["id", "request_id", "index"]).rename(columns={"request_id": "request"})
    for score in SCORES:
        values = store.scores(score).frame(["id", "value"]).rename(columns={"value": score})
        table = table.merge(values, on="id", how="left", validate="one_to_one")
    return table.drop(columns="id").sort_values(["request", "index"], ignore_index=True)


def with_diversity(table: pd.DataFrame, folder: Path, seeds: int) -> pd.DataFrame:
    """Return the table with the column `diversity`."""
    groups: dict[str, list[np.ndarray]] = {}
    for (request, _), image in images(Store(folder), "own", set(table["request"]), seeds):
        groups.setdefault(request, []).append(thumbnail(image) / 255.0)
    values = {request: diversity(np.stack(group)) for request, group in groups.items()}
    return table.assign(diversity=table["request"].map(values))


def of_validation(store: Store) -> str:
    """Return the scores of all models on the split `pair`; `obeys` also where the law contradicts the usual look."""
    parts, lines = store.eval("validation") / "pair", []
    against = {r.request_id for r in Store(parts / "base").requests() if r.extra["category"] == "contradicts"}
    for folder in sorted(path for path in parts.iterdir() if path.is_dir()):
        table = scored(Store(folder))
        part = table[table["request"].isin(against)]["obeys"].mean()
        lines.append([folder.name, *(f"{table[score].mean():.3f}" for score in SCORES), f"{part:.3f}"])
    return table_of(["model, split pair", *SCORES, "obeys, contradicts"], lines)


def save(table: pd.DataFrame, path: Path) -> None:
    """Write a CSV file in one step."""
    partial = path.with_suffix(".partial")
    table.to_csv(partial, index=False, float_format="%.6g")
    partial.rename(path)


def written(work: Path, fast: bool = False) -> str:
    """Write WORK/results.md, the tables of all finished seeds, and return it. Raises UsageError without one."""
    files = sorted(path for path in work.glob("seed-*.csv") if path.stem[5:].isdigit())
    if not files:
        raise UsageError(f"{work} has no results. Run a seed first: study.py {work} --seed 0")
    rows = pd.concat([pd.read_csv(path).assign(seed=int(path.stem[5:])) for path in files])
    seeds = ", ".join(path.stem[5:] for path in files)
    parts = [
        "Made with --fast: the numbers mean nothing." if fast else f"Seeds {seeds}.",
        "### Held-out subjects\n\n" + main_table(rows),
        "### Second stages against SFT: change of `obeys`\n\n" + against_sft(rows),
        "### By law: pictures that obey, and RI by the reader\n\n" + by_law(rows),
        "### By seed: pictures that obey\n\n" + by_seed(rows),
    ]
    text = "\n\n".join(parts) + "\n"
    (work / "results.md").write_text(text, encoding="utf-8")
    return text


def per_request(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return [request, row]: means of a column over seeds of means over pictures."""
    means = rows.groupby(["row", "request", "seed"])[column].mean().groupby(["request", "row"]).mean()
    return means.unstack("row")


def order(rows: pd.DataFrame) -> list[str]:
    found = set(rows["row"])
    return [name for name in (*NAMES.values(), BEST) if name in found]


def main_table(rows: pd.DataFrame) -> str:
    """Return the main table: what obeys, in all and where the law contradicts, RI by reader and reward, and the rest."""
    values = {column: per_request(rows, column) for column in (*SCORES, "diversity")}
    against = per_request(rows[rows["category"] == "contradicts"], "obeys")
    usual = per_request(rows[rows["category"] == "usual"], "obeys")
    lines = []
    for row in order(rows):
        cells = [f"{values['obeys'][row].mean():.3f}{change(values['obeys'], row)}"]
        cells += [f"{table[row].mean():.3f}{change(table, row)}" for table in (against, usual)]
        cells += [ri(table, row) for table in (values["obeys"], against, values["reward"])]
        cells += [f"{values['reward'][row].mean():.2f}", f"{values['recognized'][row].mean():.3f}"]
        cells.append("" if values["diversity"][row].isna().all() else f"{values['diversity'][row].mean():.3f}")
        lines.append([row, *cells])
    heads = ["row", "obeys", "obeys, contradicts", "obeys, usual", "RI, reader", "RI, contradicts", "RI, SciScore"]
    return table_of([*heads, "SciScore", "recognized", "diversity"], lines)


def change(table: pd.DataFrame, row: str, start: str = BASE) -> str:
    """Return the change against another row with its interval, in bold if the interval excludes 0; empty for that row."""
    if row == start:
        return ""
    gain = (table[row] - table[start]).dropna().to_numpy()
    drawn = np.random.default_rng(0).integers(len(gain), size=(SAMPLES, len(gain)))
    low, high = np.percentile(gain[drawn].mean(1), [2.5, 97.5])
    text = f"{gain.mean():+.3f} [{low:+.3f}, {high:+.3f}]"
    return f", **{text}**" if low > 0 or high < 0 else f", {text}"


def ri(table: pd.DataFrame, row: str) -> str:
    """Return the relative improvement with its interval; empty for the base and for its explicit prompts."""
    if row in (BASE, EXPLICIT):
        return ""
    found = relative_improvement(*(table[name].to_numpy(float) for name in (BASE, row, EXPLICIT)), samples=SAMPLES)
    if found["value"] is None:
        return "-"
    interval = "" if found["low"] is None else f" [{found['low']:.2f}, {found['high']:.2f}]"
    return f"{found['value']:.2f}{interval}"


def against_sft(rows: pd.DataFrame) -> str:
    """Return the changes of second stages against SFT, in all, where the law contradicts the usual look, and where not."""
    groups = [rows, *(rows[rows["category"] == name] for name in ("contradicts", "usual"))]
    tables = [per_request(part, "obeys") for part in groups]
    lines = [
        [row, *(change(table, row, NAMES["sft"]).lstrip(", ") for table in tables)]
        for row in order(rows)
        if row.startswith("SFT, then")
    ]
    return table_of(["row", "all", "contradicts", "usual"], lines)


def by_law(rows: pd.DataFrame) -> str:
    lines = []
    laws = list(dict.fromkeys(rows["law"]))
    for row in order(rows):
        tables = [per_request(rows[rows["law"] == law], "obeys") for law in laws]
        values = [f"{table[row].mean():.2f}" + (f", RI {text}" if (text := ri(table, row)) else "") for table in tables]
        lines.append([row, *values])
    return table_of(["row", *laws], lines)


def by_seed(rows: pd.DataFrame) -> str:
    means = rows.groupby(["row", "seed"])["obeys"].mean().unstack("seed")
    lines = [[row, *(f"{value:.3f}" for value in means.loc[row])] for row in order(rows)]
    return table_of(["row", *(f"seed {seed}" for seed in means)], lines)


def table_of(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(heads), *lines])
