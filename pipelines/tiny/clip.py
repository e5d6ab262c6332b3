"""Train the wardrobe's open_clip model to recognize items, colours and backgrounds, and which item has which colour.

    python pipelines/tiny/clip.py SCENES.npz VAE --out WORK/clip --seed 0 [--samples 128000] [--threads 2]

With a contrastive loss within the batch alone, the model learns backgrounds and colours but ignores the item. Every
image is therefore also contrasted with its caption after exchanging one attribute (item, colour, background, pattern),
with the names of all items, and with item and colour captions of other pairs. Captions omit attributes in the same way
as the generator's training captions; a caption that is true for another image of the batch is not a negative for that
image. Half of the images are decoded by the autoencoder from noisy latents, to resemble generated images. The same
command continues a stopped run. OUT is a folder for open_clip's `local-dir:OUT`. Takes about 20 minutes on 2 cores with
bf16.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from machine import Machine, follow, rate
from negatives import BOUND, NAMES, exchanged, true_of
from open_clip import CLIP
from safetensors.torch import save_file
from scenes import scene_of
from tokenizer import word_tokenizer
from torch.nn.attention import SDPBackend, sdpa_kernel
from vae import pixels

from prefkit.tiny.captions import VOCABULARY, Asked, asked, phrase, training_caption
from prefkit.tiny.domain import ITEMS

BATCH = 64
DECAY = 0.998
LENGTH = 20  # the longest caption takes 19 tokens
NORMALISED = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


def config(vocabulary: int) -> dict[str, Any]:
    """Return open_clip's model_cfg: a ModifiedResNet of width 16 and a text transformer with 2 layers of width 128."""
    return {
        "embed_dim": 64,
        "vision_cfg": {"image_size": 64, "layers": [1, 2, 2, 1], "width": 16, "head_width": 64},
        "text_cfg": {
            "context_length": LENGTH,
            "vocab_size": vocabulary,
            "hf_tokenizer_name": "tokenizer",  # any name: with local-dir, open_clip reads the tokenizer from the folder
            "width": 128,
            "heads": 4,
            "layers": 2,
        },
    }


