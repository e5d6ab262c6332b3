"""An experiment with two garments in one image: `a red dress with a blue handbag on a plain mint background`.

    python pipelines/tiny/outfits.py render WORK/two.npz --n 24000
    python pipelines/tiny/outfits.py train WORK/two.npz --out WORK/two --samples 176000
    python pipelines/tiny/outfits.py gate WORK/two --n 128
    python pipelines/tiny/outfits.py truth --n 500

The first garment is on the left and the second on the right, each half as large as in images with one garment, on plain
backgrounds. Training continues from the text encoder and U-Net of the embedded pipeline; the autoencoder is frozen. The
`gate` scales each half of an image up and recognizes it with prefkit/tiny/truth.py; `truth` measures the accuracy of
this recognition on renders. Half of the gate's prompts combine garments that training never combined. The results are
in prefkit/tiny/sd/README.md.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from machine import Checkpoint, Machine
from PIL import Image
from unet import BATCH, Trainer

from prefkit import tiny
from prefkit.tiny.art import recolour
from prefkit.tiny.captions import _noun, held_out
from prefkit.tiny.domain import BACKGROUNDS, COLOURS, ITEMS
from prefkit.tiny.scene import SHADOW, backdrop, place, shadow
from prefkit.tiny.truth import Seen, read_many

LISTS = (list(ITEMS), list(COLOURS), list(ITEMS), list(COLOURS), list(BACKGROUNDS))
SIDE, WINDOW = 24.0, 33  # px: longest side of a garment, and side of the window in which it is recognized
HELD_OUT = 0.15  # of all pairs of garments


def never_joined(first: str, second: str) -> bool:
    return held_out(HELD_OUT, "two", *sorted((first, second)))


def drawn(rng: np.random.Generator, unseen: bool) -> tuple[str, ...]:
    """Draw (item, colour, item, colour, background); the two items belong to different parts of an outfit."""
    while True:
        row = tuple(names[rng.integers(len(names))] for names in LISTS)
        if ITEMS[row[0]] != ITEMS[row[2]] and never_joined(row[0], row[2]) == unseen:
            return row


def prompt(row: tuple[str, ...]) -> str:
    return f"{_noun(row[0], row[1])} with {_noun(row[2], row[3])} on a plain {row[4]} background"


def render(row: tuple[str, ...], rng: np.random.Generator) -> Image.Image:
    image = Image.fromarray(backdrop(row[4], "plain"))
    for item, colour, x in ((row[0], row[1], -15.5), (row[2], row[3], 15.5)):
        side, angle, (dx, dy) = SIDE + rng.uniform(-1.5, 1.5), rng.uniform(-3, 3), rng.uniform(-1, 1, 2)
        piece = place(recolour(item, colour), side, angle, (x + dx, dy))
        image.paste(SHADOW, (1, 2), shadow(piece))
        image.paste(piece, (0, 0), piece)
    return image


def one(number: int, seed: int) -> tuple[np.ndarray, list[int]]:
    rng = np.random.default_rng([seed, number])
    row = drawn(rng, unseen=False)
    return np.asarray(render(row, rng)), [names.index(name) for names, name in zip(LISTS, row)]


def read_two(images: list[Image.Image]) -> list[tuple[Seen, Seen]]:
    """Recognize the left and the right half of each image."""
    y = (64 - WINDOW) // 2
    boxes = [(x, y, x + WINDOW, y + WINDOW) for x in (0, 64 - WINDOW)]
    parts = [image.crop(box).resize((64, 64), Image.Resampling.BICUBIC) for image in images for box in boxes]
    seen = read_many(parts)
    return list(zip(seen[::2], seen[1::2]))


def table(rows: list[tuple[str, ...]], images: list[Image.Image]) -> str:
    """Return a line with the fractions of attributes, garments and whole images that match the prompt."""
    found = read_two(images)
    item = [(a.item == r[0], b.item == r[2]) for r, (a, b) in zip(rows, found)]
    colour = [(a.colour == r[1], b.colour == r[3]) for r, (a, b) in zip(rows, found)]
    ground = [a.background == r[4] and b.background == r[4] for r, (a, b) in zip(rows, found)]
    whole = np.all(np.c_[item, colour, ground], axis=1)
    return (
        f"n {len(rows)}  item {np.mean(item):.3f}  colour {np.mean(colour):.3f}  background {np.mean(ground):.3f}  "
        f"both garments {np.all(item, 1).mean():.3f}  everything {whole.mean():.3f}"
    )


class TwoTrainer(Trainer):
    """Continues training the embedded U-Net and text encoder on scenes with two garments."""

    def __init__(self, images: np.ndarray, rows: np.ndarray, args: argparse.Namespace) -> None:
        pipe: Any = StableDiffusionPipeline.from_pretrained(tiny.PIPELINE, dtype=torch.float32)
        vae: AutoencoderTiny = pipe.vae
        super().__init__(vae, images, rows, args)
        for models in (self.models, self.smooth):
            models["text"].load_state_dict(pipe.text_encoder.state_dict())
            models["unet"].load_state_dict(pipe.unet.state_dict())

    def read(self, rows: np.ndarray) -> list[Any]:
        return [tuple(names[i] for names, i in zip(LISTS, row)) for row in rows]

    def caption(self, scene: Any, draw: np.random.Generator) -> str:
        return prompt(scene)


def train(args: argparse.Namespace) -> None:
    with np.load(args.source) as file:
        trainer = TwoTrainer(file["images"], file["scenes"], args)
    checkpoint = Checkpoint(f"{args.out}.pt")
    if state := checkpoint.load():
        trainer.resume(state)
    began, first = time.monotonic(), trainer.step
    while trainer.step < trainer.steps:
        errors = trainer.advance()
        if trainer.step % 50 == 0:
            speed = (trainer.step - first) * BATCH / (time.monotonic() - began)
            print(f"step {trainer.step}/{trainer.steps}  eps-MSE {float(errors[0]):.4f}  {speed:.0f} img/s", flush=True)
        if checkpoint.due() or trainer.step == trainer.steps:
            checkpoint.save(trainer.state())
        if trainer.step % 500 == 0 or trainer.step == trainer.steps:
            trainer.pipeline().save_pretrained(args.out)
            print(f"step {trainer.step}: held-back eps-MSE {trainer.held_back():.4f}", flush=True)


def gate(args: argparse.Namespace) -> None:
    machine = Machine(args.threads)
    pipe: Any = StableDiffusionPipeline.from_pretrained(args.source, dtype=torch.float32).to(machine.device)
    pipe.set_progress_bar_config(disable=True)
    everything: tuple[list[tuple[str, ...]], list[Image.Image]] = ([], [])
    for name, unseen in (("joined in training", False), ("never joined", True)):
        rng = np.random.default_rng([args.seed, 2**32, unseen])
        rows, images = [drawn(rng, unseen) for _ in range(args.n // 2)], []
        for start in range(0, len(rows), 32):
            part = rows[start : start + 32]
            noise = [torch.Generator().manual_seed(start + i) for i in range(len(part))]
            images += pipe(
                [prompt(r) for r in part], num_inference_steps=20, guidance_scale=3.0, generator=noise
            ).images
        print(f"{name:20}{table(rows, images)}", flush=True)
        everything[0].extend(rows)
        everything[1].extend(images)
    print(f"{'both':20}{table(*everything)}")
    sheet = Image.new("RGB", (8 * 128, 2 * 128))
    for i, image in enumerate(everything[1][:: max(args.n // 16, 1)][:16]):
        sheet.paste(image.resize((128, 128), Image.Resampling.BICUBIC), (i % 8 * 128, i // 8 * 128))
    sheet.save(f"{args.source}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["render", "train", "gate", "truth"])
    parser.add_argument("source", nargs="?")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--n", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=176000)
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.what == "render":
        with get_context("spawn").Pool(2) as pool:
            made = pool.map(partial(one, seed=args.seed), range(args.n), chunksize=250)
        np.savez(args.source, images=np.stack([m[0] for m in made]), scenes=np.array([m[1] for m in made]))
    elif args.what == "train":
        train(args)
    elif args.what == "gate":
        gate(args)
    else:
        rng = np.random.default_rng([args.seed, 2**33])
        rows = [drawn(rng, unseen=False) for _ in range(args.n)]
        print(f"{'fresh renders':20}{table(rows, [render(row, rng) for row in rows])}")


if __name__ == "__main__":
    main()
