"""Eight trainings that differ in beta and learning rate: as eight separate runs, and as a sweep in one run.

    python benchmarks/sweep.py [--width 1] [--side 128] [--batch 4] [--steps 20]

separate   each in a separate run folder: latents, conditions and the reference's errors are computed eight times
shared     one run: latents and conditions once, the reference is evaluated in every training
kept       one run with cache_reference: the reference's errors once too

CPU time over all threads, start-up included (loading, capture, caches, final export); the losses of the three must be
bit-identical.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from train import random_model, write_pairs

from prefkit.config import Choice, Lora, Model, Recipe, Train
from prefkit.output import table
from prefkit.store import Store
from prefkit.train.run import run_train

SETTINGS = [(beta, rate) for beta in (500.0, 1000.0, 2000.0, 5000.0) for rate in (1e-5, 1e-4)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", default="sd")
    parser.add_argument("--width", type=int, default=1)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = random_model(args, folder / "model")
        write_pairs(folder / "pairs", args.pairs, args.side)
        found = {way: sweep(folder, model, args, way) for way in ("separate", "shared", "kept")}
    losses = [trainings for _, trainings in found.values()]
    assert losses[0] == losses[1] == losses[2]
    first = found["separate"][0]
    rows = [
        {"way": way, "CPU s": round(spent, 1), "separate / this": round(first / spent, 2)}
        for way, (spent, _) in found.items()
    ]
    print(table(rows))
    print(
        f"8 trainings of {args.steps} steps of {args.batch} pairs of {args.side} px, {args.kind} of width {args.width}"
    )


def sweep(folder: Path, model: str, args: argparse.Namespace, way: str) -> tuple[float, list[list[float]]]:
    """(CPU seconds, the losses of each training)."""
    configs = {
        f"t{number}": Train(
            pairs=str(folder / "pairs"),
            objective=Choice("dpo", {"beta": beta}),
            lora=Lora(rank=16),
            steps=args.steps,
            batch_size=args.batch,
            learning_rate=rate,
            validation=0,
            cache_reference=way == "kept",
            device="cpu",
        )
        for number, (beta, rate) in enumerate(SETTINGS)
    }
    begun, losses = time.process_time(), []
    for name, config in configs.items():
        where = folder / (f"{way}-{name}" if way == "separate" else way)
        store = Store.create(where)
        run_train(store, Recipe(run=str(where), model=Model(model), train={name: config}), name)
        lines = (store.train(name) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    return time.process_time() - begun, losses


if __name__ == "__main__":
    main()
