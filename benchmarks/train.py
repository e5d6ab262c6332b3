"""A training step against the bare cost of its forwards and backward, as ratios in one run.

    python benchmarks/train.py [--kind sd] [--pairs 64] [--batch 4] [--steps 40]

bare    the network on ready tensors: one forward of [winners; losers] with gradients, one of the reference
        without, backward, clipping, AdamW
step    the loop's own step, data and logging included
plain   what people write: decode both images, VAE and text encoder every step, a second copy as the reference
"""

from __future__ import annotations

import argparse
import copy
import io
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from prefkit.config import Choice, Lora, Model, Recipe, Train
from prefkit.models.adapters import add_lora
from prefkit.models.capture import capture
from prefkit.models.conditions import capture_conditions, collate
from prefkit.models.latents import encode
from prefkit.models.load import load_pipeline
from prefkit.models.predict import predict
from prefkit.models.schedule import Schedule
from prefkit.output import table
from prefkit.store import Store
from prefkit.testing import tiny_pipeline
from prefkit.train.pairs import PairSource, read_pairs
from prefkit.train.prepare import Plan, prepare
from prefkit.train.processes import Processes
from prefkit.train.run import Job, make_loop


def png(seed: int, side: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_pairs(folder: Path, count: int, side: int) -> None:
    rows = [
        {
            "jpg_0": png(2 * i, side),
            "jpg_1": png(2 * i + 1, side),
            "label_0": 1.0,
            "label_1": 0.0,
            "caption": f"a thing {i}",
        }
        for i in range(count)
    ]
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", default="sd")
    parser.add_argument("--model", help="a pipeline folder; default: a tiny random one")
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = args.model or str(tiny_pipeline(args.kind, folder / "model"))
        write_pairs(folder / "pairs", args.pairs, args.side)
        loop = loop_on(folder, model, args)
        plain = plain_step(model, folder, args)
        batches = [loop.micro_batches(step)[0][0] for step in range(args.steps)]
        times: dict[str, list[float]] = {"bare": [], "step": [], "plain": []}
        for _ in range(args.rounds):
            times["bare"].append(timed(lambda: [bare(loop, batch) for batch in batches]) / args.steps)
            loop.step = 0
            times["step"].append(timed(lambda: loop._steps(args.steps, None)) / args.steps)
            times["plain"].append(timed(lambda: [plain(i) for i in range(args.steps)]) / args.steps)
        best = {k: min(v) for k, v in times.items()}
        print(
            table(
                [
                    {"what": k, "ms": round(1000 * v, 2), "ratio to bare": round(v / best["bare"], 3)}
                    for k, v in best.items()
                ]
            )
        )
        print(
            f"{args.kind}, {args.batch} pairs a step of {args.side} px, LoRA rank 16, best of {args.rounds} rounds of {args.steps} steps"
        )


def loop_on(folder: Path, model: str, args: argparse.Namespace):
    config = Train(
        pairs=str(folder / "pairs"),
        objective=Choice("dpo"),
        lora=Lora(rank=16),
        steps=10 * args.steps,
        batch_size=args.batch,
        validation=0,
        checkpoint_every=10**6,
        validate_every=10**6,
        device="cpu",
    )
    recipe = Recipe(run=str(folder / "run"), model=Model(model), train={"dpo": config})
    store, processes = Store.create(recipe.run), Processes("cpu")
    source = PairSource.find(store, config.pairs)
    plan = Plan(store, recipe, config, store.train("dpo"))
    data = prepare(plan, read_pairs(source), source, processes)
    return make_loop(plan, Job("dpo", config), data, store.train("dpo"), processes)


def bare(loop, batch) -> None:
    with torch.no_grad(), loop.policy.reference() as net:
        reference = loop.family.residuals(net, batch.latents, batch.draw, batch.condition)["image"]
    policy = loop.family.residuals(loop.policy.net, batch.latents, batch.draw, batch.condition)["image"]
    e, r = policy.square().flatten(1).mean(1), reference.square().flatten(1).mean(1)
    z = 1000 * ((r - e)[: len(e) // 2] - (r - e)[len(e) // 2 :])
    (-torch.nn.functional.logsigmoid(z)).mean().backward()
    torch.nn.utils.clip_grad_norm_(loop.policy.parameters(), 1.0)
    loop.optimizer.step()
    loop.optimizer.zero_grad(set_to_none=True)


def plain_step(model: str, folder: Path, args: argparse.Namespace):
    """One step without caches: images decoded and encoded, the prompt encoded, policy and reference apart."""
    pipe = load_pipeline(model)
    wiring = capture(pipe, height=args.side, width=args.side)
    schedule = Schedule.of(pipe.scheduler, wiring.prediction)
    policy = getattr(pipe, wiring.denoiser)
    reference = copy.deepcopy(policy).requires_grad_(False)
    add_lora(policy, 16, 16)
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    rows = pq.read_table(folder / "pairs" / "train.parquet").to_pylist()

    def step(number: int) -> None:
        chosen = [rows[(number * args.batch + i) % len(rows)] for i in range(args.batch)]
        sides = [Image.open(io.BytesIO(row[side])).convert("RGB") for side in ("jpg_0", "jpg_1") for row in chosen]
        prompts = [row["caption"] for row in chosen] * 2
        with torch.no_grad():
            latents = encode(pipe, wiring, sides)
            trees = capture_conditions(pipe, wiring, prompts, height=args.side, width=args.side, call={})
            condition = collate(wiring, trees)
        draw = torch.Generator().manual_seed(number)
        noise = torch.randn(latents[: args.batch].shape, generator=draw).repeat(2, *[1] * (latents.dim() - 1))
        when = torch.stack([schedule.draw_time(draw) for _ in chosen]).repeat(2)
        x_t, target = schedule.add_noise(latents, noise, when), schedule.target(latents, noise, when)
        with torch.no_grad():
            r = (predict(reference, wiring, x_t, when, condition) - target).square().flatten(1).mean(1)
        e = (predict(policy, wiring, x_t, when, condition) - target).square().flatten(1).mean(1)
        z = 1000 * ((r - e)[: args.batch] - (r - e)[args.batch :])
        (-torch.nn.functional.logsigmoid(z)).mean().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def timed(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
