"""Reward as a function of reward queries: several methods from one start, several seeds.

    OMP_NUM_THREADS=1 python pipelines/online/curve.py RUN [--seeds 3] [--rounds 2 4 8] [--methods nft ...]
    OMP_NUM_THREADS=1 python pipelines/online/curve.py RUN --recipe pipelines/online/scored.yaml --work WORK --rounds 3 6

The methods and their settings are the entries `train` of curve.yaml (DDPO-SF, DDPO-IS, online DPO; also offline DPO) or
of --recipe, in whose paths --work replaces WORK. RUN/seed-S is a run; it stores a model for each method and number of queries (such as
`is-256`), and all models generate images for the same held-out requests with the same seeds. Offline DPO at n queries
uses candidates from the start (the model before training) for n / 8 requests, and as many updates, the batch size and
the settings of online DPO at n queries. Existing results are reused, so the same command continues after a stop.
RUN/curve.csv has a row per seed, method and number of queries. RUN/curve.md has the table over all seeds; its 95 %
bootstrap intervals resample the requests, after averaging each request over the seeds.

wins: fraction of the held-out image pairs in which the judge prefers the tuned model. palette: the judge, a program
that is not part of the reward; it measures the fraction of images in the user's colours. fidelity: prompt fulfilment.
taste: the reward. backgrounds: how often two images for a request that names no background differ in background, as a
fraction of the start. diversity: mean distance between a request's images, as a fraction of the start; it falls
whenever a preference for colours is learned. cpu_seconds: processor time of an online training up to this number of
queries, with loading, without interrupted attempts.
"""

from __future__ import annotations

import argparse
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import prefkit
from prefkit.config import Recipe, Requests, reader
from prefkit.evaluate.compare import compare
from prefkit.evaluate.run import values
from prefkit.generate.requests import read_requests
from prefkit.store import Store

METHODS = {"sf": "DDPO-SF", "is": "DDPO-IS", "grpo": "Flow-GRPO", "nft": "DiffusionNFT", "dgpo": "DGPO", "gpo": "GPO"}
METHODS |= {"pairs": "online DPO", "offline": "offline DPO"}
RECIPE = Path(__file__).with_suffix(".yaml")
SCORERS = ("palette", "fidelity", "taste")
SET, GENERATOR, GROUP = "held_out", "own", 8
SECONDS = "cpu_seconds.txt"


def shuffled(source: Requests, seed: int, path: Path) -> None:
    """Write the requests of a source to a CSV table in a random order; offline DPO uses the first ones."""
    found = read_requests(source)
    order = np.random.default_rng(seed).permutation(len(found))
    rows = [{"prompt": (r := found[i]).prompt, "split": r.split, "request_id": r.request_id, **r.extra} for i in order]
    pd.DataFrame(rows).to_csv(path, index=False)


def recipe_of(folder: Path, seed: int, path: Path = RECIPE, work: str = "WORK") -> Recipe:
    """Return the recipe at `path` for one seed, with `folder` as its run and `work` for WORK in its paths."""
    found = reader.read(path)
    base, source = (text.replace("WORK", work) for text in (found.model.base, found.requests.source))
    found = replace(found, model=replace(found.model, base=base), requests=replace(found.requests, source=source))
    table = folder / "requests.csv"
    if not table.exists():
        folder.mkdir(parents=True, exist_ok=True)
        shuffled(found.requests, seed, table)
    return replace(
        found,
        run=str(folder),
        requests=Requests(source=str(table), split_column="split"),
        generate={GENERATOR: replace(found.generate[GENERATOR], seed=seed)},
        train={name: replace(config, seed=seed) for name, config in found.train.items()},
    )


def online(recipe: Recipe, name: str, rounds: int, queries: int) -> None:
    """Continue the training up to this number of rounds, and store the model as NAME-QUERIES."""
    begun = time.process_time()
    folder = Path(recipe.run) / "train"
    config = recipe.train[name]
    shorter = replace(config, online=replace(config.online, rounds=rounds, keep_rounds=1))
    prefkit.Run(recipe=replace(recipe, train={name: shorter})).train([name])
    kept = folder / f"{name}-{queries}"
    used = folder / name / SECONDS
    before = float(used.read_text(encoding="utf-8")) if used.exists() else 0.0
    used.write_text(f"{before + time.process_time() - begun:.1f}\n", encoding="utf-8")
    leave = shutil.ignore_patterns("checkpoints", "rounds", "watch")
    shutil.copytree(folder / name, kept.with_suffix(".part"), ignore=leave, dirs_exist_ok=True)
    kept.with_suffix(".part").rename(kept)


def offline(recipe: Recipe, rounds: int, queries: int) -> None:
    """Train DPO on `queries` candidates from the start, with as many updates as online DPO makes in `rounds`."""
    name, chosen = f"offline-{queries}", queries // GROUP
    template = recipe.train["pairs"]
    config = replace(template, pairs=name, online=None, steps=rounds * template.online.updates, validation=0)
    run = prefkit.Run(recipe=replace(recipe, pair={name: recipe.pair["widest"]}, train={name: config}))
    run.generate(limit=chosen)
    run.score(["taste"])
    run.pair(limit=chosen)
    run.train([name])


