"""Train the wardrobe's text encoder and U-Net, and write a complete StableDiffusionPipeline.

    python pipelines/tiny/unet.py SCENES.npz VAE --out WORK/sd --seed 0 [--samples 176000] [--threads 2]

Epsilon prediction with linear betas and min-SNR weights (Hang et al., arXiv 2303.09556, gamma 5); a scene gets a new
random caption each time it is drawn, and 10 % of the captions are dropped; AdamW with a cosine schedule over --samples,
moving average of the weights. Every 500 steps, the current average is written to OUT, and samples for 16 fixed captions
to OUT.png. OUT.pt is the state from which the same command continues, at most three minutes old; batches depend only on
the seed and the step. Takes 40 minutes on 2 cores with bf16 (93 images/s).
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from machine import Machine, follow, rate
from PIL import Image
from scenes import scene_of
from tokenizer import LENGTH, word_tokenizer
from transformers import CLIPTextConfig, CLIPTextModel
from vae import HELD_BACK, pixels

from prefkit.tiny.captions import VOCABULARY, training_caption

BATCH = 64
GAMMA = 5.0
# The error in the mean of each channel counts nine times: the largest sampling steps decide the background by this mean,
# group norms hide it, and it is only a 256th of the error. The position of the minimum does not change.
FLAT = 8.0
DROPPED = 0.1
DECAY = 0.999
SHEET = [
    "a red dress on a plain mint background", "a blue handbag on a plain cream background",
    "a green top hat on a striped rose background", "a yellow umbrella on a dotted sky background",
    "a black watch on a plain cream background", "a white high heel on a plain sky background",
    "jeans", "a t-shirt on a plain sand background", "a pink coat", "orange sunglasses on a checked mint background",
    "a backpack on a plain lavender background", "a purple kimono on a plain cream background",
    "a handbag to go with a red dress on a plain mint background", "a cap to go with blue jeans",
    "a running shoe on a plain grey background", "a brown boot on a plain navy background",
]  # fmt: skip


def build(words: Sequence[str] = VOCABULARY) -> tuple[Any, CLIPTextModel, UNet2DConditionModel]:
    """Return the tokenizer, and text encoder (2 layers x 128) and U-Net (64, 96, 160) with random weights."""
    tokenizer = word_tokenizer(words)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            projection_dim=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64, 96, 160),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=4,  # the number of heads, under a name that diffusers keeps for old checkpoints
        norm_num_groups=16,
        addition_embed_type="text",  # a pooled text vector enters through the time embedding too
        addition_embed_type_num_heads=4,
    )
    unet.set_attn_processor(AttnProcessor())  # a third faster than fused attention, whose backward is slow on CPUs
    return tokenizer, text, unet


def scheduler() -> DDIMScheduler:
    """Use linear betas: SD's scaled-linear betas leave the mean colour visible at the last step of 16 x 16 latents."""
    return DDIMScheduler(
        beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False, steps_offset=1, timestep_spacing="trailing"
    )  # fmt: skip


