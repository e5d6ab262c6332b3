"""Sample from the wardrobe's pipeline, and measure prompt fulfilment and the variety of unspecified attributes.

    python pipelines/tiny/gate.py prefkit/tiny/sd --n 256 --seed 0 --steps 20 --guidance 3 --out gate.png

Half of the n images show (item, colour) pairs from training, half show pairs that were never rendered; the gate is the
accuracy on both together (item .85, colour .95, background .98). A further n / 4 images have captions without a colour,
with eight seeds per caption, and another n / 4 have captions of held-out outfits. `spread` is the entropy of the
recognized colours, as a fraction of the entropy of ten equally frequent colours; `own` is the same within a caption.
The image OUT shows the first images of each row with the recognized content. Takes about 2 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from machine import Machine
from PIL import Image, ImageDraw

from prefkit.tiny.captions import Asked, asked
from prefkit.tiny.domain import COLOURS
from prefkit.tiny.requests import requests
from prefkit.tiny.truth import Seen, read_many

ASPECTS = ("item", "colour", "background", "pattern")
SEEDS = 8  # images per caption without a colour
ROWS = {"trained pairs": ("full", "train"), "held-out pairs": ("full", "test"), "colour open": ("open", "train")}
ROWS |= {"held-out outfits": ("outfit", "test")}


def prompts(name: str, n: int, seed: int) -> list[str]:
    """Return n prompts for a row of the table; outside of the rows of kind `full`, each prompt occurs SEEDS times."""
    kind, split = ROWS[name]
    different = n if kind == "full" else n // SEEDS
    found = requests(kind, **{"train": 0, "test": 0, split: different}, seed=seed)
    return [r.prompt for r in found for _ in range(n // different)]


def sample(
    pipe: StableDiffusionPipeline, texts: list[str], machine: Machine, args: argparse.Namespace
) -> list[Image.Image]:
    """Generate one image per prompt; image i starts from the noise of generator seed (--seed) * 10,000 + i."""
    images = []
    for start in range(0, len(texts), 64):
        batch = texts[start : start + 64]
        noise = [torch.Generator().manual_seed(args.seed * 10_000 + start + i) for i in range(len(batch))]
        with machine.autocast():
            made = pipe(batch, num_inference_steps=args.steps, guidance_scale=args.guidance, generator=noise)
        images += made.images
    return images


def right(wanted: list[Asked], seen: list[Seen], aspect: str) -> list[bool]:
    """Return, for the images whose prompt names the aspect, True if the image has it as requested."""
    pairs = [(getattr(w, aspect), getattr(s, aspect)) for w, s in zip(wanted, seen)]
    return [want == got for want, got in pairs if want is not None]


def spread(colours: list[str | None], among: int) -> float:
    """Return the entropy of the colours divided by the entropy of `among` equally frequent colours."""
    share = np.array(list(Counter(c for c in colours if c).values()), float)
    share /= share.sum()
    return float(-(share * np.log(share)).sum() / np.log(among))


def line(name: str, wanted: list[Asked], seen: list[Seen]) -> str:
    shares = []
    for aspect in ASPECTS:
        hits = right(wanted, seen, aspect)
        shares.append(f"{np.mean(hits):10.3f}" if hits else f"{'-':>10}")
    text = f"{name:18}{len(seen):5}" + "".join(shares)
    colours = [s.colour for s in seen]
    if wanted[0].colour is None:
        own = [spread(colours[i : i + SEEDS], SEEDS) for i in range(0, len(colours), SEEDS)]
        counts = " ".join(f"{c} {n}" for c, n in Counter(filter(None, colours)).most_common())
        text += f"   spread {spread(colours, len(COLOURS)):.2f}, own {np.mean(own):.2f}: {counts}"
    return text


def sheet(rows: list[tuple[list[str], list[Image.Image], list[Seen]]], path: str) -> None:
    """Save the first 24 images of each row, twelve per line, with the prompt and the recognized content below."""
    side, text = 128, 40
    picture = Image.new("RGB", (12 * side, 2 * len(rows) * (side + text)), "white")
    pen = ImageDraw.Draw(picture)
    for number, (texts, images, seen) in enumerate(rows):
        for i, image in enumerate(images[:24]):
            x, y = i % 12 * side, (2 * number + i // 12) * (side + text)
            picture.paste(image.resize((side, side), Image.Resampling.BICUBIC), (x, y))
            short = (
                texts[i].removesuffix(" background").replace(" to go with ", "\nto go with ").replace(" on a ", "\non ")
            )
            pen.multiline_text((x + 2, y + side), f"{short}", fill="black", font_size=9, spacing=0)
            pen.text((x + 2, y + side + 29), f"= {seen[i].colour} {seen[i].item}", fill="gray", font_size=9)
    picture.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline")
    parser.add_argument("--n", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--out")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    machine = Machine(args.threads)
    pipe = StableDiffusionPipeline.from_pretrained(args.pipeline, dtype=torch.float32).to(machine.device)
    pipe.set_progress_bar_config(disable=True)
    print(f"{args.steps} DDIM steps, guidance {args.guidance:g}, seed {args.seed}; {machine}")
    print(f"{'':18}{'n':>5}" + "".join(f"{aspect:>10}" for aspect in ASPECTS))
    rows, both, began = [], ([], []), time.monotonic()
    for name, (kind, _) in ROWS.items():
        texts = prompts(name, args.n // 2 if kind == "full" else args.n // 4, args.seed)
        images = sample(pipe, texts, machine, args)
        wanted, seen = [asked(text) for text in texts], read_many(images)
        print(line(name, wanted, seen), flush=True)
        rows.append((texts, images, seen))
        if kind == "full":
            both[0].extend(wanted)
            both[1].extend(seen)
        if name == "held-out pairs":
            print(line("gate", *both), flush=True)
    print(f"{time.monotonic() - began:.0f} s")
    if args.out:
        sheet(rows, args.out)


if __name__ == "__main__":
    main()
