"""Cleaning of labels with the scorer: a base model trained on all labels, on the kept ones, and on the truly clean ones.

    python pipelines/mesh/clean.py DATA WORK [--scorer WORK/scorer-0] [--fast]

Of the labels, 20 % are corrupted: half are another person's pose, half have noise of 0.4 rad on every rotation. A model trained
on all of them gives hypotheses for each picture. A label's cleanliness is its score minus the mean score of those hypotheses
(scorer `mesh`, whose values compare only within a picture), or its reprojection score. The worst 20 % get the verdict `reject`
in decisions.csv, and `prefkit pair` leaves them out. WORK/clean.md gets the table; DATA and the scorer are those of study.py.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from evaluate import TestSet, hypotheses, measured, sets
from labels import perturbed
from new_model import new_model
from study import Study
from tables import interval
from truth import true_mesh

from prefkit.store import Store
from prefkit.store.decisions import append_decisions

SHARE, NOISE = 0.2, 0.4
COLUMNS = ("true_joints3d", "true_rotations", "true_betas", "true_translation")
STEPS = 4  # of the sampler


@dataclass(frozen=True)
class Cleaning:
    study: Study
    scorer: Path
    count: int
    steps: int

    def source(self, name: str) -> Path:
        return self.study.work / "clean" / f"{name}.parquet"

    def run(self, name: str) -> Path:
        return self.study.work / "clean" / name

    def start(self) -> Path:
        """Return the untrained model of all trainings, standardised by all labels; write it if it is missing.

        Standardised by the clean labels, an entry that hardly varies there would turn the noise of a corrupted label into
        a value of hundreds, whose loss outweighs all others.
        """
        folder = self.study.work / "clean" / "start"
        return folder if folder.exists() else new_model(self.source("all"), folder)

    def train(self, name: str, source: str) -> Path:
        """Train a base model on the labels of `source` that the run's decisions leave; return its folder."""
        recipe = ["-r", Path(__file__).with_name("base.yaml"), "--model.base", self.start()]
        recipe += ["--requests.source", self.source(source)]
        for verb in ("generate", "score", "pair"):
            self.study.prefkit(verb, self.run(name), *recipe)
        steps = ["--train.base-0.steps", self.steps]
        self.study.prefkit("train", self.run(name), *recipe, "--name", "base-0", *steps, steps=6, trains=["base-0"])
        return self.run(name) / "train" / "base-0" / "final"


def corrupt(rows: list[dict], seed: int = 0) -> np.ndarray:
    """Replace the labels of 20 % of the rows in place; return which, [N] bool. `true_*` then holds the label at hand."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(rows))[: round(SHARE * len(rows))]
    others = [{name: rows[k][name] for name in COLUMNS} for k in np.roll(chosen, 1)]
    for n, (k, other) in enumerate(zip(chosen, others)):
        rows[k] |= other if n % 2 else noisy(rows[k], int(k))
    mask = np.zeros(len(rows), bool)
    mask[chosen] = True
    return mask


def noisy(row: dict, seed: int) -> dict:
    """Return a row's label with noise of NOISE radians on every rotation."""
    mesh = perturbed(true_mesh(row), seed, NOISE)
    return {"true_joints3d": mesh.joints3d.tolist(), "true_rotations": np.asarray(mesh.rotations).tolist()}


def cleanliness(cleaning: Cleaning, model: Path, names: list[str]) -> dict[str, np.ndarray]:
    """Return {judge: [N]}, larger for cleaner labels, in the order of the requests `names`; and fill the run `judged`."""
    run = cleaning.run("judged")
    recipe = ["-r", Path(__file__).with_name("clean.yaml"), "--model.base", model]
    recipe += ["--requests.source", cleaning.source("all"), "--score.rank.model", cleaning.scorer]
    for verb in ("generate", "score"):
        cleaning.study.prefkit(verb, run, *recipe)
    store = Store(run)
    frame = store.candidates("own").frame(["id", "request_id"]).assign(label=False)
    labels = store.candidates("truth").frame(["id", "request_id"]).assign(label=True)
    values = {}
    for judge in ("rank", "reprojection"):
        scores = store.scores(judge).frame(["id", "value"])
        own, label = (f.merge(scores, on="id").groupby("request_id").value.mean() for f in (frame, labels))
        values[judge] = (label - own if judge == "rank" else label).reindex(names).to_numpy()
    return values


