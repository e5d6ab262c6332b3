"""Pictures for the embedded judge: renders, damaged copies and generated images, with their scene and severity.

The severity of a picture is 0 if it is clean and 1 if it is ruined. The rating to learn is 5 - 4 x severity.

latent              noise in the autoencoder's latents, std 1.2 x severity of theirs: what the generator's failures look like
blur, patches, pixelate, warp           copies of renders, by the functions below
few                 generated without guidance in 1 to 10 steps, good: in 20 steps with guidance 3. The severity is the
                    distance of the 5 px rim, which no item reaches, from the requested backdrop
noise, swap, jpeg   used in the gate alone and never trained
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from machine import Machine
from PIL import Image, ImageFilter
from scenes import indices, scene_of
from vae import pixels

from prefkit.tiny.art import to_oklab
from prefkit.tiny.captions import caption, training_scene
from prefkit.tiny.domain import COLOURS, ITEMS, Scene
from prefkit.tiny.scene import backdrop, render
from prefkit.tiny.truth import RIM

Array = np.ndarray
FEW, GOOD = (1, 2, 3, 4, 6, 10), 20  # denoising steps
CLEAN_RIM, RUINED_RIM = 0.03, 0.20  # distances in OKLab with severity 0 and 1
LATENT_STD = 1.2


@dataclass(eq=False)
class Pictures:
    """images: uint8 [N, 64, 64, 3]. scenes: int64 [N, 4], see scenes.py. severity: float32 [N]. kind: N names."""

    images: Array
    scenes: Array
    severity: Array
    kind: Array

    def __len__(self) -> int:
        return len(self.images)

    def of(self, kind: str) -> Array:
        """Return the indices of the pictures of a kind."""
        return np.flatnonzero(self.kind == kind)


def joined(parts: Sequence[Pictures]) -> Pictures:
    fields = ("images", "scenes", "severity", "kind")
    return Pictures(*(np.concatenate([getattr(part, name) for part in parts]) for name in fields))


def any_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene as for the generator's training, but with every (item, colour) equally often: a judge must know all."""
    scene = training_scene(rng)
    return replace(scene, item=list(ITEMS)[rng.integers(len(ITEMS))], colour=list(COLOURS)[rng.integers(len(COLOURS))])


def rendered(n: int, seed: int) -> Pictures:
    """Render n scenes without damage."""
    rng = np.random.default_rng([seed, 1])
    scenes = [any_scene(rng) for _ in range(n)]
    images = np.stack([np.asarray(render(scene, int(rng.integers(2**31)))) for scene in scenes])
    return _pictures(images, scenes, np.zeros(n), "clean")


def damaged(clean: Pictures, kind: str, seed: int) -> Pictures:
    """Return copies with damage of a kind in `DAMAGE`, at severities drawn uniformly from 0..1."""
    rng = np.random.default_rng([seed, 2, *kind.encode()])
    severity = rng.random(len(clean))
    images = np.stack([DAMAGE[kind](image, s, rng) for image, s in zip(clean.images, severity.tolist())])
    return Pictures(images, clean.scenes, severity.astype(np.float32), np.full(len(clean), kind))


