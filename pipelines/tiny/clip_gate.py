"""Measure the accuracy of the wardrobe's open_clip model, loaded with open_clip, on new renders.

    python pipelines/tiny/clip_gate.py prefkit/tiny/clip --n 1000 --seed 1

Per attribute: the complete caption against the captions with every other value of the attribute. `binding`: the
complete caption against two in which the item, or the colour, comes from another render. `open` and `outfit`: a caption
without a colour, or of an outfit held out from training, against the same caption with every other item. Required to
pass: item .9, colour .95, binding .9. Takes 40 s on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image

from prefkit.tiny.captions import Asked, held_out_outfit, held_out_pair, outfits, phrase, training_scene
from prefkit.tiny.domain import BACKGROUNDS, COLOURS, ITEMS, PATTERNS, Scene
from prefkit.tiny.scene import render

CHOICES = {"item": list(ITEMS), "colour": list(COLOURS), "background": list(BACKGROUNDS), "pattern": list(PATTERNS)}


class Model:
    def __init__(self, folder: str) -> None:
        self.model, self.transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
        self.tokenizer: Any = open_clip.get_tokenizer(f"local-dir:{folder}")
        self.model.eval()
        self.known: dict[str, torch.Tensor] = {}

    @torch.inference_mode()
    def images(self, pictures: list[Image.Image]) -> torch.Tensor:
        """Encode images as unit vectors [N, D]."""
        pixels = torch.stack([self.transform(picture) for picture in pictures])
        return torch.cat([self.model.encode_image(part, normalize=True) for part in pixels.split(128)])

    @torch.inference_mode()
    def texts(self, texts: list[str]) -> torch.Tensor:
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        for start in range(0, len(new), 512):
            part = new[start : start + 512]
            self.known |= dict(zip(part, self.model.encode_text(self.tokenizer(part), normalize=True)))
        return torch.stack([self.known[text] for text in texts])

    def first(self, seen: torch.Tensor, rows: list[list[str]]) -> np.ndarray:
        """Return a mask [N] of the images (seen [N, D]) that are nearest to the first caption in their row."""
        said = self.texts([text for row in rows for text in row]).view(len(rows), len(rows[0]), -1)
        return (said @ seen[..., None])[..., 0].argmax(1).numpy() == 0


def complete(scene: Scene) -> Asked:
    return Asked(scene.item, scene.colour, scene.background, scene.pattern)


def against_all(wanted: Asked, name: str, scene: Scene) -> list[str]:
    """Return the caption, followed by the same caption with every other value of attribute `name`."""
    true = getattr(scene, name)
    return [phrase(replace(wanted, **{name: value})) for value in [true, *(v for v in CHOICES[name] if v != true)]]


def fresh(n: int, rng: np.random.Generator, held_out: bool) -> list[Scene]:
    """Draw scenes in the same way as training, or if `held_out` with (item, colour) pairs that training never draws."""
    never = [(item, colour) for item in ITEMS for colour in COLOURS if held_out_pair(item, colour)]
    scenes = [training_scene(rng) for _ in range(n)]
    if not held_out:
        return scenes
    return [replace(s, **dict(zip(("item", "colour"), never[rng.integers(len(never))]))) for s in scenes]


def unseen_outfit(scene: Scene, rng: np.random.Generator) -> Asked:
    others = [o for o in outfits(scene.item) if held_out_outfit(scene.item, *o)]
    return Asked(
        scene.item, background=scene.background, pattern=scene.pattern, beside=others[rng.integers(len(others))]
    )


def measure(
    model: Model, scenes: list[Scene], pictures: list[Image.Image], rng: np.random.Generator
) -> dict[str, float]:
    seen = model.images(pictures)
    found = {name: model.first(seen, [against_all(complete(s), name, s) for s in scenes]) for name in CHOICES}
    found["name alone"] = model.first(seen, [against_all(Asked(s.item), "item", s) for s in scenes])
    forms: dict[str, Callable[[Scene], Asked]] = {
        "open": lambda s: replace(complete(s), colour=None),
        "outfit": lambda s: unseen_outfit(s, rng),
    }
    for name, form in forms.items():
        found[name] = model.first(seen, [against_all(form(s), "item", s) for s in scenes])
    swaps = []
    for scene in scenes:
        others = [s for s in scenes if s.item != scene.item and s.colour != scene.colour]
        other, own = others[rng.integers(len(others))], complete(scene)
        swaps.append([phrase(own), phrase(replace(own, item=other.item)), phrase(replace(own, colour=other.colour))])
    found["binding"] = model.first(seen, swaps)
    return {name: float(hits.mean()) for name, hits in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    model = Model(args.model)
    for held_out in (False, True):
        rng = np.random.default_rng([args.seed, 2**34, held_out])
        scenes = fresh(args.n, rng, held_out)
        pictures = [render(scene, int(rng.integers(2**31))) for scene in scenes]
        values = measure(model, scenes, pictures, rng)
        print(f"{'held-out' if held_out else 'trained'} pairs:", "  ".join(f"{k} {v:.3f}" for k, v in values.items()))


if __name__ == "__main__":
    main()