@torch.inference_mode()
def through_vae(folder: str, images: np.ndarray, seed: int, machine: Machine) -> np.ndarray:
    """Encode every image, add noise of up to .3 of the latents' std, and decode: uint8 in the shape of images."""
    vae = AutoencoderTiny.from_pretrained(folder).to(machine.device, memory_format=torch.channels_last)
    draw, made = np.random.default_rng([seed, 2**33]), []
    for batch in np.array_split(images, max(len(images) // 64, 1)):
        with machine.autocast():
            latents = vae.encode(pixels(batch, machine.device)).latents.float()
            level = draw.uniform(0, 0.3, (len(batch), 1, 1, 1)) / vae.config.scaling_factor
            noise = torch.from_numpy((draw.standard_normal(latents.shape) * level).astype(np.float32))
            decoded = vae.decode(latents + noise.to(machine.device)).sample
        made.append(decoded.float().clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(made)


class Trainer:
    """The model, optimizer and data of a training, and its progress. Other worlds replace words and loss()."""

    words: Sequence[str] = VOCABULARY

    def __init__(self, vae: str, images: np.ndarray, scenes: list[Any], args: argparse.Namespace) -> None:
        self.args, self.machine = args, Machine(args.threads)
        torch.manual_seed(args.seed)
        self.images, self.scenes = images, scenes
        self.passed = through_vae(vae, images, args.seed, self.machine)
        self.tokenizer = word_tokenizer(self.words)
        self.config = config(len(self.tokenizer))
        self.model, self.smooth = (
            CLIP(**self.config).to(self.machine.device, memory_format=torch.channels_last) for _ in range(2)
        )
        self.smooth.load_state_dict(self.model.state_dict())
        self.smooth.requires_grad_(False).eval()
        self.parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.05, fused=True
        )
        self.steps, self.step = args.samples // BATCH, 0
        self.tokens: dict[str, list[int]] = {}

    def tokenized(self, texts: list[str]) -> torch.Tensor:
        """Return the token ids [B, LENGTH]."""
        if new := [text for text in dict.fromkeys(texts) if text not in self.tokens]:
            ids = self.tokenizer(new, padding="max_length", max_length=LENGTH, truncation=True).input_ids
            self.tokens |= dict(zip(new, ids))
        return torch.tensor([self.tokens[text] for text in texts], device=self.machine.device)

    def augmented(self, chosen: np.ndarray, draw: np.random.Generator) -> torch.Tensor:
        """Return rendered or decoded images, shifted, relit, noisy, some blurred: float [B, 3, 64, 64] in -1..1."""
        passed = draw.random(len(chosen)) < 0.5
        batch = np.where(passed[:, None, None, None], self.passed[chosen], self.images[chosen])
        real = pixels(batch, self.machine.device)
        y, x = draw.integers(5, size=2)
        real = F.pad(real, (2, 2, 2, 2), mode="replicate")[:, :, y : y + 64, x : x + 64]
        if draw.random() < 0.25:
            real = F.avg_pool2d(F.pad(real, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        level, light = draw.uniform(0, 0.08, (len(chosen), 1, 1, 1)), draw.uniform(-0.04, 0.04, (len(chosen), 1, 1, 1))
        change = draw.standard_normal(real.shape, np.float32) * level + light
        return (real + torch.from_numpy(change.astype(np.float32)).to(real.device)).clamp(-1, 1)

    def encoded(
        self, chosen: np.ndarray, groups: list[list[str]], draw: np.random.Generator
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Return the images' unit vectors times the scale [B, D], and those of each text group [len(group), D]."""
        texts = [text for group in groups for text in group]
        # plain attention: the backward pass of fused attention takes half of the text encoder's time on a CPU
        with self.machine.autocast(), sdpa_kernel(SDPBackend.MATH):
            seen = self.model.encode_image(self.augmented(chosen, draw))
            said = self.model.encode_text(self.tokenized(texts))
        scale = self.model.logit_scale.exp().clamp(max=100)
        said = F.normalize(said.float(), dim=-1)
        return scale * F.normalize(seen.float(), dim=-1), said.split([len(group) for group in groups])

    def loss(self, draw: np.random.Generator) -> torch.Tensor:
        """Return four cross-entropies: within the batch, with exchanged captions, of item names, of item and colour."""
        chosen = draw.integers(len(self.scenes), size=BATCH)
        scenes = [self.scenes[i] for i in chosen]
        wanted = [asked(training_caption(scene, draw)) for scene in scenes]
        false = [text for w, scene in zip(wanted, scenes) for text in exchanged(w, scene, draw)]
        others = [BOUND[i] for i in draw.choice(len(BOUND), 64, replace=False)]
        pairs = [phrase(Asked(scene.item, scene.colour)) for scene in scenes]
        seen, said = self.encoded(chosen, [[phrase(w) for w in wanted], false, NAMES, pairs, others], draw)
        device = seen.device
        true = torch.tensor([[true_of(w, scene) for w in wanted] for scene in scenes], device=device)
        true.fill_diagonal_(False)
        same = torch.tensor([[pair == other for other in others] for pair in pairs], device=device)
        within = (seen @ said[0].T).masked_fill(true, -torch.inf)
        exchange = torch.cat(
            [within.diagonal()[:, None], torch.einsum("bd,bkd->bk", seen, said[1].unflatten(0, (-1, 4)))], 1
        )
        bound = torch.cat([(seen * said[3]).sum(-1, keepdim=True), (seen @ said[4].T).masked_fill(same, -torch.inf)], 1)
        items = torch.tensor([list(ITEMS).index(scene.item) for scene in scenes], device=device)
        first, own = torch.zeros(BATCH, dtype=torch.long, device=device), torch.arange(BATCH, device=device)
        batch = (F.cross_entropy(within, own) + F.cross_entropy(within.T, own)) / 2
        named = F.cross_entropy(seen @ said[2].T, items)
        return torch.stack([batch, F.cross_entropy(exchange, first), named, F.cross_entropy(bound, first)])

    def advance(self) -> torch.Tensor:
        """Do one optimizer step, and return the losses."""
        losses = self.loss(np.random.default_rng([self.args.seed, self.step]))
        losses.sum().backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate(self.step, self.steps, self.args.lr, 200)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        decay = min(DECAY, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for kept, new in zip(self.smooth.state_dict().values(), self.model.state_dict().values()):
                kept.lerp_(new, 1 - decay) if kept.is_floating_point() else kept.copy_(new)
        return losses.detach()

    def state(self) -> dict[str, Any]:
        parts = {name: getattr(self, name).state_dict() for name in ("model", "smooth", "optimizer")}
        return {**parts, "step": self.step}

    def resume(self, state: dict[str, Any]) -> None:
        for name in ("model", "smooth", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.step = state["step"]

    def publish(self) -> None:
        """Write open_clip_config.json, the averaged weights in fp16 and the tokenizer to OUT."""
        out = Path(self.args.out)
        self.tokenizer.save_pretrained(out)
        weights = {
            name: value.half() if value.is_floating_point() else value
            for name, value in self.smooth.state_dict().items()
        }
        save_file(
            {name: value.contiguous().cpu() for name, value in weights.items()}, out / "open_clip_model.safetensors"
        )
        preprocess = {**NORMALISED, "interpolation": "bicubic", "resize_mode": "squash"}
        written = {"model_cfg": self.config, "preprocess_cfg": preprocess}
        (out / "open_clip_config.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes")
    parser.add_argument("vae")
    parser.add_argument("--out", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=128000)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    with np.load(args.scenes) as file:
        trainer = Trainer(args.vae, file["images"], [scene_of(row) for row in file["scenes"]], args)
    follow(trainer, BATCH, "batch, exchanged, item, bound")


if __name__ == "__main__":
    main()
