"""The study: a generator learns what four laws say of a prompt, in Science-T2I's two stages and by other means.

    python pipelines/science/study.py WORK --seed N [--arms sft,oft] [--validate]
    python pipelines/science/study.py WORK --table           # tables of all finished seeds
    python pipelines/science/study.py WORK --fast            # everything, tiny: a test of the code

One command makes what is missing: the base generator WORK/base (base.py) and the CLIP WORK/clip (clip_base.py), once for all seeds;
then, for a seed, SciScore (sciscore.py), the tuples with new pictures, the trainings and evaluations of study.yaml in WORK/seed-N, and
the results in WORK/seed-N.csv, one line for each picture of a held-out subject. An interrupted command continues where it
stopped. --validate evaluates on the split `pair` instead, on which settings are chosen, and makes no picture of a
held-out subject. --arms: only these trainings.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import base
import clip_base
import results
import sciscore
from laws import LAWS
from tuples import named

from prefkit import Run
from prefkit.config import Recipe, resolve
from prefkit.errors import PrefkitError

HERE = Path(__file__).resolve().parent
BASE_LAWS = ("ripeness", "rust", "melting", "light")
FAST_LAWS = ("rust", "melting")


@dataclass(frozen=True)
class Study:
    """A seed of the study in `work`. fast: tiny sizes, two laws."""

    work: Path
    seed: int
    fast: bool = False

    @property
    def folder(self) -> Path:
        return self.work / f"seed-{self.seed}"

    @property
    def laws(self) -> tuple[str, ...]:
        return FAST_LAWS if self.fast else BASE_LAWS


def make_models(study: Study) -> None:
    """Train the base generator and the CLIP model, unless they exist or where they stopped."""
    small = ["--samples", "64", "--batch", "16", "--pictures", "1"] if study.fast else ["--samples", "150000"]
    if not (study.work / "base" / "model_index.json").exists():
        done = base.main(["--out", str(study.work / "base"), "--laws", ",".join(study.laws), "--threads", "1", *small])
        if done:
            raise SystemExit(done)
    if not (study.work / "clip" / "open_clip_config.json").exists():
        small = ["--samples", "128", "--pictures", "1", "--laws", ",".join(study.laws)] if study.fast else []
        if code := clip_base.main(["--out", str(study.work / "clip"), "--threads", "1", *small]):
            raise SystemExit(code)


def recipe_of(study: Study, scorer: Path) -> Recipe:
    """Return study.yaml with the paths and the seed of this study."""
    tuples = sciscore.imported(study.folder, study.laws, study.seed + 1)
    names = ("sft", "oft", "oft_alone", "oft_no_mask", "dpo", "ddpo")
    values = {
        "model.base": study.work / "base",
        "requests.source": study.folder / "world" / "requests.jsonl",
        "score.reward.model": f"local-dir:{scorer}",
        "train.sft.pairs": tuples.folder / "pairs" / sciscore.NAME,
        "generate.own.seed": study.seed,
    } | {f"train.{name}.seed": study.seed for name in names}
    flags = [(key, str(value)) for key, value in values.items()]
    return resolve.resolve(str(study.folder / "study"), str(HERE / "study.yaml"), "run", flags, fast=study.fast)


def run(study: Study, arms: Sequence[str], validate: bool) -> None:
    """Run everything that is missing of a seed."""
    os.chdir(HERE.parent.parent)  # study.yaml names files from there
    study.folder.mkdir(parents=True, exist_ok=True)
    make_models(study)
    scorer = sciscore.fitted(
        study.work, study.seed, "explicit", FAST_LAWS if study.fast else tuple(LAWS), 4 if study.fast else 320
    )
    recipe = recipe_of(study, scorer)
    names = [name for name in recipe.train if not arms or name in arms]
    only = replace(
        recipe,
        train={name: recipe.train[name] for name in names},
        eval={name: replace(entry, models=names) for name, entry in recipe.eval.items()},
    )
    part = Run(recipe=only)
    for name in names:
        part.train([name])
    if validate:
        part.eval(["validation"])
        print(results.of_validation(part.store))
        return
    part.eval(["held_out"])
    results.save(results.pictures(part.store, names), study.work / f"seed-{study.seed}.csv")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arms", default="", help="trainings of study.yaml, separated by commas; default: all")
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args(arguments)
    work = args.work.resolve()
    try:
        if not args.table:
            run(Study(work, args.seed, args.fast), named(args.arms), args.validate)
        if not args.validate:
            print(results.written(work, fast=args.fast))
    except PrefkitError as error:
        raise SystemExit(f"Error: {error}") from error


if __name__ == "__main__":
    main()
