"""A training step against the bare cost of its forwards and backward, as ratios in one run.

    python benchmarks/train.py [--kind sd] [--width 1] [--side 128] [--batch 4] [--steps 40]
                               [--also checkpointed adamw8bit ...]

bare    the network on ready tensors: one forward of [winners; losers] with gradients, one of the reference
        without, backward, clipping, AdamW
step    the loop's own step, data and logging included
plain   in the style of the diffusers example: one process that decodes both images, VAE and text encoder every step;
        --plain-checkpointing with gradient checkpointing, which the example has off by default
--also  the loop's own step with other settings, each in a separate loop

Two clocks: wall, and CPU time over all threads, which other work on the machine affects less. The three alternate, a
step of each, and the medians are compared. --width multiplies the channels of a U-Net, to show whether an overhead is
fixed or grows. Memory is the peak of a process that does one of the three, weights and Python included (on CUDA: memory
allocated by torch).
"""

from __future__ import annotations

import argparse
import gc
import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from prefkit.config import Choice, Lora, Model, Recipe, Train
from prefkit.distributed.collectives import Processes
from prefkit.models.capture.call import capture
from prefkit.models.capture.conditions import capture_conditions, collate
from prefkit.models.latents import encode
from prefkit.models.load.pipeline import load_pipeline
from prefkit.models.lora.adapters import add_lora, layers_active, lora_layers
from prefkit.models.predict import predict
from prefkit.models.schedule import Schedule
from prefkit.output import table
from prefkit.store import Store
from prefkit.testing import tiny_pipeline, wake_zeros
from prefkit.train.data.batches import ahead
from prefkit.train.data.pairs import PairSource, read_pairs
from prefkit.train.monitor.metrics import Log
from prefkit.train.precision import autocast
from prefkit.train.run import Job, make_trainer
from prefkit.train.setup import ModelLoader, prepare

WAYS = {
    "compiled": {"compile": True},
    "checkpointed": {"gradient_checkpointing": True},
    "adamw8bit": {"optimizer": "adamw8bit"},
    "adafactor": {"optimizer": "adafactor"},
}


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
    parser.add_argument("--width", type=int, default=1)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="no")
    parser.add_argument("--plain-checkpointing", action="store_true")
    parser.add_argument("--also", choices=WAYS, nargs="*", default=[])
    parser.add_argument("--only", choices=["bare", "step", "plain", *WAYS], help="one of them, and its peak of memory")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = args.model or random_model(args, folder / "model")
        write_pairs(folder / "pairs", args.pairs, args.side)
        calls = calls_of(folder, model, args)
        for call in calls.values():
            call(0)
        if args.only:
            with peak_memory(args.device):
                for number in range(1, 4):
                    calls[args.only](number)
            return
        found = take_turns(calls, args)
    middle = {name: (median(w for w, _ in times), median(c for _, c in times)) for name, times in found.items()}
    print(table([row(name, middle, args) for name in ("bare", "step", "plain", *args.also)]))
    print(table(shares(middle)))
    print(
        f"{args.kind} of width {args.width}, {args.batch} pairs a step of {args.side} px, LoRA rank 16, {args.steps} steps"
    )


def calls_of(folder: Path, model: str, args: argparse.Namespace) -> dict[str, Callable[[int], object]]:
    """Name of each timed variant -> its step, by number."""
    calls: dict[str, Callable[[int], object]] = {}
    for name in [name for name in args.also if args.only in (None, name)]:
        calls[name] = step_of(loop_on(folder, model, args, name), folder)
    if args.only in (None, "bare", "step"):
        loop = loop_on(folder, model, args)
        batches = [loop.micro_batches(step)[0][0].to(loop.processes.device) for step in range(min(args.steps, 16))]
        calls["bare"] = lambda i: bare(loop, batches[i % len(batches)])
        calls["step"] = step_of(loop, folder)
        if args.only is None:
            calls |= parts_of(loop, batches)
    if args.only in (None, "plain"):
        calls["plain"] = plain_step(model, folder, args)
    return calls


