"""Fit SciScore in the small world, with and without its explicit term, and measure both.

    python pipelines/science/clip_base.py --out WORK/clip
    python pipelines/science/sciscore.py WORK --seed N [--laws rust,melting] [--steps 320]
    python pipelines/science/sciscore.py WORK --table                  # tables of all finished seeds

WORK/sciscore/tuples has the tuples of all laws as a run (`prefkit import`), and WORK/sciscore/N the fits `explicit` and `plain` of a
seed: `prefkit fit clip_preference` from WORK/clip, with an explicit weight of .25 and of 0. Test are all held-out splits;
a tenth of the training prompts chooses the step. The tables have the accuracy of I+ over I- given the implicit prompt, by split (each
pair of pictures counts once; in brackets the seeds), and by law. `contradicts`: the right look is not the subject's usual one. Chance
is .5. An interrupted command continues.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from laws import LAWS
from tuples import HELD_OUT, named, write

from prefkit import Run
from prefkit.errors import PrefkitError, UsageError
from prefkit.fit.run import run_fit
from prefkit.hub.importing.run import run_import
from prefkit.store import Store

KINDS = {"explicit": 0.25, "plain": 0.0}  # fit -> weight of the explicit term
NAME = "science_t2i"
SETTINGS = {
    "learning_rate": 5e-4,
    "weight_decay": 0.01,
    "batch_size": 32,
    "warmup": 20,
    "validate_every": 40,
    "patience": 99,
}


def imported(folder: Path, laws: Sequence[str], seed: int) -> Store:
    """Return the run FOLDER/run with the tuples and pictures of the laws, and their verdicts as pairs."""
    if not (folder / "world").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / "world", laws, images=True, seed=seed)
    store = Store(folder / "run")
    if not (folder / "run" / "pairs" / NAME).exists():
        run_import(store, str(folder / "world" / "tuples.jsonl"), layout=NAME, pairs=True)
    return Store(folder / "run")


def fitted(work: Path, seed: int, kind: str, laws: Sequence[str] = tuple(LAWS), steps: int = 320) -> Path:
    """Fit a scorer unless it exists. Returns its folder, an open_clip model. Raises UsageError without WORK/clip."""
    if not (work / "clip" / "open_clip_config.json").is_file():
        raise UsageError(f"{work / 'clip'} is not a CLIP model. Train it: clip_base.py --out {work / 'clip'}")
    store = imported(work / "sciscore" / "tuples", laws, 0)
    out = work / "sciscore" / str(seed) / kind
    values = SETTINGS | {"explicit_weight": KINDS[kind], "steps": steps, "seed": seed, "out": str(out)}
    values |= {"run": str(store.folder), "votes": NAME, "test_splits": list(HELD_OUT), "by": "law", "device": "cpu"}
    run_fit("clip_preference", values | {"library": "open_clip", "model": f"local-dir:{work / 'clip'}"})
    return out


def accuracies(work: Path, seed: int) -> pd.DataFrame:
    """Return a line per held-out pair of pictures: law, split, category, and 1, .5 or 0 by `base`, `plain` and `explicit`."""
    folder = work / "sciscore"
    models = {"base": work / "clip"} | {kind: folder / str(seed) / kind for kind in KINDS}
    names = {kind: kind if kind == "base" else f"{kind}_{seed}" for kind in models}
    score = {names[kind]: {"use": "clip", "model": f"local-dir:{path}"} for kind, path in models.items()}
    run = Run(str(folder / "tuples" / "run"), score=score)
    run.score(list(score))
    values = run.scores().set_index("id")
    pairs = run.store.comparisons(NAME).frame(["id_a", "id_b"])
    requests = run.requests().set_index("request_id")
    request = run.candidates().set_index("id")["request_id"].reindex(pairs["id_a"]).to_numpy()
    extra = pd.DataFrame(requests["extra"].reindex(request).tolist())
    table = extra[["law", "category"]].assign(split=requests["split"].reindex(request).to_numpy())
    for kind, name in names.items():
        gap = values[name].reindex(pairs["id_a"]).to_numpy() - values[name].reindex(pairs["id_b"]).to_numpy()
        table[kind] = (gap > 0) + 0.5 * (gap == 0)
    return table[table["split"] != "train"]


def controls(work: Path, seed: int) -> pd.DataFrame:
    """Return the fit's accuracies and controls of a seed, one line for each fit and split, and each fit and law."""
    lines = []
    for kind in KINDS:
        spec = json.loads((work / "sciscore" / str(seed) / kind / "spec.json").read_text(encoding="utf-8"))
        for column, groups in spec["by"].items():
            for group, measures in groups.items():
                values = {name: value["mean"] for name, value in measures.items() if isinstance(value, dict)}
                lines.append({"fit": kind, "column": column, "group": group, **values})
    return pd.DataFrame(lines)


