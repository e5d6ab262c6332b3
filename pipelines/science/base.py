"""Train the base generator of the small world: real Stable Diffusion classes, with the wardrobe's autoencoder.

    python pipelines/science/base.py --out WORK/base [--laws ripeness,melting] [--samples 300000] [--seed 0] [--threads 1]
    python pipelines/science/base.py --out WORK/fast --fast

A subclass of the wardrobe's trainer (pipelines/tiny/unet.py), with pictures and captions of this world. Captions describe the
look (explicit prompts); a quarter of them also name the subject's trait. Where a subject has its usual look, 40 % of the captions
are its bare name. No caption has a condition. Therefore the base draws what explicit prompts say, and for a prompt with an
unknown circumstance the usual look. Held-out subjects are drawn too, as a pretrained model has seen them.

Sampling starts at time START of 1000: the scheduler's betas end there. At 999, it multiplies the network's error by 156, which made a
third of the samples noise after 100,000 pictures (the network's group norms hide the input's scale, so it guesses it with an error
of 3 %); at 800, by 25. For the same reason, errors at the noisiest times (signal-to-noise below NOISY) count EARLY times, also in the
losses that are printed.

--fast: two laws, 200 steps of 16. It tests the code and claims no quality. The same command continues an interrupted run; with
fewer --samples than the run has had, it only writes the pipeline.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline
from laws import LAWS
from looks import Scene, render
from tuples import named
from tuples import tuples as all_tuples
from words import bare, described, with_trait

sys.path.append(str(Path(__file__).parents[1] / "tiny"))
from machine import follow
from unet import BATCH, Trainer
from vae import HELD_BACK

from prefkit.errors import PrefkitError, UsageError
from prefkit.tiny import PIPELINE

DRAWN = tuple(name for name, law in LAWS.items() if not law.scorer_only)
BARE, TRAIT = 0.4, 0.25  # fractions of captions
NOISY, EARLY = 0.003, 20.0
START = 800
PICTURES = 24  # rendered per subject, look and setting
FAST = {"laws": "ripeness,melting", "samples": 3200, "batch": 16}


def scenes(names: Sequence[str]) -> list[Scene]:
    """Return every subject of the laws in every look and setting."""
    return [
        Scene(name, subject, look, setting)
        for name in names
        for subject, look, setting in product(
            LAWS[name].kind_of, LAWS[name].looks, tuple(LAWS[name].settings.values()) or ("",)
        )
    ]


def caption(scene: Scene, draw: np.random.Generator) -> str:
    """Draw a base caption of a scene."""
    law = LAWS[scene.law]
    if scene.look == law.usual[law.kind_of[scene.subject]] and draw.random() < BARE:
        text = bare(scene.law, scene.subject, scene.setting)
    else:
        text = described(scene.law, scene.subject, scene.look, scene.setting, int(draw.integers(2)))
    return with_trait(text, law.trait_of[scene.subject]) if draw.random() < TRAIT else text


def vocabulary(names: Sequence[str]) -> list[str]:
    """Return the words of all prompts and captions of the laws, in alphabetical order."""
    texts = [text for one in all_tuples(names) for text in (one.implicit, one.explicit, *one.superficial)]
    texts += [bare(s.law, s.subject, s.setting) for s in scenes(names)]
    texts += [described(s.law, s.subject, s.look, s.setting, form) for s in scenes(names) for form in (0, 1)]
    texts += [with_trait("", trait) for name in names for trait in LAWS[name].trait_of.values()]
    return sorted({word for text in texts for word in re.findall("[a-z]+", text.lower())})


def _render(number: int, drawn: Sequence[Scene], seed: int) -> np.ndarray:
    return np.asarray(render(drawn[number % len(drawn)], seed * 1_000_003 + number))


def render_many(drawn: Sequence[Scene], count: int, seed: int, processes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures uint8 [count, 64, 64, 3] of all scenes in turn, shuffled, and the scenes' indices [count]."""
    numbers = np.random.default_rng(seed).permutation(count)
    if processes == 1:
        made = [_render(number, drawn, seed) for number in numbers]
    else:
        with get_context("spawn").Pool(processes) as pool:
            made = pool.map(partial(_render, drawn=drawn, seed=seed), numbers, chunksize=100)
    return np.stack(made), numbers % len(drawn)


class ScienceTrainer(Trainer):
    """The wardrobe's trainer with this world's pictures, captions and words."""

    def __init__(self, args: argparse.Namespace) -> None:
        names = named(args.laws)
        self.drawn = scenes(names)
        self.words, self.batch, self.sheet = vocabulary(names), args.batch, sheet_captions(names)
        count = max(args.pictures * len(self.drawn), HELD_BACK + args.batch)
        images, indices = render_many(self.drawn, count, args.seed, args.processes)
        super().__init__(AutoencoderTiny.from_pretrained(PIPELINE / "vae"), images, indices, args)

    def read(self, rows: np.ndarray) -> list[Scene]:
        return [self.drawn[row] for row in rows]

    def caption(self, scene: Scene, draw: np.random.Generator) -> str:
        return caption(scene, draw)

    def pipeline(self) -> StableDiffusionPipeline:
        """Return the pipeline, with the same betas up to START."""
        pipe = super().pipeline()
        first, last, all_times = (
            pipe.scheduler.config[name] for name in ("beta_start", "beta_end", "num_train_timesteps")
        )
        last = first + (last - first) * (START - 1) / (all_times - 1)
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, num_train_timesteps=START, beta_end=last)
        return pipe

    def errors(self, models: Any, chosen: np.ndarray, draw: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Return errors [B, 2], larger at the noisiest times, and signal-to-noise ratios [B]."""
        errors, ratio = super().errors(models, chosen, draw)
        return errors * torch.where(ratio < NOISY, EARLY, 1.0)[:, None], ratio


def sheet_captions(names: Sequence[str]) -> list[str]:
    """Return eight pairs of an implicit and an explicit prompt where the law contradicts the usual look."""
    made = [one for one in all_tuples(names) if not one.usual]
    chosen = [made[i] for i in np.linspace(0, len(made) - 1, 8).astype(int)]
    return [text for one in chosen for text in (one.implicit, one.explicit)]


def check(args: argparse.Namespace) -> None:
    """Raise UsageError for laws that the generator does not draw, and for numbers out of range."""
    names = named(args.laws)
    if not names or not set(names) <= set(DRAWN):
        raise UsageError(f"--laws {args.laws!r}: give one or more of {', '.join(DRAWN)}, separated by commas.")
    if min(args.samples // max(args.batch, 1), args.batch, args.pictures, args.processes) < 1:
        raise UsageError("--samples must be at least one batch; --pictures and --processes at least 1.")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--laws", default=",".join(DRAWN), help="separated by commas; default: all that are drawn")
    parser.add_argument("--samples", type=int, default=300000)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--pictures", type=int, default=PICTURES, help="rendered per subject, look and setting")
    parser.add_argument("--lr", type=float, default=1.2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--processes", type=int, default=1, help="for rendering")
    parser.add_argument("--fast", action="store_true", help="two laws, 200 steps of 16: a test of the code")
    args = parser.parse_args(arguments)
    if args.fast:
        vars(args).update(FAST)
    try:
        check(args)
        follow(ScienceTrainer(args), args.batch, "eps-MSE, in means")
    except PrefkitError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
