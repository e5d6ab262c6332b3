"""Generate against the bare pipeline call, as ratios in one run.

    python benchmarks/generate.py [--kind sd] [--batch 8] [--batches 6] [--steps 20]

bare    the pipeline's own call on the same batches, images kept in memory
loop    a typical user script: one call per prompt with num_images_per_prompt, images saved as PNG
stage   `run_generate`: seeds per candidate, prompt encoded once, latents kept, images encoded and stored
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from prefkit.config import Generate, Model, Recipe, Requests
from prefkit.generate.run import run_generate
from prefkit.models.load.pipeline import load_pipeline
from prefkit.output import table
from prefkit.store import Store
from prefkit.testing import tiny_pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a pipeline folder or Hub id; default: a tiny random one")
    parser.add_argument("--kind", default="sd")
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or str(tiny_pipeline(args.kind, Path(folder) / "model"))
        prompts = [f"a photo of thing {i}" for i in range(args.batches)]
        size = {"height": args.side, "width": args.side, "num_inference_steps": args.steps}
        pipe = load_pipeline(model)
        pipe.set_progress_bar_config(disable=True)

        def bare() -> None:
            for prompt in prompts:
                seeds = [torch.Generator().manual_seed(i) for i in range(args.batch)]
                pipe([prompt] * args.batch, generator=seeds, **size)

        def loop(number: int) -> None:
            for k, prompt in enumerate(prompts):
                out = pipe(prompt, num_images_per_prompt=args.batch, generator=torch.Generator().manual_seed(k), **size)
                for i, image in enumerate(out.images):
                    image.save(Path(folder) / f"{number}-{k}-{i}.png")

        def stage(name: str, prompts: list[str]) -> float:
            settings = Generate(
                n=args.batch, steps=args.steps, height=args.side, width=args.side, batch_size=args.batch
            )
            (Path(folder) / "p.txt").write_text("\n".join(prompts), encoding="utf-8")
            recipe = Recipe(
                run=f"{folder}/{name}",
                model=Model(model),
                requests=Requests(f"{folder}/p.txt", test_share=0.0),
                generate={"own": settings},
            )
            return run_generate(Store.create(recipe.run), recipe, "own")["seconds"]

        bare()  # warm up
        times: dict[str, list[float]] = {"bare": [], "loop": [], "stage": [], "start": []}
        for number in range(args.rounds):  # interleaved, so that a noisy minute hits all three
            times["bare"].append(timed(bare))
            times["loop"].append(timed(lambda n=number: loop(n)))
            times["start"].append(stage(f"first{number}", prompts[:1]))
            times["stage"].append(stage(f"run{number}", prompts))
        best = {name: min(values) for name, values in times.items()}
        start = best.pop("start")  # loading, the proof of the wiring, and one batch: the same however much is made
        best["stage"] = (best["stage"] - start) * args.batches / (args.batches - 1)
        rows = [
            {"what": k, "seconds": round(v, 3), "ratio to bare": round(v / best["bare"], 3)} for k, v in best.items()
        ]
        print(table(rows))
        print(
            f"{args.batches} batches of {args.batch}, {args.steps} steps, {args.side} px; `stage` without its start "
            f"(loading, proof of the wiring and the first batch: {start:.1f} s)"
        )


def timed(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