def of_seed(work: Path, seed: int, laws: Sequence[str], steps: int) -> None:
    """Fit and measure a seed; write WORK/sciscore-N.csv and WORK/sciscore-N-controls.csv."""
    for kind in KINDS:
        fitted(work, seed, kind, laws, steps)
    controls(work, seed).to_csv(work / f"sciscore-{seed}-controls.csv", index=False)
    accuracies(work, seed).to_csv(work / f"sciscore-{seed}.csv", index=False)


def table(work: Path) -> str:
    """Return the tables of all finished seeds: by split, and by law on held-out subjects. Raises UsageError without one."""
    files = sorted(path for path in work.glob("sciscore-*.csv") if path.stem[9:].isdigit())
    if not files:
        raise UsageError(f"{work} has no results. Run a seed first: sciscore.py {work} --seed 0")
    rows = pd.concat([pd.read_csv(path).assign(seed=int(path.stem[9:])) for path in files])
    others = pd.concat([pd.read_csv(work / f"{path.stem}-controls.csv") for path in files])
    kinds = ["base", "plain", "explicit"]
    by_split, seeds = rows.groupby("split")[kinds].mean(), rows.groupby(["split", "seed"])[kinds].mean()
    lines = [
        "| split | base CLIP | without the explicit term | with it | bag of words | bare prompt | explicit prompt |"
    ]
    lines.append("|---" * 7 + "|")
    for split in HELD_OUT:
        own = by_split.loc[split]
        known = others[(others["group"] == split) & (others["fit"] == "explicit")].mean(numeric_only=True)
        cells = [f"{own['base']:.2f}"]
        cells += [f"{own[k]:.2f} ({', '.join(f'{v:.2f}' for v in seeds.loc[split][k])})" for k in kinds[1:]]
        cells += [f"{known[name]:.2f}" for name in ("bag_of_words", "bare", "explicit")]
        lines.append(f"| {split} | {' | '.join(cells)} |")
    held = rows[rows["split"] == "subject"]
    lines += [
        "",
        "| law, held-out subjects | pairs | base CLIP: contradicts / usual | without: contradicts / usual | with: contradicts / usual |",
    ]
    lines.append("|---" * 5 + "|")
    for law, part in held.groupby("law", sort=False):
        lines.append(f"| {law} | {len(part) // len(files)} | {' | '.join(_two(part, kind) for kind in kinds)} |")
    lines.append(f"| mean of laws | | {' | '.join(_two(held, kind) for kind in kinds)} |")
    return "\n".join(lines)


def _two(part: pd.DataFrame, kind: str) -> str:
    means = part.groupby(["category", "law"])[kind].mean().groupby("category").mean()
    return " / ".join(f"{means[name]:.2f}" if name in means else "-" for name in ("contradicts", "usual"))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--laws", default=",".join(LAWS), help="separated by commas; default: all")
    parser.add_argument("--steps", type=int, default=320)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args(arguments)
    work: Any = args.work.resolve()
    try:
        if not args.table:
            of_seed(work, args.seed, named(args.laws), args.steps)
        print(table(work))
    except PrefkitError as error:
        raise SystemExit(f"Error: {error}") from error


if __name__ == "__main__":
    main()
