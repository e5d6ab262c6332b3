"""Denoiser of body poses: noisy pose and shape, timestep and keypoints of a picture -> clean pose and shape, or noise.

State, [B, 130]: the 20 rotations of the free body as 6D (two columns of each matrix, Zhou et al., arXiv 1812.07035), then
10 shape components; each entry is standardised by `mean` and `std`, which are stored with the weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, DDIMScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from torch import Tensor, nn

from prefkit.errors import UsageError
from prefkit.mesh.body import FREE
from prefkit.store.files import write_json
from prefkit.store.folders import whole_folder

POSE, SHAPE = 6 * len(FREE), 10
STATE = POSE + SHAPE
TIMES = 128  # width of the time embedding
PREDICTIONS = ("sample", "epsilon")
INDEX = {
    "_class_name": "MeshPipeline",
    "denoiser": ["prefkit.mesh.diffusion.network", "MeshDenoiser"],
    "scheduler": ["diffusers", "DDIMScheduler"],
}


class Block(nn.Module):
    """Residual MLP whose normalised input is scaled and shifted by the condition (FiLM, arXiv 1709.07871)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.film = nn.Linear(width, 2 * width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.film(condition).chunk(2, -1)
        return x + self.down(nn.functional.silu(self.up(self.norm(x) * (1 + scale) + shift)))


class MeshDenoiser(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """MLP on the state. keypoints: number K of keypoints; the condition has 3 K + 3 numbers (condition.py)."""

    lora_targets = ("film", "up", "down")  # modules to adapt if lora.targets is empty

    @register_to_config
    def __init__(self, keypoints: int = 18, width: int = 256, hidden: int = 512, depth: int = 3) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(STATE))
        self.register_buffer("std", torch.ones(STATE))
        self.time = nn.Sequential(nn.Linear(TIMES, width), nn.SiLU(), nn.Linear(width, width))
        self.observed = nn.Sequential(nn.Linear(3 * keypoints + 3, hidden), nn.SiLU(), nn.Linear(hidden, width))
        self.enter = nn.Linear(STATE, width)
        self.blocks = nn.ModuleList(Block(width, hidden) for _ in range(depth))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, STATE))

    def forward(self, sample: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        """Return the prediction [B, 130] for a noisy state [B, 130], timesteps [B] and conditions [B, C]."""
        given = self.observed(condition) + self.time(embedded(timestep, condition.dtype))
        x = self.enter(sample)
        for block in self.blocks:
            x = block(x, given)
        return self.leave(x)


def embedded(timestep: Tensor, dtype: torch.dtype) -> Tensor:
    """Return sines and cosines of timesteps [B] as [B, 128] (arXiv 1706.03762, section 3.5)."""
    rates = torch.exp(torch.arange(TIMES // 2, device=timestep.device) * (-math.log(10_000) / (TIMES // 2 - 1)))
    angles = timestep.float()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], -1).to(dtype)


def write_model(folder: str | Path, net: MeshDenoiser, prediction: str = "sample") -> Path:
    """Write a mesh model in diffusers' folder format: the denoiser, and a cosine schedule of 1,000 steps."""
    if prediction not in PREDICTIONS:
        raise UsageError(f"a mesh model predicts {' or '.join(PREDICTIONS)}, not {prediction!r}.")
    scheduler: Any = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type=prediction,
        clip_sample=False,
        timestep_spacing="trailing",
    )
    with whole_folder(Path(folder)) as temporary:
        net.save_pretrained(temporary / "denoiser", safe_serialization=True)
        scheduler.save_config(temporary / "scheduler")  # from_pretrained reads it
        write_json(temporary / "model_index.json", INDEX)
    return Path(folder)


def load_model(
    base: str, adapters: Mapping[str, float] | None = None, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Any, Any]:
    """Return (denoiser, scheduler) of a mesh model folder, with LoRA adapters {path: weight}. Raises UsageError."""
    folder = Path(base).expanduser()
    missing = [name for name in ("denoiser/config.json", "scheduler") if not (folder / name).exists()]
    if missing:
        raise UsageError(
            f"model.base {base} is not a folder with a mesh model: {', '.join(missing)} is missing. Give a folder "
            "written by pipelines/mesh/new_model.py, or by `prefkit train` with `family: mesh`."
        )
    try:
        net = MeshDenoiser.from_pretrained(folder / "denoiser", torch_dtype=dtype)
        scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise UsageError(f"model.base {base} could not be loaded: {' '.join(str(error).split())[:300]}") from error
    names = [f"start{n}" for n in range(len(adapters or {}))]
    for name, path in zip(names, adapters or {}):
        file = Path(path) / "pytorch_lora_weights.safetensors" if Path(path).is_dir() else Path(path)
        if not file.is_file():
            raise UsageError(f"model.adapters: {path} is not a LoRA file, nor a folder with {file.name}.")
        net.load_lora_adapter(str(file.parent), prefix="denoiser", adapter_name=name, weight_name=file.name)
    if names:
        net.set_adapters(names, list((adapters or {}).values()))
    return net.to(device).eval(), scheduler
