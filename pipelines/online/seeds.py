"""Train and evaluate a recipe with several seeds, and tabulate the results on held-out requests.

    OMP_NUM_THREADS=1 python pipelines/online/seeds.py RECIPE RUN [--seeds 3] [--names TRAINING ...]

Training and generation use the same seed S, and RUN/seed-S is an ordinary run. Existing results are reused, so the same
command continues after a stop. RUN/seeds.csv has a row per training, scorer and seed. RUN/seeds.md has a row per
training and scorer: the mean score over requests of the start (the model before training) and of the trained model, the
gain, and the fraction of image pairs that the trained model wins. The 95 % bootstrap intervals resample the requests,
after averaging the images of each request over all seeds. better: the better direction of the score. diversity: mean
distance between a request's images, as a fraction of the start's. minutes: wall time of the training, on a machine that
may have had other work.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import prefkit
from prefkit.config import Recipe, reader
from prefkit.evaluate import statistics
from prefkit.evaluate.compare import compare
from prefkit.evaluate.run import values
from prefkit.store import Store


def recipe_of(path: Path, folder: Path, seed: int, names: list[str]) -> Recipe:
    """Read the recipe with `folder` as run, `seed` for all generators and trainings, and these trainings ([] = all)."""
    found = reader.read(path)
    chosen = {name: found.train[name] for name in names or found.train}
    name, judged = next(iter(found.eval.items()))
    return replace(
        found,
        run=str(folder),
        generate={name: replace(config, seed=seed) for name, config in found.generate.items()},
        train={name: replace(config, seed=seed) for name, config in chosen.items()},
        eval={name: replace(judged, models=[model for model in judged.models if model in chosen])},
    )


def trained(folder: Path) -> dict[str, Any]:
    """Read the number of reward queries, the rounds and the minutes of a training from its log."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rounds = {line["step"]: line for line in lines if "queries" in line}
    seconds = sum(v for line in rounds.values() for k, v in line.items() if k.startswith("seconds/"))
    return {"queries": int(rounds[max(rounds)]["queries"]), "rounds": max(rounds), "minutes": round(seconds / 60, 2)}


def rows_of(recipe: Recipe, seed: int, name: str, models: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row per training and scorer for the result of one seed."""
    rows = []
    for model, scorers in models.items():
        facts = trained(Path(recipe.run) / "train" / model)
        for scorer, found in scorers.items():
            row = {"training": model, "scorer": scorer, "seed": seed, "higher_is_better": found["higher_is_better"]}
            row |= {key: round(found[key], 4) for key in ("base", "tuned", "win_rate", "ci_low", "ci_high")}
            row["diversity"] = round(found["diversity_tuned"] / found["diversity_base"], 3)
            rows.append(row | {"requests": found["n_requests"], "pairs": found["n_pairs"]} | facts)
    return rows


def pooled(folders: list[Path], place: str, generator: str, model: str, scorer: str, higher: bool) -> dict[str, Any]:
    """Return the result of `compare` over all seeds, with the gain and its interval. place: eval/NAME/SET in a run."""
    frames: dict[str, list[pd.DataFrame]] = {"base": [], model: []}
    for number, folder in enumerate(folders):
        wanted = {r.request_id for r in Store(folder).requests() if r.split == "test"}
        for name, parts in frames.items():
            frame = values(Store(folder / place / name), generator, scorer, wanted)
            parts.append(frame.assign(index=frame["index"] + 1000 * number))
    base, tuned = (pd.concat(parts) for parts in frames.values())
    both = base.merge(tuned, on=["request_id", "index"], suffixes=("_base", "_tuned")).dropna()
    gain = (both.value_tuned - both.value_base).groupby(both.request_id).mean().to_numpy(np.float64)
    low, high = statistics.bootstrap_interval(gain)
    return compare(base, tuned, higher_is_better=higher) | {"gain": float(gain.mean()), "low": low, "high": high}


def table(root: Path, place: str, generator: str, rows: pd.DataFrame) -> str:
    """Return a Markdown table with a line per training and scorer."""
    lines = [
        "| training | scorer | better | start | model | gain [95 %] | wins [95 %] | single seeds | diversity | queries | minutes |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    folders = [root / f"seed-{seed}" for seed in sorted(rows.seed.unique())]
    for (model, scorer), own in rows.groupby(["training", "scorer"], sort=False):
        higher = bool(own.higher_is_better.iloc[0])
        f = pooled(folders, place, generator, model, scorer, higher)
        cells = [model, scorer, "more" if higher else "less", f"{f['base']:.3f}", f"{f['tuned']:.3f}"]
        cells += [f"{f['gain']:+.3f} [{f['low']:+.3f}, {f['high']:+.3f}]"]
        cells += [f"{f['win_rate']:.3f} [{f['ci_low']:.3f}, {f['ci_high']:.3f}]"]
        cells += [", ".join(f"{value:.3f}" for value in own.tuned), f"{own.diversity.mean():.2f}"]
        cells += [f"{own.queries.iloc[0]:,}", f"{own.minutes.mean():.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    requests, pairs = rows.requests.iloc[0], rows.groupby("seed").pairs.first().sum()
    return (
        "\n".join([*lines, "", f"{requests} held-out requests, {pairs} pairs of images, {len(folders)} seeds"]) + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--names", nargs="+", default=[])
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        recipe = recipe_of(args.recipe, args.run / f"seed-{seed}", seed, args.names)
        run = prefkit.Run(recipe=recipe)
        run.train()
        ((name, result),) = run.eval().items()
        ((set_, models),) = result["sets"].items()
        rows += rows_of(recipe, seed, name, models)
        frame = pd.DataFrame(rows)
        frame.to_csv(args.run / "seeds.csv", index=False)
        generator = next(iter(recipe.generate))
        (args.run / "seeds.md").write_text(table(args.run, f"eval/{name}/{set_}", generator, frame), encoding="utf-8")
    print((args.run / "seeds.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
