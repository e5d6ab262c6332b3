"""Quantise the denoiser's linear layers with diffusers' configs; adapters trained on top of them stay float32.

nf4   4 bits, normal-float with quantised constants (QLoRA, arXiv 2305.14314); uses bitsandbytes; not on CPUs
int8  8 bits, symmetric, one scale per output row; uses torchao's weight-only quantisation; also on CPUs
fp8   8 bits, e4m3, one scale per output row; uses torchao's weight-only quantisation; not on MPS
Convolutions, norms and embeddings keep the dtype of the pipeline.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from prefkit.errors import UsageError
from prefkit.models.meta import components, part_of

LIBRARY = {"nf4": "bitsandbytes", "int8": "torchao", "fp8": "torchao"}
TORCHAO = {"int8": "Int8WeightOnlyConfig", "fp8": "Float8WeightOnlyConfig"}  # classes of torchao.quantization
UNSUPPORTED = {"nf4": "cpu", "fp8": "mps"}  # device type that does not support it


def check_quantize(name: str | None, device: str | None = None) -> None:
    """Raise UsageError if the quantisation is unknown, its library is missing, or the device does not support it."""
    if name is None:
        return
    if name not in LIBRARY:
        raise UsageError(f"model.quantize: {name!r} is not known; choose {', '.join(LIBRARY)}, or null.")
    if importlib.util.find_spec(LIBRARY[name]) is None:
        raise UsageError(f'model.quantize: {name} needs {LIBRARY[name]}: pip install "prefkit[quantize]"')
    kind = None if device is None else torch.device(device).type
    if kind is not None and kind == UNSUPPORTED.get(name):
        supported = [other for other in LIBRARY if kind != UNSUPPORTED.get(other)]
        raise UsageError(f"model.quantize: {name} does not run on {kind}; there, choose {' or '.join(supported)}.")


def quantization(name: str, dtype: torch.dtype) -> Any:
    """Return diffusers' quantisation config. dtype: computation dtype of nf4 layers."""
    import diffusers

    if name == "nf4":
        options = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype}
        return diffusers.BitsAndBytesConfig(load_in_4bit=True, **options)
    import torchao.quantization

    return diffusers.TorchAoConfig(getattr(torchao.quantization, TORCHAO[name])())


def quantized(source: str, revision: str | None, name: str, dtype: torch.dtype) -> dict[str, Any]:
    """Return DiffusionPipeline.from_pretrained arguments that quantise only the denoiser of the pipeline `source`."""
    from diffusers import PipelineQuantizationConfig

    denoisers = [component for component in components(source, revision) if part_of(component) == "denoiser"]
    mapping = dict.fromkeys(denoisers, quantization(name, dtype))
    return {"quantization_config": PipelineQuantizationConfig(quant_mapping=mapping)} if mapping else {}