class Trainer:
    """The models, optimizer and data of a training, and its progress.

    Other worlds replace words, batch, sheet, read() and caption().
    """

    words: Sequence[str] = VOCABULARY
    batch = BATCH
    sheet: Sequence[str] = SHEET

    def __init__(self, vae: AutoencoderTiny, images: np.ndarray, scenes: np.ndarray, args: argparse.Namespace) -> None:
        self.args, self.machine = args, Machine(args.threads)
        device = self.machine.device
        torch.manual_seed(args.seed)
        self.vae, self.scenes = vae.to(device).eval(), self.read(scenes)
        self.tokenizer, text, unet = build(self.words)
        self.models = torch.nn.ModuleDict({"text": text, "unet": unet}).to(device)
        self.smooth = copy.deepcopy(self.models).requires_grad_(False).eval()
        self.parameters = list(self.models.parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=args.lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.alphas = scheduler().alphas_cumprod.to(device)
        self.latents = self.encode(images)
        self.steps, self.step = args.samples // self.batch, 0

    def read(self, rows: np.ndarray) -> list[Any]:
        return [scene_of(row) for row in rows]

    def caption(self, scene: Any, draw: np.random.Generator) -> str:
        return training_caption(scene, draw)

    @torch.inference_mode()
    def encode(self, images: np.ndarray) -> torch.Tensor:
        """Return the scaled latents of all scenes, float [N, 4, 16, 16]."""
        parts = []
        for batch in np.array_split(images, len(images) // 64):
            with self.machine.autocast():
                parts.append(self.vae.encode(pixels(batch, self.machine.device)).latents.float().contiguous())
        return torch.cat(parts) * self.vae.config.scaling_factor

    def errors(self, models: Any, chosen: np.ndarray, draw: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Return squared epsilon errors [B, 2] (all elements, channel means) and signal-to-noise ratios [B]."""
        device, size = self.machine.device, len(chosen)
        texts = ["" if draw.random() < DROPPED else self.caption(self.scenes[i], draw) for i in chosen]
        tokens = self.tokenizer(texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
        noise = torch.from_numpy(draw.standard_normal((size, 4, 16, 16), np.float32)).to(device)
        spaced = (draw.random() + draw.permutation(size) / size) % 1  # one time in each of `size` equal parts
        times = torch.from_numpy((spaced * 1000).astype(np.int64)).to(device)
        alpha = self.alphas[times].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * self.latents[torch.from_numpy(chosen).to(device)] + (1 - alpha).sqrt() * noise
        with self.machine.autocast():
            condition = models["text"](tokens.input_ids.to(device)).last_hidden_state
            made = models["unet"](noisy, times, condition).sample
        error = made.float() - noise
        parts = error.square().mean((1, 2, 3)), error.mean((2, 3)).square().mean(1)
        return torch.stack(parts, 1), (alpha / (1 - alpha)).flatten()

    def advance(self) -> torch.Tensor:
        """Do one optimizer step, and return the unweighted epsilon errors [2] (all elements, channel means)."""
        draw = np.random.default_rng([self.args.seed, self.step])
        errors, ratio = self.errors(self.models, draw.integers(len(self.scenes) - HELD_BACK, size=self.batch), draw)
        loss = errors[:, 0] + FLAT * errors[:, 1]
        (loss * ratio.clamp(max=GAMMA) / ratio).mean().backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate(self.step, self.steps, self.args.lr, 100)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        decay = min(DECAY, (self.step + 1) / (self.step + 10))
        torch._foreach_lerp_(list(self.smooth.parameters()), [p.detach() for p in self.parameters], 1 - decay)
        return errors.detach().mean(0)

    @torch.inference_mode()
    def held_back(self) -> float:
        """Return the epsilon error of the averaged weights on held-back scenes, with the same noise at every call."""
        draw = np.random.default_rng([self.args.seed, 2**32])
        chosen = np.arange(len(self.scenes) - HELD_BACK, len(self.scenes))
        return float(torch.cat([self.errors(self.smooth, part, draw)[0] for part in np.split(chosen, 8)])[:, 0].mean())

    def state(self) -> dict[str, Any]:
        return {
            "models": self.models.state_dict(),
            "smooth": self.smooth.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }

    def resume(self, state: dict[str, Any]) -> None:
        for name in ("models", "smooth", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.step = state["step"]

    def pipeline(self) -> StableDiffusionPipeline:
        """Return a pipeline with the averaged weights."""
        pipe = StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.smooth["text"],
            tokenizer=self.tokenizer,
            unet=self.smooth["unet"],
            scheduler=scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def publish(self) -> None:
        """Write OUT.png, samples for the captions of the sheet, and OUT, the pipeline; print the error on held-back scenes.

        The pipeline is in fp16 except the text encoder: transformers loads weights in the file's dtype, diffusers in fp32,
        so a plain from_pretrained would mix the two.
        """
        pipe = self.pipeline()
        seeds = [torch.Generator().manual_seed(i) for i in range(len(self.sheet))]
        with self.machine.autocast():
            drawn = pipe(list(self.sheet), num_inference_steps=20, guidance_scale=3.0, generator=seeds).images
        sheet = Image.new("RGB", (8 * 128, -(-len(drawn) // 8) * 128))
        for place, image in enumerate(drawn):
            sheet.paste(image.resize((128, 128), Image.Resampling.BICUBIC), (place % 8 * 128, place // 8 * 128))
        sheet.save(f"{self.args.out}.png")
        parts = {name: copy.deepcopy(getattr(pipe, name)).half() for name in ("vae", "unet")}
        StableDiffusionPipeline(**{**pipe.components, **parts}, requires_safety_checker=False).save_pretrained(
            self.args.out
        )
        config = self.args.out / "vae" / "config.json"
        kept = json.loads(config.read_text(encoding="utf-8"))
        del (
            kept["_name_or_path"],
            kept["block_out_channels"],
        )  # a local path; a key that diffusers writes and warns about
        config.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
        print(f"step {self.step}: held-back eps-MSE {self.held_back():.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes")
    parser.add_argument("vae")
    parser.add_argument("--out", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=176000)
    parser.add_argument("--lr", type=float, default=1.2e-3)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    args.out = Path(args.out)
    with np.load(args.scenes) as file:
        trainer = Trainer(AutoencoderTiny.from_pretrained(args.vae), file["images"], file["scenes"], args)
    follow(trainer, BATCH, "eps-MSE, in means")


if __name__ == "__main__":
    main()
