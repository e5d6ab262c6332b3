"""What a VAE takes an image for is a distribution: its mean in every visit, or a sample of it, drawn anew at each.

The cache holds mean and deviation of an image that was encoded, so a sample costs no encoding. The sample of a visit is a
function of (train.seed, group, visit, image), as its time and noise are: the same in every process and after every
resume, and the reference sees the policy's. Measurements (visits below 0) take the mean. A candidate's own final latents are no
distribution, nor is what a VAE without one (AutoencoderTiny) gives: these stay as they are.

The original Diffusion-DPO code and diffusers' DPO examples sample (`latent_dist.sample()`), encoding at every step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prefkit.config import Train
from prefkit.errors import UsageError
from prefkit.models.trees import Tree
from prefkit.output import warn
from prefkit.types import Candidate

KINDS = ("mean", "sample")


def check(name: str, config: Train) -> None:
    if config.posterior == "sample" and config.online is not None:
        raise UsageError(
            f"train.{name}.posterior is of images that are encoded; online training has its samples' latents."
        )


def folder_of(config: Train) -> str:
    """Of the cache, whose entries are larger with deviations."""
    return "latents" if config.posterior == "mean" else "posteriors"


def encoder(family: Any, config: Train) -> Callable[[Sequence[Candidate]], list[dict[str, Tensor]]]:
    """A function from candidates to what is cached of each: latents and, where they are to be sampled, std."""
    if config.posterior == "mean":
        return lambda candidates: [{"latents": latents} for latents in family.latents(candidates)]
    if not hasattr(family, "posteriors"):
        raise UsageError(f"train.posterior: the family {config.family} has no posteriors(candidates). Set it to mean.")
    told = False

    def encode(candidates: Sequence[Candidate]) -> list[dict[str, Tensor]]:
        nonlocal told
        found: list[dict[str, Tensor]] = family.posteriors(candidates)
        lacking = any("std" not in tree for tree, c in zip(found, candidates, strict=True) if c.payload is None)
        if lacking and not told:
            told = True
            warn(
                "train.posterior: this VAE gives no distribution, so its one output is taken, as with posterior: mean."
            )
        return found

    return encode


def seen(tree: Mapping[str, Tree], group: str, visit: int, key: str) -> Tensor:
    """Latents of an image in a visit: mean + std * noise where there is a std, the noise keyed by group, visit and image.

    group: its draw_key.
    """
    if "std" not in tree or visit < 0:
        return tree["latents"]
    seed = int.from_bytes(hashlib.sha256(f"posterior\n{group}\n{visit}\n{key}".encode()).digest()[:8], "little") >> 1
    noise = torch.randn(tree["latents"].shape, generator=torch.Generator("cpu").manual_seed(seed))
    return tree["latents"] + tree["std"] * noise
