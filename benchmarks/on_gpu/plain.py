"""A Diffusion-DPO loop for Stable Diffusion with the default habits of the diffusers example script.

Each step decodes its images, encodes them with the VAE and the prompts with the text encoder; the frozen reference is the
network with its adapter off. Float32 by default, no gradient checkpointing, torch's settings left as they are (so that
convolutions use TF32, matrix products do not). With bf16 or fp16, frozen weights are stored in it and the denoiser runs
under autocast; the adapter stays float32.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
BETA = 2000.0


class Images(Dataset):
    """Both images of a pair, decoded when asked for, [6, H, W] in [-1, 1], and the prompt's tokens."""

    def __init__(self, folder: Path, tokenizer: Any) -> None:
        import pyarrow.parquet as pq

        self.rows = pq.read_table(folder / "train.parquet").to_pylist()
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        return 10**6

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        from PIL import Image
        from torchvision.transforms.functional import normalize, to_tensor

        row = self.rows[index % len(self.rows)]
        both = [to_tensor(Image.open(io.BytesIO(row[key])).convert("RGB")) for key in ("jpg_0", "jpg_1")]
        pixels = torch.cat([normalize(image, [0.5], [0.5]) for image in both])
        settings = {"padding": "max_length", "truncation": True, "max_length": self.tokenizer.model_max_length}
        return pixels, self.tokenizer(row["caption"], return_tensors="pt", **settings).input_ids[0]


def steps(
    base: str,
    pairs: Path,
    place: Any,
    batch: int,
    precision: str,
    checkpointing: bool = False,
    optimizer: str = "adamw",
) -> Iterator[float]:
    """Yield the loss of each step, for ever."""
    from diffusers import DDPMScheduler, DiffusionPipeline
    from peft import LoraConfig

    dtype = DTYPES.get(precision, torch.float32)
    pipe = DiffusionPipeline.from_pretrained(base, torch_dtype=dtype).to(place.device)
    unet, vae, text, schedule = pipe.unet, pipe.vae, pipe.text_encoder, DDPMScheduler.from_config(pipe.scheduler.config)
    for frozen in (unet, vae, text):
        frozen.requires_grad_(False)
    targets = ["to_k", "to_q", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=16, lora_alpha=16, init_lora_weights="gaussian", target_modules=targets))
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    if checkpointing:
        unet.enable_gradient_checkpointing()
    unet.train()
    kind: Any = torch.optim.AdamW
    if optimizer == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit as kind
    update = kind(trained, lr=1e-5)
    scaler = torch.amp.GradScaler(place.device.split(":")[0], enabled=precision == "fp16")
    cast = torch.autocast(place.device.split(":")[0], dtype) if dtype != torch.float32 else nullcontext()
    for pixels, tokens in DataLoader(Images(pairs, pipe.tokenizer), batch_size=batch):
        noisy, when, noise, words = _inputs(pixels, tokens, vae, text, schedule, place.device, dtype)
        with cast:
            errors = _errors(unet, noisy, when, words, noise)
        with torch.no_grad(), cast:
            unet.disable_adapters()
            before = _errors(unet, noisy, when, words, noise)
            unet.enable_adapters()
        loss = -F.logsigmoid(-0.5 * BETA * ((errors[0] - errors[1]) - (before[0] - before[1]))).mean()
        scaler.scale(loss).backward()
        scaler.unscale_(update)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        scaler.step(update)
        scaler.update()
        update.zero_grad()
        yield loss.item()


def _inputs(
    pixels: torch.Tensor, tokens: torch.Tensor, vae: Any, text: Any, schedule: Any, device: str, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noisy latents, times, noise and prompt embeddings of winners and losers, winners first."""
    images = torch.cat(pixels.to(device, dtype).chunk(2, dim=1))
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.sample() * vae.config.scaling_factor
        words = text(tokens.to(device))[0].repeat(2, 1, 1)
    noise = torch.randn_like(latents[: len(latents) // 2]).repeat(2, 1, 1, 1)
    when = torch.randint(0, schedule.config.num_train_timesteps, (len(noise) // 2,), device=device).repeat(2)
    return schedule.add_noise(latents, noise, when), when, noise, words


def _errors(unet: Any, noisy: torch.Tensor, when: torch.Tensor, words: torch.Tensor, noise: torch.Tensor) -> Any:
    """Mean squared errors of winners and losers."""
    predicted = unet(noisy, when, words).sample
    return F.mse_loss(predicted.float(), noise.float(), reduction="none").mean((1, 2, 3)).chunk(2)
