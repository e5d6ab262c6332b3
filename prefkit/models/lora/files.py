"""Export a trained adapter for other programs, in one of three layouts.

diffusers  the file that training writes: `unet.PATH.lora_A.weight`, with its configuration as metadata
kohya      `lora_unet_PATH_WITH_UNDERSCORES.lora_down.weight`, `.lora_up.weight`, `.alpha`; for transformers, PATH is
           that of the original code, which fuses some layers (lora/names.py). Layers of text encoders start with
           `lora_te_` if the model is a UNet with one text encoder, else with `lora_te1_` or `lora_te2_`
comfyui    for UNets, equal to kohya; for transformers, `transformer.PATH.lora_A.weight` without an alpha, and
           `text_encoder.PATH.lora_A.weight`

In kohya and comfyui, the weights are multiplied by the strength alpha / rank, and the new alpha is the rank.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefkit.errors import UsageError
from prefkit.models.lora.names import COMFYUI, kohya_layers, text_layers
from prefkit.store.checksums import check_folder
from prefkit.store.files import write_whole
from prefkit.store.litter import sweep_beside

ADAPTER_FILE = "pytorch_lora_weights.safetensors"
NETWORK = "network"  # key in the file's metadata for the denoiser's class name


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return (tensors, metadata) of an adapter file. Raises UsageError if it is damaged."""
    import safetensors

    try:
        with safetensors.safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise UsageError(
            f"the adapter {path} is damaged or not a safetensors file ({error}). Copy or download it again."
        ) from error


def export_as(source: str | Path, out: str | Path, layout: str, overwrite: bool = False) -> dict[str, Any]:
    """Write a trained adapter into the folder `out`, in the layout `layout`. Returns a summary.

    source: RUN/train/NAME, RUN/train/NAME/final or the adapter file. Raises UsageError for a missing or damaged
    adapter, an existing output file, or a network that the layout does not support.
    """
    import safetensors.torch

    source, out = Path(source).expanduser(), Path(out).expanduser()
    paths = [path for path in (source, source / ADAPTER_FILE, source / "final" / ADAPTER_FILE) if path.is_file()]
    if not paths:
        raise UsageError(
            f"export: {source} holds no adapter ({ADAPTER_FILE}). Give the folder RUN/train/NAME of a finished LoRA "
            "training. Full-weight training needs no export: it writes a pipeline folder."
        )
    path = paths[0]
    name = next((p.name for p in path.parents if p.parent.name == "train"), "adapter")
    target = out / (ADAPTER_FILE if layout == "diffusers" else f"{name}.safetensors")
    if out.is_file() or (target.exists() and not target.is_file()):
        raise UsageError(f"export: {out} is not a folder, or {target.name} in it is not a file. Give another folder.")
    if target.exists() and not overwrite:
        raise UsageError(f"export: {target} already exists. Give another folder, or --overwrite to replace it.")
    if target.exists() and target.samefile(path):
        raise UsageError(f"export: {target} is the adapter itself. Give another folder.")
    check_folder(path.parent, "Run `prefkit train` again, which exports it again.")
    state, metadata = read_file(path)
    sweep_beside(target)
    if layout == "diffusers":
        write_whole(target, lambda temporary: shutil.copyfile(path, temporary))
    else:
        converted = _converted(layout, state, metadata)
        write_whole(
            target, lambda temporary: safetensors.torch.save_file(converted, temporary, metadata={"format": "pt"})
        )
    return {"as": layout, "out": str(target), "layers": sum(".lora_A." in key for key in state)}


def _converted(layout: str, state: Mapping[str, Any], metadata: Mapping[str, str]) -> dict[str, Any]:
    import torch

    settings, network = json.loads(metadata.get("lora_adapter_metadata", "{}")), metadata.get(NETWORK)
    layers = {}
    for module in (key.removesuffix(".lora_A.weight") for key in state if key.endswith(".lora_A.weight")):
        net, _, path = module.partition(".")
        down, up = state[f"{module}.lora_A.weight"], state[f"{module}.lora_B.weight"]
        layers[module] = down, up, alpha_of(settings, net, path, len(down)) / len(down)
    factors = with_unit_strength(layers)
    denoiser = {module: pair for module, pair in factors.items() if not module.startswith("text_encoder")}
    if all(module.startswith("unet.") for module in denoiser):
        named = {f"lora_unet_{m.removeprefix('unet.').replace('.', '_')}": pair for m, pair in denoiser.items()}
    elif layout == "kohya":
        paths = {module.partition(".")[2]: pair for module, pair in denoiser.items()}
        named = kohya_layers(paths, network or "network whose class the file does not name")
    elif network is not None and network not in COMFYUI:  # assume that an unnamed class is supported
        raise UsageError(
            f"export: ComfyUI may not know the layer names of a {network}, and would silently ignore them. It is known "
            f"to read UNets and {', '.join(COMFYUI)}. Use --as diffusers."
        )
    else:
        return {f"{m}.lora_{side}.weight": tensor for m, pair in factors.items() for side, tensor in zip("AB", pair)}
    tensors: dict[str, Any] = {}
    text = {module: pair for module, pair in factors.items() if module not in denoiser}
    unet = any(module.startswith("unet.") for module in denoiser)
    for name, (down, up) in {**named, **text_layers(text, unet)}.items():
        tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"] = down.contiguous(), up.contiguous()
        tensors[f"{name}.alpha"] = torch.tensor(float(len(down)))
    return tensors


def with_unit_strength(layers: Mapping[str, tuple[Any, Any, float]]) -> dict[str, tuple[Any, Any]]:
    """Multiply each layer's strength into its factors, and pad all factors to the same rank.

    layers: name -> (down, up, strength). Returns name -> (down, up). Needed because diffusers (0.42.1) misreads a
    file without configuration if ranks or alphas differ between its layers.
    """
    from torch.nn.functional import pad

    rank = max((len(down) for down, _, _ in layers.values()), default=0)
    factors = {}
    for name, (down, up, strength) in layers.items():
        more, up = rank - len(down), (up.float() * strength).to(up.dtype)
        if more:  # pad along the rank: rows of down, columns of up
            down, up = (pad(t, [0, 0] * (t.ndim - 1 - dim) + [0, more]) for t, dim in ((down, 0), (up, 1)))
        factors[name] = down, up
    return factors


def even_state(state: Mapping[str, Any], alphas: Mapping[str, Any]) -> dict[str, Any]:
    """Multiply the alphas of a kohya file into its weights. state, alphas: the file as diffusers converted it."""
    layers = {}
    for key in state:
        if ".down." in key and (up := key.replace(".down.", ".up.")) in state:
            rank = len(state[key])
            layers[key] = state[key], state[up], float(alphas.get(f"{key.split('.lora.')[0]}.alpha", rank)) / rank
    scaled = dict(state)
    for key, (down, wide) in with_unit_strength(layers).items():
        scaled[key], scaled[key.replace(".down.", ".up.")] = down, wide
    return scaled


def alpha_of(settings: Mapping[str, Any], net: str, path: str, rank: int) -> float:
    """Return the alpha of a layer, whose strength is alpha / rank. settings: the file's lora_adapter_metadata."""
    config = {key.removeprefix(f"{net}."): value for key, value in settings.items() if key.startswith(f"{net}.")}
    patterns = (config.get("alpha_pattern") or {}).items()
    matching = (value for pattern, value in patterns if re.match(rf"(.*\.)?({pattern})$", path))
    return float(next(matching, config.get("lora_alpha", rank))) * (rank**0.5 if config.get("use_rslora") else 1.0)