def take_turns(
    calls: dict[str, Callable[[int], object]], args: argparse.Namespace
) -> dict[str, list[tuple[float, float]]]:
    """name -> (wall, CPU) seconds of each step."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for number in range(args.steps):
        for name, call in calls.items():
            if args.device != "cpu":
                torch.cuda.synchronize()
            wall, cpu = time.perf_counter(), time.process_time()
            call(number)
            if args.device != "cpu":
                torch.cuda.synchronize()
            found[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return found


def row(name: str, middle: dict[str, tuple[float, float]], args: argparse.Namespace) -> dict[str, object]:
    (wall, cpu), (bare_wall, bare_cpu) = middle[name], middle["bare"]
    own = [sys.executable, __file__, *sys.argv[1:], "--only", name]
    memory = subprocess.run(own, capture_output=True, encoding="utf-8", check=True).stdout.split()[-1]
    return {"what": name, "wall ms": round(1000 * wall, 1), "to bare": round(wall / bare_wall, 3),
            "CPU ms": round(1000 * cpu, 1), "to bare ": round(cpu / bare_cpu, 3), "steps a second": round(1 / wall, 2),
            "peak MiB": int(memory)}  # fmt: skip


def shares(middle: dict[str, tuple[float, float]]) -> list[dict[str, object]]:
    """CPU time of the parts of a step, and what is left of it: losses, metrics, log, moves."""
    whole = middle["step"][1]
    parts = {name: cpu for name, (_, cpu) in middle.items() if name not in ("bare", "step", "plain", *WAYS)}
    parts["the rest"] = whole - sum(parts.values())
    return [{"part": k, "CPU ms": round(1000 * v, 2), "share of a step": round(v / whole, 3)} for k, v in parts.items()]


@contextmanager
def peak_memory(device: str) -> Iterator[None]:
    """Print the MiB that were taken most while this was entered. On a CPU of Linux: of the process's pages in memory."""
    gc.collect()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        yield
        print(torch.cuda.max_memory_allocated() // 2**20)
        return
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    yield
    peak = next(
        line for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM")
    )
    print(int(peak.split()[1]) // 1024)


def random_model(args: argparse.Namespace, folder: Path) -> str:
    tiny_pipeline(args.kind, folder)
    if args.width > 1:
        from diffusers import UNet2DConditionModel

        config = dict(UNet2DConditionModel.load_config(folder / "unet"))
        config["block_out_channels"] = [args.width * channels for channels in config["block_out_channels"]]
        net = UNet2DConditionModel.from_config(config)
        wake_zeros(net)
        net.save_pretrained(folder / "unet")
    return str(folder)


def step_of(loop, folder: Path) -> Callable[[int], object]:
    made, log = Made(loop), Log(folder / "metrics.jsonl", 0, loop.config)
    return lambda number: one_step(loop, made, log)


def loop_on(folder: Path, model: str, args: argparse.Namespace, way: str | None = None):
    config = Train(
        pairs=str(folder / "pairs"),
        objective=Choice("dpo"),
        lora=Lora(rank=16),
        steps=10**6,
        batch_size=args.batch,
        validation=0,
        checkpoint_every=10**6,
        validate_every=10**6,
        device=args.device,
        precision=args.precision,
        **({} if way is None else WAYS[way]),
    )
    recipe = Recipe(run=str(folder / "run"), model=Model(model), train={"dpo": config})
    store, processes = Store.create(recipe.run), Processes(args.device)
    source = PairSource.find(store, config.pairs)
    plan = ModelLoader(store, recipe, config, store.train("dpo"))
    data = prepare(plan, read_pairs(source), source, processes)
    return make_trainer(plan, Job("dpo", config), data, processes)


class Made:
    """The loop's batches, made in a thread while the step before runs, as in the loop."""

    def __init__(self, loop) -> None:
        self.batches = ahead(loop.micro_batches, range(10**6))

    def next(self):
        return next(self.batches)


def one_step(loop, made: Made, log: Log) -> None:
    """Perform a step of TrainingLoop._steps without measuring or saving."""
    begun = time.monotonic()
    metrics = loop.update(loop.accumulate(made.next()))
    loop.step += 1
    log.write(loop.step, metrics | {"seconds": time.monotonic() - begun})
    loop.processes.sum(torch.tensor(0.0))


def bare(loop, batch) -> None:
    with precise(loop), torch.no_grad(), loop.policy.reference() as net:
        reference = loop.family.residuals(net, batch.latents, batch.draw, batch.condition)["image"]
    bare_loss(loop, batch, reference).backward()
    update(loop)


def bare_loss(loop, batch, reference):
    with precise(loop):
        policy = loop.family.residuals(loop.policy.net, batch.latents, batch.draw, batch.condition)["image"]
    e, r = policy.square().flatten(1).mean(1), reference.square().flatten(1).mean(1)
    z = 1000 * ((r - e)[: len(e) // 2] - (r - e)[len(e) // 2 :])
    return (-torch.nn.functional.logsigmoid(z)).mean()


def precise(loop):
    return autocast(loop.config, loop.processes.device)


def update(loop) -> None:
    torch.nn.utils.clip_grad_norm_(loop.policy.parameters(), 1.0)
    loop.optimizer.optimizer.step()
    loop.optimizer.optimizer.zero_grad(set_to_none=True)


def parts_of(loop, batches) -> dict[str, Callable[[int], object]]:
    """The parts of a step by name, one after the other; each uses what the one before left."""
    kept: dict[str, torch.Tensor] = {}

    def reference(i: int) -> None:
        batch = batches[i % len(batches)]
        with precise(loop), torch.no_grad(), loop.policy.reference() as net:
            kept["reference"] = loop.family.residuals(net, batch.latents, batch.draw, batch.condition)["image"]

    def policy(i: int) -> None:
        kept["loss"] = bare_loss(loop, batches[i % len(batches)], kept["reference"])

    return {
        "batch from the caches": lambda i: loop.micro_batches(i),
        "reference forward": reference,
        "policy forward": policy,
        "backward": lambda i: kept["loss"].backward(),
        "clipping and AdamW": lambda i: update(loop),
    }


def plain_step(model: str, folder: Path, args: argparse.Namespace):
    """One step without caches: images decoded and encoded, the prompt encoded, the adapter off for the reference."""
    pipe = load_pipeline(model, device=args.device)
    wiring = capture(pipe, height=args.side, width=args.side)
    schedule = Schedule.of(pipe.scheduler, wiring.prediction)
    policy = getattr(pipe, wiring.denoiser)
    add_lora(policy, 16, 16)
    if args.plain_checkpointing:
        policy.enable_gradient_checkpointing()
    policy.train()
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    rows = pq.read_table(folder / "pairs" / "train.parquet").to_pylist()

    def step(number: int) -> None:
        chosen = [rows[(number * args.batch + i) % len(rows)] for i in range(args.batch)]
        sides = [Image.open(io.BytesIO(row[side])).convert("RGB") for side in ("jpg_0", "jpg_1") for row in chosen]
        prompts = [row["caption"] for row in chosen]
        with torch.no_grad():
            latents = encode(pipe, wiring, sides)
            trees = capture_conditions(pipe, wiring, prompts, height=args.side, width=args.side, call={})
            condition = collate(wiring, trees * 2)
        draw = torch.Generator().manual_seed(number)
        noise = (
            torch.randn(latents[: args.batch].shape, generator=draw)
            .to(args.device)
            .repeat(2, *[1] * (latents.dim() - 1))
        )
        when = torch.stack([schedule.draw_time(draw) for _ in chosen]).to(args.device).repeat(2)
        x_t, target = schedule.add_noise(latents, noise, when), schedule.target(latents, noise, when)
        with torch.no_grad(), layers_active([layer for _, layer in lora_layers(policy)], []):
            r = (predict(policy, wiring, x_t, when, condition) - target).square().flatten(1).mean(1)
        e = (predict(policy, wiring, x_t, when, condition) - target).square().flatten(1).mean(1)
        z = 1000 * ((r - e)[: args.batch] - (r - e)[args.batch :])
        (-torch.nn.functional.logsigmoid(z)).mean().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


if __name__ == "__main__":
    main()
