"""The mesh study: base models, scorer, pairs, every objective with its controls, and their held-out errors.

    python pipelines/mesh/make_data.py DATA --cache CACHE
    python pipelines/mesh/study.py DATA WORK [--seeds 3] [--workers 2] [--fast]

Writes to WORK the runs, errors-SEED.npz (every column for each test picture), and results.md, the tables of
docs/results/mesh.md. Every step continues where an interrupted study stopped. --fast makes tiny training runs, whose
numbers mean nothing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from evaluate import TestSet, hypotheses, measured, outside, sets
from new_model import new_model
from tables import write_tables

from prefkit.cli.main import run as run_prefkit

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
STEPS = (4, 10)
TUNED = (
    "dpo-rank", "dpo-reprojection", "dpo-chance", "dpo-truth", "kto-rank", "lpo-rank", "sft-rank", "sft-chance", "more",
)  # fmt: skip


@dataclass(frozen=True)
class Study:
    data: Path
    work: Path
    fast: bool = False

    def prefkit(self, *words: object, steps: int | None = None, trains: Sequence[str] = ()) -> None:
        """Run a command of prefkit on one thread; a fast study runs it in this process, with `steps` for `trains`."""
        if self.fast:
            if steps is not None:
                words += tuple(
                    f"--train.{name}.{key}={value}" for name in trains for key, value in short(steps).items()
                )
            os.chdir(ROOT)  # the recipes name files from there
            if code := run_prefkit([*map(str, words), "-q"]):
                raise SystemExit(code)
            return
        command = [sys.executable, "-m", "prefkit", *map(str, words), "-q"]
        path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)

    def base(self) -> Path:
        """Return the run of the base models; write the untrained model that they start from if it is missing."""
        start = self.work / "start"
        if not start.exists():
            new_model(self.data / "train.parquet", start)
        return self.work / "base"

    def base_recipe(self) -> list[object]:
        return [
            "-r",
            HERE / "base.yaml",
            "--model.base",
            self.work / "start",
            "--requests.source",
            self.data / "train.parquet",
        ]

    def base_model(self, seed: int) -> Path:
        return self.work / "base" / "train" / f"base-{seed}" / "final"


def short(steps: int) -> dict[str, int]:
    return {"steps": steps, "batch_size": 8}


def labels(study: Study) -> None:
    """Make the labelled pairs."""
    for verb in ("generate", "score", "pair"):
        study.prefkit(verb, study.base(), *study.base_recipe())


def seed_of(study: Study, seed: int) -> None:
    """Train the base model of a seed and everything that starts from it."""
    base, name = study.base(), f"base-{seed}"
    study.prefkit("train", base, *study.base_recipe(), "--name", name, steps=6, trains=[name])
    scorer = fitted(study, seed)
    tune(study, seed, scorer)


def fitted(study: Study, seed: int) -> Path:
    """Fit the scorer `mesh` on hypotheses of the base model and perturbed poses; return its folder."""
    run, scorer = study.work / f"fit-{seed}", study.work / f"scorer-{seed}"
    source = ["--requests.source", study.data / "fit.parquet", "--model.base", study.base_model(seed)]
    study.prefkit("generate", run, "-r", HERE / "fit.yaml", *source)
    options: list[object] = ["--run", run, "--out", scorer, "--seed", seed]
    study.prefkit("fit", "mesh", *options, *(["--steps", 20] if study.fast else []))
    return scorer


def tune(study: Study, seed: int, scorer: Path) -> None:
    """Sample and score hypotheses of the unlabelled pictures, make the pairs, and run all training runs of a seed."""
    run, trains = study.work / f"seed-{seed}", [name for name in TUNED if name != "more"]
    recipe: list[object] = ["-r", HERE / "study.yaml", "--model.base", study.base_model(seed)]
    recipe += ["--requests.source", study.data / "pairs.parquet", "--score.rank.model", scorer]
    for verb in ("generate", "score", "pair"):
        study.prefkit(verb, run, *recipe)
    seeds = [f"--train.{name}.seed={seed}" for name in trains]
    study.prefkit("train", run, *recipe, *seeds, steps=3, trains=trains)
    name = f"more-{seed}"
    source = ["--requests.source", study.data / "train.parquet", "--model.base", study.base_model(seed)]
    more = ["train", study.work / "base", "-r", HERE / "more.yaml", *source, "--name", name]
    study.prefkit(*more, steps=3, trains=[name])


def models(study: Study, seed: int) -> dict[str, Path]:
    """Return {row of the tables: model folder}."""
    run = study.work / f"seed-{seed}" / "train"
    found = {name: run / name / "final" for name in TUNED if name != "more"}
    return {"base": study.base_model(seed)} | found | {"more": study.work / "base" / "train" / f"more-{seed}" / "final"}


def errors(study: Study, seed: int) -> None:
    """Measure all models of a seed into errors-SEED.npz: SET/STEPS/ROW/COLUMN -> [pictures]."""
    import torch

    from prefkit.score.core import make_scorer

    path = study.work / f"errors-{seed}.npz"
    if path.exists():
        return
    torch.set_num_threads(1)
    scorer = make_scorer("mesh", {"model": str(study.work / f"scorer-{seed}")})
    scorer.load("cpu", "float32")
    found: dict[str, np.ndarray] = {}
    for file in sets(study.data):
        test, name = TestSet.read(file), file.stem
        for row, model in models(study, seed).items():
            for steps in STEPS:
                columns = measured(test, hypotheses(model, test, steps, seed), scorer)
                found |= {f"{name}/{steps}/{row}/{column}": values for column, values in columns.items()}
        if test.blazepose is not None:
            found |= {f"{name}/0/blazepose/{column}": values for column, values in outside(test).items()}
    partial_path = path.with_suffix(".partial.npz")
    np.savez_compressed(partial_path, **found)
    partial_path.rename(path)


def run(study: Study, seeds: Sequence[int], workers: int) -> None:
    study.work.mkdir(parents=True, exist_ok=True)
    labels(study)
    if study.fast:
        for seed in seeds:
            seed_of(study, seed)
            errors(study, seed)
        write_tables(study.work, study.data, seeds, "Made with --fast: the numbers mean nothing.")
        return
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(partial(seed_of, study), seeds))
        measure = [sys.executable, __file__, study.data, study.work, "--measure"]
        list(pool.map(lambda seed: subprocess.run([*map(str, measure), str(seed)], check=True), seeds))
    write_tables(study.work, study.data, seeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, default=3, choices=(1, 2, 3))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    study = Study(args.data.resolve(), args.work.resolve(), args.fast)
    if args.measure is not None:
        errors(study, args.measure)
        return
    run(study, range(args.seeds), args.workers)


if __name__ == "__main__":
    main()
