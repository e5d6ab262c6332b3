"""Measure by the reader what a base generator draws for explicit and implicit prompts of held-out tuples.

    python pipelines/science/check_base.py WORK/base --laws ripeness,melting [--n 40] [--seed 0] [--sheet OUT.png]

Per law, prompt and group (the right look is the `usual` one, or the law `contradicts` it): the shares of pictures with the right
look, with another look of the law, and that are not recognized as the subject; then, without a threshold and without other
subjects, the share of right looks. --sheet: the pictures of implicit (above) and explicit prompts (below), where the law contradicts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from laws import LAWS
from PIL import Image
from reader import read
from tuples import TRAIN, Tuple, named
from tuples import tuples as all_tuples

from prefkit.errors import PrefkitError, UsageError

STEPS, GUIDANCE, BATCH = 20, 3.0, 16


def chosen(law: str, usual: bool, n: int, seed: int) -> list[Tuple]:
    """Draw at most n held-out tuples."""
    made = [one for one in all_tuples([law]) if one.usual == usual and one.split != TRAIN]
    order = np.random.default_rng([seed, usual]).permutation(len(made))[:n]
    return [made[i] for i in order]


@torch.inference_mode()
def generate(pipe: object, prompts: Sequence[str], seed: int) -> list[Image.Image]:
    """Draw a picture per prompt; picture i has the seed `seed` + i."""
    images: list[Image.Image] = []
    for start in range(0, len(prompts), BATCH):
        part = list(prompts[start : start + BATCH])
        seeds = [torch.Generator().manual_seed(seed + start + i) for i in range(len(part))]
        images += pipe(part, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=seeds).images
    return images


def shares(images: Sequence[Image.Image], made: Sequence[Tuple]) -> list[float]:
    """Return the shares right, other look, not recognized; and right without a threshold."""
    seen = [read(image, one.law, one.subject) for image, one in zip(images, made)]
    loose = [read(image, one.law, one.subject, -np.inf, 0) for image, one in zip(images, made)]
    right = [(a.look, a.setting) == (b.look, b.setting) for a, b in zip(seen, made)]
    unknown = [a.look is None for a in seen]
    forced = [(a.look, a.setting) == (b.look, b.setting) for a, b in zip(loose, made)]
    return [
        float(np.mean(right)),
        float(1 - np.mean(right) - np.mean(unknown)),
        float(np.mean(unknown)),
        float(np.mean(forced)),
    ]


def contact(columns: Sequence[tuple[Image.Image, Image.Image]]) -> Image.Image:
    """Return a sheet with the pictures of implicit prompts above those of explicit prompts."""
    sheet = Image.new("RGB", (98 * max(len(columns), 1), 196), "white")
    for x, pair in enumerate(columns):
        for y, image in enumerate(pair):
            sheet.paste(image.resize((96, 96), Image.Resampling.BICUBIC), (98 * x, 98 * y))
    return sheet


def measure(folder: Path, names: Sequence[str], n: int, seed: int, sheet: Path | None) -> None:
    """Print the table, and write the sheet."""
    from diffusers import StableDiffusionPipeline

    if not (folder / "model_index.json").is_file():
        raise UsageError(f"{folder} is not a pipeline. Train one: python pipelines/science/base.py --out {folder}")
    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    print(
        "| law | prompt | group | n | right | other look | not recognized | right, no threshold |\n|---|---|---|---|---|---|---|---|"
    )
    columns = []
    for law in names:
        for group, usual in (("contradicts", False), ("usual", True)):
            made = chosen(law, usual, n, seed)
            drawn = {
                tier: generate(pipe, [getattr(one, tier) for one in made], seed) for tier in ("implicit", "explicit")
            }
            for tier, images in drawn.items():
                values = " | ".join(f"{value:.2f}" for value in shares(images, made))
                print(f"| {law} | {tier} | {group} | {len(made)} | {values} |", flush=True)
            if not usual:
                columns += list(zip(drawn["implicit"], drawn["explicit"]))[:8]
    if sheet:
        contact(columns).save(sheet)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("--laws", required=True, help="those of the base, separated by commas")
    parser.add_argument("--n", type=int, default=40, help="tuples per law and group")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path)
    args = parser.parse_args(arguments)
    try:
        if args.n < 1 or not named(args.laws) or not set(named(args.laws)) <= set(LAWS):
            raise UsageError(f"--n must be at least 1, and --laws a list of these: {', '.join(LAWS)}.")
        measure(args.base, named(args.laws), args.n, args.seed, args.sheet)
    except PrefkitError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
