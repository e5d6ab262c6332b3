"""Run the study of objectives and pair strategies on the embedded wardrobe; README.md describes metric and rule.

    python pipelines/study/run.py runs/study --seeds 0 1 2 --hours 10

A cell is (objective, strength, strategy, seed): one training and one evaluation in OUT/seed-S. All cells of a seed
share its candidates, scores, pairs, caches and base images. The results of finished cells are in OUT/cells/*.json; the
same command continues a stopped study.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from table import chosen, outcome, write_tables

from prefkit import Run
from prefkit.config import Recipe, reader
from prefkit.registry import load_class
from prefkit.store.files import read_json, write_json
from prefkit.tiny.source import rows
from prefkit.types import split_of

TRAINING = ("learning_rate", "steps")  # keys of a strength that are training settings, not objective options
JUDGED = ("palette", "fidelity", "taste")


@dataclass(frozen=True)
class Cell:
    objective: str
    strength: int
    strategy: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.objective}_{self.strength}_{self.strategy}"


class Study:
    """settings: content of study.yaml. out: folder for the runs and results, only for studies with these settings."""

    def __init__(self, out: Path, settings: dict[str, Any], until: float) -> None:
        self.out, self.settings, self.until = out, settings, until
        (out / "cells").mkdir(parents=True, exist_ok=True)
        kept = out / "settings.json"
        if kept.exists() and read_json(kept) != settings:
            raise SystemExit(f"{kept} was made with other settings than this run. Choose another output folder.")
        write_json(kept, settings)
        self.requests = out / "requests.jsonl"
        self.requests.write_text(
            "".join(json.dumps(row) + "\n" for row in requests(settings["valid_share"])), encoding="utf-8"
        )

    # -- one cell -------------------------------------------------------------------------------------------------
    def recipe(self, cell: Cell, controls: bool = False) -> Recipe:
        s = self.settings
        strength = s["objectives"][cell.objective][cell.strength]
        options = {key: value for key, value in strength.items() if key not in TRAINING}
        budget = {key: value for key, value in strength.items() if key in TRAINING}
        budget["batch_size"] = round(s["train"]["batch_size"] * s["groups"].get(cell.objective, 1))
        train = s["train"] | budget | {"pairs": cell.strategy, "seed": cell.seed, "controls": controls}
        objective = load_class("objective", cell.objective)
        train["cache_reference"] &= objective.reference not in ("ema", "none") and not objective.needs_residual
        tree = s["recipe"] | {
            "run": str(self.out / f"seed-{cell.seed}"),
            "requests": {"source": str(self.requests), "split_column": "split"},
            "train": {cell.name: train | {"objective": {"use": cell.objective, **options}}},
            "eval": {
                name: s["eval"] | {"models": [cell.name], "sets": {name: {"split": name}}} for name in ("valid", "test")
            },
        }
        tree["eval"]["valid"]["best_of"] = 0
        tree["generate"] = {"own": tree["generate"]["own"] | {"seed": cell.seed}}
        return reader.build(Recipe, tree, "")

    def measure(self, cell: Cell, where: str, controls: bool = False) -> dict[str, Any]:
        """Return the outcome of a cell on the requests of split `where`, from disk or after training and evaluation."""
        path = self.out / "cells" / f"{cell.seed}_{where}_{cell.name}.json"
        if path.exists():
            return read_json(path)
        if time.time() > self.until:
            raise TimeoutError
        run, began = Run(recipe=self.recipe(cell, controls)), time.process_time()
        run.generate()
        run.score(["taste"])
        if not (run.folder / "pairs" / cell.strategy).exists():
            run.pair([cell.strategy])
        run.train([cell.name])
        trained = time.process_time()
        result = run.eval([where])
        models = [cell.name] + [f"{cell.name}-{kind}" for kind in ("sft", "flipped") if controls]
        found = outcome(run.store, where, models, result[where]["sets"][where], self.settings["eval"]["seeds"])
        found |= {
            "cell": vars(cell),
            "set": where,
            "cpu_train": trained - began,
            "cpu_eval": time.process_time() - trained,
        }
        write_json(path, found)
        print(
            f"{time.strftime('%H:%M:%S')} {path.stem} "
            + " ".join(f"{m}={v['gain']:+.3f}" for m, v in found["models"].items()),
            flush=True,
        )
        return found

    # -- the order ------------------------------------------------------------------------------------------------
    def strength(self, objective: str, seeds: list[int]) -> int:
        """Choose the objective's strength by its validation requests, before any evaluation on held-out requests."""
        first, tried = self.settings["first"], range(len(self.settings["objectives"][objective]))
        seeds = seeds[: self.settings["valid_seeds"]]
        return chosen([[self.measure(Cell(objective, i, first, s), "valid") for s in seeds] for i in tried])

    def run(self, objectives: list[str], strategies: list[str], seeds: list[int]) -> None:
        """Run objectives on the first strategy, then dpo on the other strategies, then the rest, while time lasts."""
        first = self.settings["first"]
        try:
            grid = [(o, first) for o in objectives] + [("dpo", s) for s in strategies if s != first]
            grid += [(o, s) for s in strategies for o in objectives if (o, s) not in grid]
            for objective, strategy in grid:
                strength = self.strength(objective, seeds)
                for seed in seeds:
                    controls = (objective, strategy) == ("dpo", first)
                    self.measure(Cell(objective, strength, strategy, seed), "test", controls)
        except TimeoutError:
            print("The time is over. Run the same command to continue.", flush=True)
        write_tables(self.out, self.settings)


def requests(valid_share: float) -> list[dict[str, Any]]:
    """Return the demo's requests, with the fraction valid_share of the training requests moved to a split `valid`."""
    found = []
    for row in rows():
        if row["split"] == "train" and split_of(row["prompt"], valid_share) == "test":
            row = row | {"split": "valid"}
        found.append(row)
    return found


def read_settings(path: Path, now: bool) -> dict[str, Any]:
    import yaml

    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    for dotted, value in settings.pop("now").items():
        if now:
            *parents, last = dotted.split(".")
            at = settings
            for key in parents:
                at = at[key]
            at[last] = value
    return settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--hours", type=float, default=10.0, help="no cell starts after that")
    parser.add_argument("--now", action="store_true", help="the small study of half an hour")
    parser.add_argument("--objectives", nargs="+", help="default: all; dpo must be among them")
    parser.add_argument("--strategies", nargs="+", help="default: all")
    given = parser.parse_args()
    settings = read_settings(Path(__file__).with_name("study.yaml"), given.now)
    study = Study(given.out, settings, time.time() + 3600 * given.hours)
    study.run(
        given.objectives or list(settings["objectives"]),
        given.strategies or list(settings["recipe"]["pair"]),
        given.seeds,
    )


if __name__ == "__main__":
    main()
