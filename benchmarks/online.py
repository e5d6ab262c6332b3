"""A round of online training beside the bare forwards and backward that it consists of, in this one process.

    OMP_NUM_THREADS=1 python benchmarks/online.py [--rounds 2] [--samples 32] [--steps 6]

bound: the denoiser's forwards of the sampling, and forward and backward of every step that is learned from, on the same
batches and with the same LoRA; nothing else. round: all of it, with decoding, rewards, storage and the optimizer.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from prefkit.config import Choice, Generate, Lora, Model, Online, Recipe, Requests, Score, Train
from prefkit.models.load import load_pipeline
from prefkit.output import table
from prefkit.store import Store
from prefkit.train.online.loop import Loop
from prefkit.train.reference import make_policy
from prefkit.train.run import run_train


def recipe_of(folder: Path, rounds: int, samples: int, steps: int) -> Recipe:
    online = Online(rewards={"size": 1.0}, rounds=rounds, requests=samples // 8, samples=8, watch_every=0)
    train = Train(objective=Choice("ddpo"), lora=Lora(16), batch_size=samples, warmup=0, online=online, device="cpu")
    return Recipe(
        run=str(folder),
        model=Model(base="tiny"),
        requests=Requests(source="tiny"),
        generate={"own": Generate(steps=steps, guidance=1.0, device="cpu")},
        score={"size": Score(use="jpeg", options={"direction": "expand"})},
        train={"up": train},
    )


def bound(config: Train, samples: int, steps: int) -> tuple[float, float]:
    """Seconds of the sampling's forwards, and of forward and backward of the steps with a density."""
    net = load_pipeline("tiny").unet
    make_policy(net, config, frozen=False)
    x, text = torch.randn(samples, 4, 16, 16), torch.randn(samples, 77, net.config.cross_attention_dim)
    time_ = torch.full((samples,), 500)
    begun = time.perf_counter()
    with torch.no_grad():
        for _ in range(steps):
            net(x, time_, text)
    sampled = time.perf_counter()
    for _ in range(steps - 1):  # the last step is deterministic
        net(x, time_, text).sample.square().mean().backward()
    return sampled - begun, time.perf_counter() - sampled


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("rounds", 2), ("samples", 32), ("steps", 6)):
        parser.add_argument(f"--{name}", type=int, default=default)
    known = parser.parse_args()
    torch.set_num_threads(1)
    seconds: list[float] = []
    whole = Loop.round

    def timed(loop: Loop, number: int) -> dict[str, float]:
        begun = time.perf_counter()
        shown = whole(loop, number)
        seconds.append(time.perf_counter() - begun)
        return shown

    Loop.round = timed  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe_of(Path(folder), known.rounds, known.samples, known.steps)
        last = run_train(Store.create(folder), recipe, "up")["last"]
    bounds = [bound(recipe.train["up"], known.samples, known.steps) for _ in range(known.rounds)]
    sampling, learning = (min(b[i] for b in bounds) for i in (0, 1))
    rows = [
        {"": "sampling, decoding", "seconds": last["seconds/sampling"], "bound": sampling},
        {"": "waiting for rewards", "seconds": last["seconds/waiting for rewards"], "bound": 0.0},
        {"": "learning", "seconds": last["seconds/learning"], "bound": learning},
        {"": "round", "seconds": min(seconds), "bound": sampling + learning},
    ]
    print(table([row | {"ratio": row["seconds"] / row["bound"] if row["bound"] else None} for row in rows]))


if __name__ == "__main__":
    main()