@torch.inference_mode()
def latent_noise(clean: Pictures, pipeline: str, seed: int, machine: Machine) -> Pictures:
    """Return copies decoded from noisy latents. 15 % have severity 0, the others u to the power of 1.3."""
    rng = np.random.default_rng([seed, 3])
    severity = rng.random(len(clean)) ** 1.3 * (rng.random(len(clean)) >= 0.15)
    vae = AutoencoderTiny.from_pretrained(pipeline, subfolder="vae", dtype=torch.float32).to(machine.device)
    images = []
    for chosen in np.array_split(np.arange(len(clean)), max(len(clean) // 64, 1)):
        latents = vae.encode(pixels(clean.images[chosen], machine.device)).latents
        std = LATENT_STD * severity[chosen, None, None, None] / vae.config.scaling_factor
        noise = (rng.standard_normal(latents.shape) * std).astype(np.float32)
        with machine.autocast():
            decoded = vae.decode(latents + torch.from_numpy(noise).to(machine.device)).sample
        images.append(decoded.float().clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy())
    return Pictures(np.concatenate(images), clean.scenes, severity.astype(np.float32), np.full(len(clean), "latent"))


def generated(scenes: Sequence[Scene], kind: str, pipeline: str, seed: int, machine: Machine) -> Pictures:
    """Sample an image of each scene's caption. kind: few (the step counts in FEW in turn, no guidance) | good."""
    pipe = StableDiffusionPipeline.from_pretrained(pipeline, dtype=torch.float32).to(machine.device)
    pipe.set_progress_bar_config(disable=True)
    n = len(scenes)
    images: dict[int, Array] = {}
    steps = [GOOD] if kind == "good" else FEW
    for count, numbers in ((s, range(i, n, len(steps))) for i, s in enumerate(steps)):
        for part in (list(numbers)[start : start + 64] for start in range(0, len(numbers), 64)):
            noise = [torch.Generator().manual_seed(seed * 100_000 + i) for i in part]
            texts, guidance = [caption(scenes[i]) for i in part], 3.0 if kind == "good" else 1.0
            with machine.autocast():
                made = pipe(texts, num_inference_steps=count, guidance_scale=guidance, generator=noise).images
            images |= {i: np.asarray(image) for i, image in zip(part, made)}
    return judged_by_rim(np.stack([images[i] for i in range(n)]), scenes, kind)


def judged_by_rim(images: Array, scenes: Sequence[Scene], kind: str) -> Pictures:
    """Return generated images with the severity that their rim shows."""
    distance = [rim_distance(image, scene) for image, scene in zip(images, scenes)]
    severity = ((np.array(distance) - CLEAN_RIM) / (RUINED_RIM - CLEAN_RIM)).clip(0, 1)
    return _pictures(images, scenes, severity, kind)


def rim_distance(image: Array, scene: Scene) -> float:
    """Return the RMS distance in OKLab of the 5 px rim from the scene's backdrop, apart from a difference of the means."""
    rim = np.ones(image.shape[:2], bool)
    rim[RIM:-RIM, RIM:-RIM] = False
    difference = to_oklab(image[rim]) - to_oklab(backdrop(scene.background, scene.pattern)[rim])
    return float(np.sqrt(((difference - difference.mean(0)) ** 2).sum(-1).mean()))


def _pictures(images: Array, scenes: Sequence[Scene], severity: Array, kind: str) -> Pictures:
    rows = np.array([indices(scene) for scene in scenes])
    return Pictures(images, rows, severity.astype(np.float32), np.full(len(images), kind))


def scene_at(pictures: Pictures, i: int) -> Scene:
    return scene_of(pictures.scenes[i])


def blur(image: Array, severity: float, rng: np.random.Generator) -> Array:
    """Gaussian, std 3 px x severity."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(3 * severity)))


def patches(image: Array, severity: float, rng: np.random.Generator) -> Array:
    """Rectangles of 6 to 16 px until they cover .4 x severity of the picture.

    Half of them have a random colour; the others show a part of the picture upside down with exchanged colour channels.
    """
    result, covered = image.copy(), np.zeros(image.shape[:2], bool)
    foreign = image[::-1, ::-1, [1, 2, 0]]
    while covered.mean() < 0.4 * severity:
        (high, wide), (y, x) = rng.integers(6, 17, 2), rng.integers(-4, 60, 2)
        part = np.s_[max(y, 0) : y + high, max(x, 0) : x + wide]
        result[part] = rng.integers(0, 256, 3) if rng.random() < 0.5 else foreign[part]
        covered[part] = True
    return result


def pixelate(image: Array, severity: float, rng: np.random.Generator) -> Array:
    """Downsampled to 64 / (1 + 7 x severity) px with a box filter, and enlarged without interpolation."""
    side = round(64 / (1 + 7 * severity))
    small = Image.fromarray(image).resize((side, side), Image.Resampling.BOX)
    return np.asarray(small.resize(image.shape[1::-1], Image.Resampling.NEAREST))


def warp(image: Array, severity: float, rng: np.random.Generator) -> Array:
    """Each pixel moved by a smooth random field with a std of 5 px x severity, nearest pixel."""
    side = len(image)
    y, x = np.mgrid[:side, :side]
    moved = []
    for at in (y, x):
        coarse = Image.fromarray(rng.standard_normal((6, 6)).astype(np.float32))
        field = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))
        move = 5 * severity * (field - field.mean()) / field.std()
        moved.append((at + move).round().astype(int).clip(0, side - 1))
    return image[moved[0], moved[1]]


def noise(image: Array, severity: float, rng: np.random.Generator) -> Array:
    """Gaussian noise on each pixel and channel, std 80 x severity of 255."""
    return (image + rng.standard_normal(image.shape) * 80 * severity).round().clip(0, 255).astype(np.uint8)


def swap(image: Array, severity: float, rng: np.random.Generator) -> Array:
    """16 x severity pairs of 8 x 8 px squares exchanged."""
    result = image.copy()
    cells = rng.permutation(64)[: 2 * round(16 * severity)].reshape(-1, 2)
    for one, other in cells:
        (a, b), (c, d) = divmod(one, 8), divmod(other, 8)
        first, second = np.s_[8 * a : 8 * a + 8, 8 * b : 8 * b + 8], np.s_[8 * c : 8 * c + 8, 8 * d : 8 * d + 8]
        result[first], result[second] = image[second], image[first]
    return result


def jpeg(image: Array, severity: float, rng: np.random.Generator) -> Array:
    """JPEG of quality 60 at severity 0 down to 2 at severity 1."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=round(60 - 58 * severity))
    return np.asarray(Image.open(file))


DAMAGE: dict[str, Callable[[Array, float, np.random.Generator], Array]] = {
    f.__name__: f for f in (blur, patches, pixelate, warp, noise, swap, jpeg)
}
TRAINED = ("latent", "blur", "patches", "pixelate", "warp", "few")
UNSEEN = ("noise", "swap", "jpeg")
#: training pictures of each kind; those made from renders copy the first ones
AMOUNT = {"clean": 15000, "latent": 15000, "blur": 4000, "patches": 6000, "pixelate": 3000, "warp": 3000}
AMOUNT |= {"few": 2400, "good": 900}


def made(amount: dict[str, int], pipeline: str, seed: int, machine: Machine) -> Pictures:
    """Return pictures of every kind in `amount`."""
    clean = rendered(max(n for kind, n in amount.items() if kind not in ("few", "good")), seed)
    parts = []
    for kind, n in amount.items():
        first = Pictures(clean.images[:n], clean.scenes[:n], clean.severity[:n], clean.kind[:n])
        if kind in ("few", "good"):
            rng = np.random.default_rng([seed, 4, *kind.encode()])
            parts.append(generated([any_scene(rng) for _ in range(n)], kind, pipeline, seed, machine))
        elif kind == "latent":
            parts.append(latent_noise(first, pipeline, seed, machine))
        else:
            parts.append(damaged(first, kind, seed) if kind in DAMAGE else first)
    return joined(parts)
