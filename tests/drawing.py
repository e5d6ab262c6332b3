"""Generators of pure Python, for tests whose images must cost nothing: `draw`, and three that are wrong."""

from __future__ import annotations

import random

from PIL import Image

SIDE = 64


def draw(prompts, seeds):
    """A plain colour with some dots, by the seed."""
    images = []
    for seed in seeds:
        r = random.Random(seed)
        image = Image.new("RGB", (SIDE, SIDE), (r.randrange(256), r.randrange(256), r.randrange(256)))
        for _ in range(40):
            image.putpixel((r.randrange(SIDE), r.randrange(SIDE)), (r.randrange(256), 0, 9))
        images.append(image)
    return images


def fails(prompts, seeds):
    raise ValueError("boom\nand more")


def texts(prompts, seeds):
    return ["no image" for _ in prompts]


def not_a_hat(prompts, seeds):
    if any("hat" in prompt for prompt in prompts):
        raise ValueError("no hats")
    return draw(prompts, seeds)
