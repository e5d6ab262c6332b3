"""Train a small flow model, and write a complete SanaPipeline, for tests of online training.

    python pipelines/tiny/flow.py SCENES.npz --out WORK/flow --seed 0 [--samples 80000] [--threads 1]

A SanaTransformer2DModel (192 wide, 8 layers, 5.05M parameters) works on the latents of the embedded autoencoder,
conditioned on the embedded text encoder; both are frozen. Its domain is a part of the wardrobe: eight garments on plain
backgrounds, selected from SCENES.npz (scenes.py). The loss is the velocity error at x_t = (1 - t) x0 + t e with
logit-normal t (Esser et al., arXiv 2403.03206); AdamW with a cosine schedule over --samples, moving average of the
weights. Every 500 steps, the current average is written to OUT, and samples for 16 fixed captions to OUT.png. OUT.pt
is the state from which the same command continues, at most three minutes old. OUT.csv has requests for the model: each
garment on each background, with no colour named; half of them are held out.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SanaPipeline, SanaTransformer2DModel, StableDiffusionPipeline
from machine import Machine, follow, rate
from PIL import Image
from scenes import scene_of
from tokenizer import LENGTH
from vae import HELD_BACK, pixels

import prefkit.tiny
from prefkit.tiny.captions import caption, held_out
from prefkit.tiny.domain import BACKGROUNDS, COLOURS, Scene
from prefkit.tiny.source import USER

ITEMS = ("t-shirt", "coat", "dress", "jeans", "boot", "handbag", "top hat", "umbrella")
BATCH = 32
FLAT = 8.0  # additional weight of the error in the channel means, as in unet.py: backgrounds depend on it
DROPPED = 0.1  # fraction of captions
NO_COLOUR, NO_BACKGROUND = 0.4, 0.1
DECAY = 0.998
HELD_OUT_CELLS = 0.5
CALL = {"max_sequence_length": LENGTH, "use_resolution_binning": False, "complex_human_instruction": []}


def build() -> SanaTransformer2DModel:
    return SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        sample_size=16,
        patch_size=2,
        num_layers=8,
        num_attention_heads=6,
        attention_head_dim=32,
        num_cross_attention_heads=4,
        cross_attention_head_dim=48,
        cross_attention_dim=192,
        caption_channels=128,
    )


def sheet_captions() -> list[str]:
    """Return a caption per garment with all attributes named, then a caption per garment without its colour."""
    backgrounds, colours = list(BACKGROUNDS), list(COLOURS)
    shown = [Scene(item, colours[i], backgrounds[i]) for i, item in enumerate(ITEMS)]
    return [caption(scene) for scene in shown] + [caption(scene, colour=False) for scene in shown]


def write_requests(path: Path) -> None:
    """Write a CSV file with the columns prompt, split and user (the demo's), which `prefkit train` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["prompt", "split", "user"])
        for item in ITEMS:
            for background in BACKGROUNDS:
                split = "test" if held_out(HELD_OUT_CELLS, "cell", item, background) else "train"
                rows.writerow([caption(Scene(item, "red", background), colour=False), split, USER])


class Trainer:
    """The models, optimizer and data of a training, and its progress."""

    def __init__(self, images: np.ndarray, scenes: np.ndarray, args: argparse.Namespace) -> None:
        self.args, self.machine = args, Machine(args.threads)
        torch.manual_seed(args.seed)
        embedded = Path(prefkit.tiny.__file__).parent / "sd"
        start = StableDiffusionPipeline.from_pretrained(embedded, dtype=torch.float32)
        self.vae, self.text, self.tokenizer = start.vae.eval(), start.text_encoder.eval(), start.tokenizer
        self.net = build()
        self.smooth = copy.deepcopy(self.net).requires_grad_(False).eval()
        for part in (self.vae, self.text, self.net, self.smooth):
            part.to(self.machine.device)
        self.parameters = list(self.net.parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=args.lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.scenes = [scene_of(row) for row in scenes]
        self.latents = torch.cat(list(self.encode(images)))
        self.steps, self.step = args.samples // BATCH, 0

    @torch.inference_mode()
    def encode(self, images: np.ndarray) -> Iterator[torch.Tensor]:
        """Yield the scaled latents [n, 4, 16, 16] batch by batch."""
        for batch in np.array_split(images, len(images) // 64):
            with self.machine.autocast():
                found = self.vae.encode(pixels(batch, self.machine.device)).latents.float()
            yield found.contiguous() * self.vae.config.scaling_factor

    def say(self, chosen: np.ndarray, draw: np.random.Generator) -> list[str]:
        """Return a caption per scene, in which the colour, the background or everything is randomly left out."""
        found = []
        for i in chosen:
            said, colour, background = (draw.random(3) >= (DROPPED, NO_COLOUR, NO_BACKGROUND)).tolist()
            found.append(caption(self.scenes[i], colour=colour, background=background) if said else "")
        return found

    def errors(self, net: Any, chosen: np.ndarray, draw: np.random.Generator) -> torch.Tensor:
        """Return the squared velocity errors [2]: of all elements, and of the channel means."""
        device, size = self.machine.device, len(chosen)
        texts = self.say(chosen, draw)
        said = self.tokenizer(texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
        ids, mask = said.input_ids.to(device), said.attention_mask.to(device)
        clean = self.latents[torch.from_numpy(chosen).to(device)]
        noise = torch.from_numpy(draw.standard_normal(clean.shape, np.float32)).to(device)
        spaced = (draw.random() + draw.permutation(size) / size) % 1  # one time in each of `size` equal parts
        t = torch.special.ndtri(torch.from_numpy(spaced).clamp(1e-4, 1 - 1e-4)).sigmoid().float().to(device)
        with self.machine.autocast():
            with torch.no_grad():
                condition = self.text(ids, attention_mask=mask)[0]
            at = t.view(-1, 1, 1, 1)
            made = net((1 - at) * clean + at * noise, condition, 1000 * t, encoder_attention_mask=mask).sample
        error = made.float() - (noise - clean)
        return torch.stack([error.square().mean(), error.mean((2, 3)).square().mean()])

    def advance(self) -> torch.Tensor:
        """Do one optimizer step, and return the errors [2]."""
        draw = np.random.default_rng([self.args.seed, self.step])
        errors = self.errors(self.net, draw.integers(len(self.scenes) - HELD_BACK, size=BATCH), draw)
        (errors[0] + FLAT * errors[1]).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate(self.step, self.steps, self.args.lr, 100)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        decay = min(DECAY, (self.step + 1) / (self.step + 10))
        torch._foreach_lerp_(list(self.smooth.parameters()), [p.detach() for p in self.parameters], 1 - decay)
        return errors.detach()

    @torch.inference_mode()
    def held_back(self) -> float:
        """Return the velocity error of the averaged weights on held-back scenes, with the same noise at every call."""
        draw = np.random.default_rng([self.args.seed, 2**32])
        chosen = np.arange(len(self.scenes) - HELD_BACK, len(self.scenes))
        return float(torch.stack([self.errors(self.smooth, part, draw)[0] for part in np.split(chosen, 8)]).mean())

    def state(self) -> dict[str, Any]:
        parts = {name: getattr(self, name).state_dict() for name in ("net", "smooth", "optimizer")}
        return parts | {"step": self.step}

    def resume(self, state: dict[str, Any]) -> None:
        for name in ("net", "smooth", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.step = state["step"]

    def publish(self) -> None:
        """Write OUT.png, and OUT: the pipeline with averaged weights, fp16 except the text encoder (see unet.py).

        Print the error on held-back scenes.
        """
        parts = {"tokenizer": self.tokenizer, "text_encoder": self.text, "scheduler": FlowMatchEulerDiscreteScheduler()}
        pipe = SanaPipeline(**parts, vae=self.vae, transformer=self.smooth)
        pipe.set_progress_bar_config(disable=True)
        texts = sheet_captions()
        seeds = [torch.Generator().manual_seed(i) for i in range(len(texts))]
        with self.machine.autocast():
            drawn = pipe(
                texts, num_inference_steps=20, guidance_scale=3.0, height=64, width=64, generator=seeds, **CALL
            )
        sheet = Image.new("RGB", (8 * 128, 2 * 128))
        for place, image in enumerate(drawn.images):
            sheet.paste(image.resize((128, 128), Image.Resampling.BICUBIC), (place % 8 * 128, place // 8 * 128))
        sheet.save(f"{self.args.out}.png")
        half = {"vae": copy.deepcopy(self.vae).half(), "transformer": copy.deepcopy(self.smooth).half()}
        SanaPipeline(**parts, **half).save_pretrained(self.args.out)
        config = self.args.out / "vae" / "config.json"
        kept = json.loads(config.read_text(encoding="utf-8"))
        for key in ("_name_or_path", "block_out_channels"):  # a local path; a key that diffusers writes and warns about
            kept.pop(key, None)
        config.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
        print(f"step {self.step}: held-back error {self.held_back():.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=80000)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    with np.load(args.scenes) as file:
        rows = file["scenes"]
        wanted = [i for i, row in enumerate(rows) if (s := scene_of(row)).item in ITEMS and s.pattern == "plain"]
        trainer = Trainer(file["images"][wanted], rows[wanted], args)
    write_requests(args.out.with_name(f"{args.out.name}.csv"))
    print(f"{len(wanted)} scenes")
    follow(trainer, BATCH, "error, in means")


if __name__ == "__main__":
    main()