def train(recipe: Recipe, marks: list[int], methods: list[str]) -> list[str]:
    """Train the methods up to each number of rounds in `marks`, unless the model exists, and return the model names."""
    models = []
    for name in methods or [*recipe.train, *(["offline"] if "sf" in recipe.train else [])]:
        for rounds in marks:
            queries = rounds * GROUP * GROUP
            models.append(f"{name}-{queries}")
            if not (Path(recipe.run) / "train" / models[-1] / "final").exists():
                if name == "offline":
                    offline(recipe, rounds, queries)
                else:
                    online(recipe, name, rounds, queries)
    return models


def evaluate(recipe: Recipe, models: list[str]) -> dict[str, Any]:
    """Return the judges' result on the held-out requests; results of models that were evaluated before are reused."""
    cfg = replace(recipe.eval["held_out"], models=models)
    run = prefkit.Run(recipe=replace(recipe, eval={"curve": cfg}))
    return run.eval()["curve"]["sets"][SET]


def rows_of(seed: int, result: dict[str, Any], trainings: Path) -> list[dict[str, Any]]:
    """Return a row per model for the result of one seed. trainings: the folder with the models."""
    found = []
    for model, scorers in result.items():
        method, queries = model.rsplit("-", 1)
        row: dict[str, Any] = {"method": METHODS[method], "queries": int(queries), "seed": seed}
        for name in SCORERS:
            keys = ("base", "tuned", "win_rate", "ci_low", "ci_high")
            row |= {f"{name}_{key}": round(scorers[name][key], 4) for key in keys}
        open_ = scorers["fidelity"]["aspects"].get("which_background", {})
        if open_.get("differ_base"):  # no request may leave the background open
            row["backgrounds"] = round(open_["differ_tuned"] / open_["differ_base"], 3)
        row["diversity"] = round(scorers["palette"]["diversity_tuned"] / scorers["palette"]["diversity_base"], 3)
        used = trainings / model / SECONDS
        row["cpu_seconds"] = float(used.read_text(encoding="utf-8")) if used.exists() else np.nan
        found.append(row)
    return found


def pooled(root: Path, seeds: int, model: str, scorer: str) -> dict[str, Any]:
    """Return the result of `compare` over all seeds; a request's images from different seeds count separately."""
    frames: dict[str, list[pd.DataFrame]] = {"base": [], model: []}
    for seed in range(seeds):
        run = Store(root / f"seed-{seed}")
        wanted = {r.request_id for r in run.requests() if r.split == "test"}
        for name, parts in frames.items():
            frame = values(Store(run.eval("curve") / SET / name), GENERATOR, scorer, wanted)
            parts.append(frame.assign(index=frame["index"] + 1000 * seed))
    base, tuned = (pd.concat(parts) for parts in frames.values())
    return compare(base, tuned)


def table(root: Path, seeds: int, rows: pd.DataFrame) -> str:
    """Return a Markdown table with a line per method and number of queries."""
    asked = "backgrounds" in rows  # some requests leave the background open
    titles = ["", "queries", "taste, the reward", "palette", "wins by palette [95 %]", "single seeds", "fidelity"]
    titles += ["backgrounds"] * asked + ["diversity", "CPU seconds"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    start: dict[str, float] = {}
    body = []
    for (method, queries), own in rows.groupby(["method", "queries"], sort=False):
        name = next(key for key, words in METHODS.items() if words == method)
        found = {scorer: pooled(root, seeds, f"{name}-{queries}", scorer) for scorer in SCORERS}
        start |= {scorer: found[scorer]["base"] for scorer in SCORERS}
        judge = found["palette"]
        wins = f"{judge['win_rate']:.3f} [{judge['ci_low']:.3f}, {judge['ci_high']:.3f}]"
        single = ", ".join(f"{value:.2f}" for value in own.palette_win_rate)
        cells = [f"{found['taste']['tuned']:.3f}", f"{judge['tuned']:.2f}", wins, single]
        cells += [f"{found['fidelity']['tuned']:.3f}", *([f"{own.backgrounds.mean():.2f}"] if asked else [])]
        cells += [f"{own.diversity.mean():.2f}", f"{own.cpu_seconds.mean():.0f}"]
        body.append("| " + " | ".join([str(method), str(queries), *cells]) + " |")
    if start:
        shown = [f"{start['taste']:.3f}", f"{start['palette']:.2f}", "", "", f"{start['fidelity']:.3f}"]
        shown += ["1"] * asked + ["1", "0"]
        lines.append("| " + " | ".join(["the start", "0", *shown]) + " |")
    return "\n".join(lines + body) + "\n"


def write(root: Path, seeds: int, rows: list[dict[str, Any]]) -> None:
    frame = pd.DataFrame(rows)
    order = {shown: place for place, shown in enumerate(METHODS.values())}
    frame = frame.sort_values(["method", "queries", "seed"], key=lambda c: c.map(order) if c.name == "method" else c)
    frame.to_csv(root / "curve.csv", index=False)
    (root / "curve.md").write_text(table(root, seeds, frame), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=[])
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--work", default="WORK")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        recipe = recipe_of(args.run / f"seed-{seed}", seed, args.recipe, args.work)
        models = train(recipe, sorted(args.rounds), args.methods)
        rows += rows_of(seed, evaluate(recipe, models), Path(recipe.run) / "train")
        write(args.run, seed + 1, rows)
    print((args.run / "curve.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
