"""Measure whether a generator sees the outfit: the gate before any preference is trained on it.

    python pipelines/fashion/generator_gate.py MODEL [--n 192] [--seed 1] [--split test]

Draws n held-out outfits (of pieces that no training outfit has; the families equally often), and generates the missing item
of each with the picture of its own outfit and with that of another one, from the same noise. The program in
prefkit/tiny/truth.py reads item and colour; a picture obeys if the item is the one asked for and its colour goes with all
three others (rule.py). The gate is passed if the share that obeys is at least .15 larger with the own outfit than with
another one, and at least .9 of the pictures with the own outfit show the item asked for; otherwise the exit code is 1.
Intervals are 95 % bootstrap intervals over outfits. --split train is for choosing the guidance.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline
from generator import draw_sample, picture_of
from machine import Machine
from pictured import prompt
from PIL import Image
from rule import goes_with

from prefkit.evaluate.statistics import bootstrap_interval
from prefkit.tiny.domain import Scene
from prefkit.tiny.truth import read_many

GAP, ITEM = 0.15, 0.9
BATCH = 32


def sample(pipe: Any, wanted: list[Scene], pictures: list[Image.Image], args: argparse.Namespace) -> list[Image.Image]:
    """Generate one image per scene; image i starts from the noise of generator seed (--seed) * 10,000 + i."""
    made: list[Image.Image] = []
    for start in range(0, len(wanted), BATCH):
        batch = slice(start, start + BATCH)
        texts = [prompt(scene.item, scene.background) for scene in wanted[batch]]
        noise = [torch.Generator().manual_seed(args.seed * 10_000 + start + i) for i in range(len(texts))]
        scales = {"guidance_scale": args.guidance, "image_guidance_scale": args.image_guidance}
        call = {"image": pictures[batch], "num_inference_steps": args.steps, "generator": noise} | scales
        with args.machine.autocast():
            made += pipe(texts, **call).images
    return made


def measure(pipe: Any, args: argparse.Namespace) -> bool:
    """Print the table, and return True if the gate is passed."""
    rng = np.random.default_rng([args.seed, 2])
    drawn = [draw_sample(args.split, number, rng) for number in range(args.n)]
    drawn = [drawn[i] for i in rng.permutation(args.n)]
    own = [picture_of(others, rng) for others, _ in drawn]
    wanted = [scene for _, scene in drawn]
    results = {}
    print(f"{'picture':10}{'item':>6}{'obeys':>7}   [95 %]          colours", flush=True)
    for name, pictures in {"own": own, "another": own[1:] + own[:1]}.items():
        seen = read_many(sample(pipe, wanted, pictures, args))
        item = np.array([s.item == w.item for s, w in zip(seen, wanted)])
        fits = np.array([goes_with(s.colour, [c for _, c in others]) for s, (others, _) in zip(seen, drawn)])
        results[name] = item, item & fits
        colours = " ".join(f"{c} {n}" for c, n in Counter(s.colour for s in seen).most_common())
        print(
            f"{name:10}{item.mean():6.3f}{(item & fits).mean():7.3f}   {interval(item & fits)}  {colours}", flush=True
        )
    gap = results["own"][1].astype(float) - results["another"][1]
    item = results["own"][0]
    print(
        f"own - another {gap.mean():.3f} {interval(gap)}, at least {GAP}; item {item.mean():.3f} {interval(item)}, at least {ITEM}"
    )
    return bool(gap.mean() >= GAP and item.mean() >= ITEM)


def interval(values: np.ndarray) -> str:
    low, high = bootstrap_interval(values)
    return f"[{low:.3f}, {high:.3f}]"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--n", type=int, default=192, help="number of outfits; a multiple of 6 for equal families")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--split", choices=("train", "test"), default="test")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--guidance", type=float, default=1.5)
    parser.add_argument("--image-guidance", type=float, default=1.5)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    args.machine = Machine(args.threads)
    pipe = StableDiffusionInstructPix2PixPipeline.from_pretrained(args.model, dtype=torch.float32)
    pipe.to(args.machine.device).set_progress_bar_config(disable=True)
    print(
        f"{args.n} outfits ({args.split}), {args.steps} steps, guidance {args.guidance:g} and {args.image_guidance:g}"
    )
    passed = measure(pipe, args)
    print("passed" if passed else "missed")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