def reject(cleaning: Cleaning, name: str, worst: list[str]) -> None:
    """Make the labels of the run `name`, and reject those of the requests `worst`."""
    recipe = ["-r", Path(__file__).with_name("base.yaml"), "--model.base", cleaning.start()]
    run = cleaning.run(name)
    cleaning.study.prefkit("generate", run, *recipe, "--requests.source", cleaning.source("all"))
    frame = Store(run).candidates("truth").frame(["id", "request_id"])
    ids = frame.id[frame.request_id.isin(worst)]
    if not (run / "decisions.csv").exists():
        append_decisions(
            run / "decisions.csv", [{"id": i, "verdict": "reject", "reason": name, "by": "clean.py"} for i in ids]
        )


def auc(values: np.ndarray, corrupted: np.ndarray) -> float:
    """Return the probability that a clean label has a larger value than a corrupted one; ties count half."""
    clean, bad = values[~corrupted], values[corrupted]
    return float(((clean[:, None] > bad).mean() + (clean[:, None] >= bad).mean()) / 2)


def clean(cleaning: Cleaning) -> None:
    table = pq.read_table(cleaning.study.data / "train.parquet").slice(0, cleaning.count)
    rows = table.to_pylist()
    mask = corrupt(rows)
    cleaning.source("all").parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.from_pylist(rows, schema=table.schema), cleaning.source("all"))
    pq.write_table(table.filter(~mask), cleaning.source("clean"))
    models = {"all": cleaning.train("all", "all")}
    names = [row["request_id"] for row in rows]
    found = {}
    for judge, values in cleanliness(cleaning, models["all"], names).items():
        worst = np.argsort(values)[: round(SHARE * len(rows))]
        found[judge] = {"auc": auc(values, mask), "precision": float(mask[worst].mean())}
        reject(cleaning, f"kept-{judge}", [names[k] for k in worst])
        models[f"kept-{judge}"] = cleaning.train(f"kept-{judge}", "all")
    models["clean"] = cleaning.train("clean", "clean")
    (cleaning.study.work / "clean.md").write_text("\n".join(report(cleaning, models, found)) + "\n", encoding="utf-8")


def report(cleaning: Cleaning, models: dict[str, Path], found: dict) -> list[str]:
    lines = [json.dumps(found), "", "| trained on | set | zero | mean | pa |", "|---|---|---|---|---|"]
    rng = np.random.default_rng(0)
    for file in sets(cleaning.study.data):
        test, name = TestSet.read(file), file.stem
        errors = {row: measured(test, hypotheses(model, test, STEPS)) for row, model in models.items()}
        for row, values in errors.items():
            cells = []
            for column in ("zero", "mean", "pa"):
                mean, low, high = interval(values[column] - errors["all"][column], rng)
                change = "" if row == "all" else f" ({mean:+.1f} [{low:+.1f}, {high:+.1f}])"
                cells.append(f"{values[column].mean():.1f}{change}")
            lines.append(f"| {row} | {name} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--scorer", type=Path, help="folder of a fitted scorer; default WORK/scorer-0")
    parser.add_argument("--labels", type=int, default=6000)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--fast", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    work = args.work.resolve()
    study = Study(args.data.resolve(), work, args.fast)
    clean(Cleaning(study, (args.scorer or work / "scorer-0").resolve(), args.labels, args.steps))


if __name__ == "__main__":
    main()
