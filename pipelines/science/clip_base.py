"""Train the CLIP model from which SciScore is fitted: it knows what things look like, and no law.

    python pipelines/science/clip_base.py --out WORK/clip [--samples 51200] [--seed 0] [--threads 1]
    python pipelines/science/clip_base.py --out WORK/fast --fast

A subclass of the wardrobe's trainer (pipelines/tiny/clip.py), with pictures of all laws and captions of base.py: looks, traits and
bare names, never conditions. Two cross-entropies: within the batch, where captions that are true for another picture do not
count, and between a picture's caption and those of the same subject in another look, of another subject in the same look, and of
another setting. Half of the pictures are decoded from noisy latents, to resemble generated ones. The tokenizer has a token per
word of all prompts, but words of conditions occur in no caption, so their embeddings stay random. OUT is a folder for open_clip's
`local-dir:OUT`. The same command continues a stopped run. --fast: two laws and 20 steps, a test of the code.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from base import caption, render_many, scenes, vocabulary
from laws import LAWS
from looks import Scene
from tuples import named
from words import bare, described

sys.path.append(str(Path(__file__).parents[1] / "tiny"))
import clip
from machine import follow

from prefkit.errors import PrefkitError, UsageError
from prefkit.tiny import PIPELINE

PICTURES = 16  # rendered per subject, look and setting
OTHERS = 3  # exchanged captions per picture
FAST = {"laws": "rust,melting", "samples": 20 * clip.BATCH, "pictures": 2}


class ScienceClip(clip.Trainer):
    """The wardrobe's trainer with this world's pictures, captions and losses."""

    def __init__(self, args: argparse.Namespace) -> None:
        names = named(args.laws)
        drawn, self.words = scenes(names), vocabulary(names)
        images, indices = render_many(drawn, args.pictures * len(drawn), args.seed, 1)
        super().__init__(str(PIPELINE / "vae"), images, [drawn[i] for i in indices], args)

    def loss(self, draw: np.random.Generator) -> torch.Tensor:
        """Return two cross-entropies: within the batch, and with exchanged captions."""
        chosen = draw.integers(len(self.scenes), size=clip.BATCH)
        drawn = [self.scenes[i] for i in chosen]
        texts = [caption(scene, draw) for scene in drawn]
        false = [text for scene in drawn for text in exchanged(scene, draw)]
        seen, said = self.encoded(chosen, [texts, false], draw)
        true = torch.tensor([[is_true(text, scene) for text in texts] for scene in drawn], device=seen.device)
        true.fill_diagonal_(False)
        within = (seen @ said[0].T).masked_fill(true, -torch.inf)
        others = torch.einsum("bd,bkd->bk", seen, said[1].unflatten(0, (-1, OTHERS)))
        own = torch.arange(clip.BATCH, device=seen.device)
        batch = (F.cross_entropy(within, own) + F.cross_entropy(within.T, own)) / 2
        exchange = F.cross_entropy(torch.cat([within.diagonal()[:, None], others], 1), torch.zeros_like(own))
        return torch.stack([batch, exchange])


def exchanged(scene: Scene, draw: np.random.Generator) -> list[str]:
    """Return captions that are wrong for a scene: another look, another subject, and another setting (or look)."""
    law, form = LAWS[scene.law], int(draw.integers(2))

    def other(values: Sequence[str], own: str) -> str:
        return str(draw.choice([value for value in values if value != own]))

    look, subject = other(law.looks, scene.look), other(tuple(law.kind_of), scene.subject)
    settings = tuple(law.settings.values())
    third = (scene.look, other(settings, scene.setting)) if settings else (other(law.looks, scene.look), scene.setting)
    return [
        described(scene.law, scene.subject, look, scene.setting, form),
        described(scene.law, subject, scene.look, scene.setting, form),
        described(scene.law, scene.subject, *third, 1 - form),
    ]


def is_true(text: str, scene: Scene) -> bool:
    """True if a caption, without its trait, fits a scene. A bare name fits every look, so it is never a wrong caption."""
    return text.partition(",")[0] in true_of(scene)


_TRUE: dict[Scene, frozenset[str]] = {}


def true_of(scene: Scene) -> frozenset[str]:
    if scene not in _TRUE:
        texts = [described(scene.law, scene.subject, scene.look, scene.setting, form) for form in (0, 1)]
        _TRUE[scene] = frozenset([*texts, bare(scene.law, scene.subject, scene.setting)])
    return _TRUE[scene]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--laws", default=",".join(LAWS), help="separated by commas; default: all")
    parser.add_argument("--samples", type=int, default=800 * clip.BATCH)
    parser.add_argument("--pictures", type=int, default=PICTURES, help="rendered per subject, look and setting")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--fast", action="store_true", help="two laws, 20 steps: a test of the code")
    args = parser.parse_args(arguments)
    if args.fast:
        vars(args).update(FAST)
    try:
        if not named(args.laws) or not set(named(args.laws)) <= set(LAWS):
            raise UsageError(f"--laws {args.laws!r}: give one or more of {', '.join(LAWS)}, separated by commas.")
        follow(ScienceClip(args), clip.BATCH, "batch, exchanged")
    except PrefkitError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
