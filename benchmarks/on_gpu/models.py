"""Pipelines of real size with random weights, built from their published configurations: sd15, sdxl, flux.

Everything but the sizes comes from the tiny pipelines (`prefkit.testing`): tokenizers, schedulers, VAE scales. The T5 of
FLUX has 2 of its 24 layers, because only its output's width matters here. sd15 and sdxl are saved as files in bfloat16. The
transformer of FLUX (24 GB) is not: `random_transformer` creates it on the device whenever it is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from memory import denoiser

from prefkit.testing import tiny_pipeline, wake_zeros

KINDS = {"sd15": "sd", "sdxl": "sdxl", "flux": "flux"}
CHANNELS = {"sd15": 4, "sdxl": 4, "flux": 16}  # of the VAE's latents
CLIP = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
BIG = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
T5 = {"d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64, "num_layers": 2}
VOCABULARY = 49408


def make_pipeline(model: str, folder: Path, tiny: bool, device: str) -> Path:
    """Save the pipeline in `folder`, unless it already exists. tiny: as in the tests, for a CPU."""
    if (folder / "model_index.json").exists():
        return folder
    whole = folder.with_name(folder.name + ".part")
    tiny_pipeline(KINDS[model], whole)
    if not tiny:
        _enlarge(model, whole, device)
    return whole.rename(folder)


def _enlarge(model: str, folder: Path, device: str) -> None:
    """Replace the tiny networks by networks of real size."""
    import diffusers
    import transformers

    torch.manual_seed(0)
    with _bfloat16(device):
        if model == "flux":
            with torch.device("meta"):
                net: Any = denoiser(model)
            net.save_config(folder / "transformer")  # the weights stay tiny: see random_transformer
        else:
            net = denoiser(model)
            wake_zeros(net)
            net.save_pretrained(folder / "unet")
        settings = dict(diffusers.AutoencoderKL.load_config(folder / "vae"))
        settings |= {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "norm_num_groups": 32}
        settings |= {"latent_channels": CHANNELS[model], "sample_size": 512 if model == "sd15" else 1024}
        diffusers.AutoencoderKL.from_config(settings).save_pretrained(folder / "vae")
        _text(transformers.CLIPTextModel, folder / "text_encoder", CLIP)
        if model == "sdxl":
            big = BIG | {"projection_dim": 1280}
            _text(transformers.CLIPTextModelWithProjection, folder / "text_encoder_2", big)
        if model == "flux":
            _text(transformers.T5EncoderModel, folder / "text_encoder_2", T5)


def _text(kind: Any, folder: Path, sizes: dict[str, int]) -> None:
    config = kind.config_class.from_pretrained(folder)
    for name, value in (sizes | ({"vocab_size": VOCABULARY} if "hidden_size" in sizes else {})).items():
        setattr(config, name, value)
    kind(config).save_pretrained(folder)


@contextmanager
def _bfloat16(device: str) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def random_transformer(device: str) -> Iterator[None]:
    """Inside, FLUX transformers get random weights on the device, always the same, instead of weights from a file."""
    from diffusers import FluxTransformer2DModel

    before = FluxTransformer2DModel.__dict__.get("from_pretrained")

    def from_pretrained(cls: Any, path: str, **settings: Any) -> Any:
        if settings.get("quantization_config") is not None:
            raise NotImplementedError("the random FLUX transformer has no files to quantize")
        dtype = settings.get("torch_dtype") or settings.get("dtype") or torch.bfloat16
        with torch.random.fork_rng(), _bfloat16(device):
            torch.manual_seed(0)
            net = cls.from_config(cls.load_config(path))
        return net.to(dtype).eval()

    FluxTransformer2DModel.from_pretrained = classmethod(from_pretrained)  # type: ignore[method-assign]
    try:
        yield
    finally:
        if before is None:
            del FluxTransformer2DModel.from_pretrained
        else:
            FluxTransformer2DModel.from_pretrained = before  # type: ignore[method-assign]
