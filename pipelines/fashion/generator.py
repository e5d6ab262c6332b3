"""Train a small generator that sees pictures of the other items of an outfit: a StableDiffusionInstructPix2PixPipeline.

    python pipelines/fashion/generator.py OUT --seed 0 [--steps 700] [--threads 1]

The condition is one picture of the other items (pictured.py). The prompt names the missing item and the background only: `a
handbag on a plain mint background`. generator_gate.py measures what the generator sees.

Training continues the embedded model. conv_in gets four more input channels, for the latents of the picture, with weights of
zero. Outfits are drawn as in world.py, from its training pieces, and the target is the missing item. As in unet.py the loss
is the epsilon error with min-SNR weights; min(1 / SNR, 100) / 10 is added to the weights, close to the error of x_0, because
the epsilon error at high noise hardly depends on the colour of the item. Three in four time steps are above 300. The text and
the picture are dropped in 10 % of the samples each, for guidance; a dropped picture is latents of zero, as in the pipeline.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from pictured import cut_out, overlay, prompt
from PIL import Image
from torch import Tensor, nn
from world import FAMILIES, TRAIN, Piece, draw_pieces

from prefkit.tiny import located
from prefkit.tiny.domain import BACKGROUNDS, ITEMS, Scene
from prefkit.tiny.scene import render

sys.path.insert(0, str(Path(__file__).parents[1] / "tiny"))
from machine import Machine, rate

OUTFITS, COPIES = 4000, 6  # different training samples; pictures of each piece
BATCH, GAMMA, FLAT, DECAY = 64, 5.0, 8.0, 0.995  # as in pipelines/tiny/unet.py, but for the decay
DROPPED = 0.1
NEW_RATE = 10.0  # learning rate of the new channels over that of the U-Net


@cache
def piece(item: str, colour: str, number: int) -> np.ndarray:
    """Return a rendered piece, cut out. number: which of its pictures."""
    grounds = list(BACKGROUNDS)
    seed = 10_000 * number + 97 * len(item) + len(colour)
    return cut_out(render(Scene(item, colour, grounds[(seed + number) % len(grounds)]), seed))


def draw_sample(split: str, number: int, rng: np.random.Generator) -> tuple[tuple[Piece, ...], Scene]:
    """Draw (the other three pieces, a scene with the missing one). number: of the sample; chooses the family."""
    pieces = draw_pieces(split, FAMILIES[number % len(FAMILIES)], rng)
    blank = int(rng.integers(len(pieces)))
    others = tuple(p for place, p in enumerate(pieces) if place != blank)
    return others, Scene(*pieces[blank], str(rng.choice(list(BACKGROUNDS))))


def picture_of(others: Sequence[Piece], rng: np.random.Generator) -> Image.Image:
    return overlay([piece(*p, int(rng.integers(COPIES))) for p in others])


class WideInput(nn.Module):
    """conv_in with more channels; the new weights start at zero and are a parameter of their own, for its own rate."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.old, self.new = conv, nn.Conv2d(4, conv.out_channels, 3, padding=1, bias=False)
        nn.init.zeros_(self.new.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.old(x[:, :4]) + self.new(x[:, 4:])

    def folded(self) -> nn.Conv2d:
        conv = nn.Conv2d(8, self.old.out_channels, 3, padding=1)
        conv.weight.data = torch.cat([self.old.weight.data, self.new.weight.data], 1)
        conv.bias = self.old.bias
        return conv


class Trainer:
    """The models and the encoded samples of a training."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.machine = args, Machine(args.threads)
        torch.manual_seed(args.seed)
        self.base = StableDiffusionPipeline.from_pretrained(located("tiny"), dtype=torch.float32)
        self.base.to(self.machine.device)
        self.unet = self.base.unet
        self.unet.set_attn_processor(AttnProcessor())
        self.unet.conv_in = WideInput(self.unet.conv_in).to(self.machine.device)
        self.smooth = copy.deepcopy(self.unet).requires_grad_(False).eval()
        new = self.unet.conv_in.new.weight
        old = [p for p in self.unet.parameters() if p is not new]
        groups = [{"params": old, "peak": args.lr}, {"params": [new], "peak": NEW_RATE * args.lr}]
        self.optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        self.alphas = self.base.scheduler.alphas_cumprod.to(self.machine.device)
        self.texts = self.encode_texts()
        self.samples = self.encode(np.random.default_rng([args.seed, 0]), args.outfits)

    @torch.inference_mode()
    def encode_texts(self) -> dict[str, Tensor]:
        """Return the text encoder's states of each prompt, [1, 24, 128], with "" for none."""
        texts = ["", *(prompt(item, ground) for item in ITEMS for ground in BACKGROUNDS)]
        states = self.base.encode_prompt(texts, self.machine.device, 1, False)[0]
        return dict(zip(texts, states.clone().split(1)))

    @torch.inference_mode()
    def encode(self, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor, list[str]]:
        """Draw samples. Returns (targets, pictures: latents [N, 4, 16, 16] as the pipeline scales them, prompts)."""
        targets, pictures, prompts = [], [], []
        for number in range(count):
            others, scene = draw_sample(TRAIN, number, rng)
            targets.append(render(scene, int(rng.integers(2**31))))
            pictures.append(picture_of(others, rng))
            prompts.append(prompt(scene.item, scene.background))
        return self.latents(targets) * self.base.vae.config.scaling_factor, self.latents(pictures), prompts

    def latents(self, images: Sequence[Image.Image]) -> Tensor:
        parts = []
        for start in range(0, len(images), 64):
            pixels = self.base.image_processor.preprocess(list(images[start : start + 64]))
            with self.machine.autocast():
                parts.append(self.base.vae.encode(pixels.to(self.machine.device)).latents.float())
        return torch.cat(parts).contiguous()

    def errors(self, unet: Any, chosen: np.ndarray, times: Tensor, pictures: Tensor, texts: list[str]) -> Tensor:
        """Return the epsilon errors [B, 4, 16, 16] for samples, time steps [B], picture latents and prompts."""
        latents = self.samples[0][torch.from_numpy(chosen)]
        generator = torch.Generator().manual_seed(int(chosen.sum()) + int(times.sum()))
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        alpha = self.alphas[times].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        condition = torch.cat([self.texts[text] for text in texts])
        with self.machine.autocast():
            made = unet(torch.cat([noisy, pictures], 1), times, condition).sample
        return made.float() - noise

    def advance(self, step: int) -> None:
        draw, size = np.random.default_rng([self.args.seed, 1, step]), BATCH
        chosen = draw.integers(len(self.samples[2]), size=size)
        spaced = (draw.random() + draw.permutation(size) / size) % 1
        high = draw.random(size) < 0.75
        times = torch.from_numpy(np.where(high, 300 + 700 * spaced, 1000 * spaced).astype(np.int64))
        texts = ["" if draw.random() < DROPPED else self.samples[2][i] for i in chosen]
        kept = torch.from_numpy((draw.random(size) >= DROPPED).astype(np.float32)).view(-1, 1, 1, 1)
        device = self.machine.device
        pictures = self.samples[1][torch.from_numpy(chosen)] * kept.to(device)
        errors = self.errors(self.unet, chosen, times.to(device), pictures, texts)
        alpha = self.alphas[times.to(device)]
        ratio = alpha / (1 - alpha)
        weight = ratio.clamp(max=GAMMA) / ratio + (1 / ratio).clamp(max=100) / 10
        loss = errors.square().mean((1, 2, 3)) + FLAT * errors.mean((2, 3)).square().mean(1)
        (loss * weight).mean().backward()
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate(step, self.args.steps, group["peak"], 50)
        self.optimizer.step()
        self.optimizer.zero_grad()
        decay = min(DECAY, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(self.smooth.parameters()), [p.detach() for p in self.unet.parameters()], 1 - decay)

    @torch.inference_mode()
    def seen(self) -> str:
        """Return the epsilon error with own and with other pictures, on 128 training samples at high noise."""
        pictures, texts, told = self.samples[1][:128], self.samples[2][:128], []
        chosen = np.arange(len(texts))
        for time_step in (500, 700, 850):
            times = torch.full((len(texts),), time_step, device=self.machine.device)
            own = self.errors(self.smooth, chosen, times, pictures, texts).square().mean()
            other = self.errors(self.smooth, chosen, times, pictures.roll(7, 0), texts).square().mean()
            told.append(f"{own:.5f} / {other:.5f}")
        return ", ".join(told)

    def write(self) -> None:
        """Write the pipeline with averaged weights; U-Net and VAE in fp16, as in pipelines/tiny/unet.py."""
        unet = UNet2DConditionModel.from_config({**self.base.unet.config, "in_channels": 8})
        smooth = copy.deepcopy(self.smooth)
        smooth.conv_in = smooth.conv_in.folded()
        unet.load_state_dict(smooth.state_dict())
        parts = self.base.components | {"unet": unet.half(), "vae": copy.deepcopy(self.base.vae).half()}
        pipe = StableDiffusionInstructPix2PixPipeline(**parts, requires_safety_checker=False)
        pipe.save_pretrained(self.args.out)
        config = self.args.out / "vae" / "config.json"
        kept = json.loads(config.read_text(encoding="utf-8"))
        for key in ("_name_or_path", "block_out_channels"):  # a local path; a key that diffusers writes and warns about
            kept.pop(key, None)
        config.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def train(args: argparse.Namespace) -> None:
    trainer = Trainer(args)
    print(f"{trainer.machine}; {args.outfits} samples after {time.process_time():.0f} CPU-s", flush=True)
    for step in range(args.steps):
        trainer.advance(step)
        if (step + 1) % 100 == 0 or step + 1 == args.steps:
            new = float(trainer.unet.conv_in.new.weight.detach().norm())
            cpu = f"{time.process_time():.0f} CPU-s"
            print(f"step {step + 1}: errors, own / other picture: {trainer.seen()}; new {new:.2f}; {cpu}", flush=True)
            trainer.write()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the pipeline to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--outfits", type=int, default=OUTFITS)
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    train(args)


if __name__ == "__main__":
    main()
