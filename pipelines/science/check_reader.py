"""Measure the reader on new renders, on pictures of other laws and subjects, and after damage.

    python pipelines/science/check_reader.py [--n 100] [--laws rust,melting] [--seed 0]

Per law: the share of looks (and settings) read correctly without a threshold; the 5th percentile of the match, of renders and of
blotched pictures (MATCH in reader.py); with the threshold, the shares refused of these pictures, of pictures of another law, of another subject of the law,
and of noise; and the share of looks read correctly after the wardrobe's autoencoder with .4 of the latents' std as noise
(`blotched`), and the share of these that is refused.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np
from laws import LAWS
from looks import Scene, render
from PIL import Image
from reader import Seen, read
from tuples import named

from prefkit.errors import PrefkitError, UsageError
from prefkit.tiny import PIPELINE

BLOTCH = 0.4  # of the std of the latents


def draw_scene(law: str, rng: np.random.Generator) -> Scene:
    """Draw a subject, look and setting."""
    choices = (tuple(LAWS[law].kind_of), LAWS[law].looks, tuple(LAWS[law].settings.values()) or ("",))
    return Scene(law, *(str(names[rng.integers(len(names))]) for names in choices))


def blotched(images: Sequence[Image.Image], seed: int) -> list[Image.Image]:
    """Return pictures after the wardrobe's autoencoder, with noise on the latents."""
    import torch
    from diffusers import AutoencoderTiny

    torch.set_num_threads(1)
    vae = AutoencoderTiny.from_pretrained(PIPELINE / "vae", torch_dtype=torch.float32).eval().requires_grad_(False)
    generator, made = torch.Generator().manual_seed(seed), []
    for start in range(0, len(images), 16):
        pixels = np.stack([np.asarray(image) for image in images[start : start + 16]])
        batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        latents = vae.encode(batch).latents
        latents = latents + BLOTCH * latents.std() * torch.randn(latents.shape, generator=generator)
        out = vae.decode(latents).sample.clamp(-1, 1).add(1).mul(127.5).round()
        made += [Image.fromarray(one) for one in out.permute(0, 2, 3, 1).to(torch.uint8).numpy()]
    return made


def measure(law: str, n: int, seed: int) -> dict[str, float]:
    """Return the figures of one law."""
    rng = np.random.default_rng([seed, list(LAWS).index(law)])
    scenes = [draw_scene(law, rng) for _ in range(n)]
    images = [render(scene, int(rng.integers(2**31))) for scene in scenes]
    seen = [read(image, law, scene.subject, -np.inf, 0) for image, scene in zip(images, scenes)]
    damaged = blotched(images, seed)
    after = [read(image, law, scene.subject, -np.inf, 0) for image, scene in zip(damaged, scenes)]
    others = [name for name in LAWS if name != law]
    foreign = [draw_scene(str(rng.choice(others)), rng) for _ in scenes]
    elsewhere = [read(render(f, int(rng.integers(2**31))), law, s.subject) for f, s in zip(foreign, scenes)]
    subjects = list(LAWS[law].kind_of)
    next_to = [subjects[(subjects.index(s.subject) + rng.integers(1, len(subjects))) % len(subjects)] for s in scenes]
    noise = [Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)) for _ in scenes]
    return {
        "look": np.mean([right(a, b) for a, b in zip(seen, scenes)]),
        "match": np.percentile([one.match for one in seen], 5),
        "blotched match": np.percentile([one.match for one in after], 5),
        "refused": refused([read(i, law, s.subject) for i, s in zip(images, scenes)]),
        "other law": refused(elsewhere),
        "other subject": refused([read(i, law, name) for i, name in zip(images, next_to)]),
        "noise": refused([read(i, law, s.subject) for i, s in zip(noise, scenes)]),
        "blotched": np.mean([right(a, b) for a, b in zip(after, scenes)]),
        "blotched, refused": refused([read(i, law, s.subject) for i, s in zip(damaged, scenes)]),
    }


def right(seen: Seen, scene: Scene) -> bool:
    return (seen.look, seen.setting) == (scene.look, scene.setting)


def refused(seen: Sequence[Seen]) -> float:
    return float(np.mean([one.look is None for one in seen]))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100, help="pictures per law")
    parser.add_argument("--laws", default=",".join(LAWS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    try:
        if args.n < 1 or not named(args.laws) or not set(named(args.laws)) <= set(LAWS):
            raise UsageError(f"--n must be at least 1, and --laws a list of these: {', '.join(LAWS)}.")
        for number, law in enumerate(named(args.laws)):
            figures = measure(law, args.n, args.seed)
            if number == 0:
                print(f"| law | {' | '.join(figures)} |\n|{'---|' * (len(figures) + 1)}")
            print(f"| {law} | {' | '.join(f'{value:.2f}' for value in figures.values())} |", flush=True)
    except PrefkitError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
