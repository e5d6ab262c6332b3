"""A trained adapter as other programs read it, and what a loaded adapter file held that nothing read.

diffusers  the file that training writes: `unet.PATH.lora_A.weight` with its configuration as metadata
kohya      `lora_unet_PATH_WITH_UNDERSCORES.lora_down.weight`, `.lora_up.weight`, `.alpha`; of transformers the original
           code's paths, with fused layers (lora_names)
comfyui    for UNets the same; for transformers `transformer.PATH.lora_A.weight`, without an alpha

In the latter two the strength, alpha / rank, is inside the weights, so that alpha = rank.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefkit.errors import UsageError
from prefkit.models.lora.names import COMFYUI, kohya_layers
from prefkit.store.checksums import check_folder
from prefkit.store.files import write_whole
from prefkit.store.litter import sweep_beside

ADAPTER_FILE = "pytorch_lora_weights.safetensors"
NETWORK = "network"  # key of the file's metadata: class of the denoiser


def export_as(source: str | Path, out: str | Path, layout: str, overwrite: bool = False) -> dict[str, Any]:
    """Write the adapter of train/NAME (or its final/, or its file) into the folder `out`. Returns what was written.

    Raises UsageError: no whole adapter there, `out` is there, or a layout that knows no such network.
    """
    import safetensors
    import safetensors.torch

    path = _file_of(Path(source).expanduser())
    trained = next((p.name for p in path.parents if p.parent.name == "train"), "adapter")
    name = ADAPTER_FILE if layout == "diffusers" else f"{trained}.safetensors"
    target = Path(out).expanduser() / name
    if Path(out).expanduser().is_file() or (target.exists() and not target.is_file()):
        raise UsageError(f"export: {out} and {name} in it must be a folder and a file. Give another folder.")
    if target.exists() and not overwrite:
        raise UsageError(f"export: {target} already exists. Give another folder, or --overwrite to replace it.")
    if target.exists() and target.samefile(path):
        raise UsageError(f"export: {target} is the adapter itself. Give another folder.")
    check_folder(path.parent, "Run `prefkit train` again, which exports it again.")
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata, state = file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise UsageError(f"export: {path} is damaged: {error}.") from error
    sweep_beside(target)
    if layout == "diffusers":
        write_whole(target, lambda temporary: shutil.copyfile(path, temporary))
    else:
        written = _written(layout, state, metadata)
        write_whole(
            target, lambda temporary: safetensors.torch.save_file(written, temporary, metadata={"format": "pt"})
        )
    return {"as": layout, "out": str(target), "layers": sum(".lora_A." in key for key in state)}


def _file_of(source: Path) -> Path:
    for path in (source, source / ADAPTER_FILE, source / "final" / ADAPTER_FILE):
        if path.is_file():
            return path
    raise UsageError(
        f"export: {source} holds no adapter ({ADAPTER_FILE}). Give RUN/train/NAME of a finished training with lora; full "
        "weights are a pipeline folder already."
    )


def _written(layout: str, state: Mapping[str, Any], metadata: Mapping[str, str]) -> dict[str, Any]:
    import torch

    settings, network = json.loads(metadata.get("lora_adapter_metadata", "{}")), metadata.get(NETWORK)
    layers = {}
    for module in (key.removesuffix(".lora_A.weight") for key in state if key.endswith(".lora_A.weight")):
        net, _, path = module.partition(".")
        down, up = state[f"{module}.lora_A.weight"], state[f"{module}.lora_B.weight"]
        layers[module] = down, up, alpha_of(settings, net, path, len(down)) / len(down)
    flat = evened(layers)
    if all(module.startswith("unet.") for module in flat):
        named = {f"lora_unet_{m.removeprefix('unet.').replace('.', '_')}": factors for m, factors in flat.items()}
    elif layout == "kohya":
        paths = {module.partition(".")[2]: factors for module, factors in flat.items()}
        named = kohya_layers(paths, network or "network of which the file does not tell the class")
    else:
        _check_comfyui(network)
        sides = ((m, side, t) for m, factors in flat.items() for side, t in zip("AB", factors, strict=True))
        return {f"{module}.lora_{side}.weight": tensor for module, side, tensor in sides}
    found: dict[str, Any] = {}
    for name, (down, up) in named.items():
        found[f"{name}.lora_down.weight"], found[f"{name}.lora_up.weight"] = down.contiguous(), up.contiguous()
        found[f"{name}.alpha"] = torch.tensor(float(len(down)))
    return found


def _check_comfyui(network: str | None) -> None:
    """network: None where the file does not tell it; then its names are taken to be known."""
    if network is not None and network not in COMFYUI:
        raise UsageError(
            f"export: it is not known where ComfyUI's loader puts the layers of a {network}; it leaves out in silence what it "
            f"does not know. Known are UNets and {', '.join(COMFYUI)}. Use --as diffusers."
        )


def evened(layers: Mapping[str, tuple[Any, Any, float]]) -> dict[str, tuple[Any, Any]]:
    """Name -> (down, up, strength) as (down, up) of one rank, padded with zeros, whose strength is 1.

    diffusers reads layers of different rank or alpha wrongly where no configuration comes along (0.42.1: the names in
    its alpha_pattern are not those of the modules).
    """
    rank = max((len(down) for down, _, _ in layers.values()), default=0)
    found = {}
    for name, (down, up, strength) in layers.items():
        more = rank - len(down)
        wide = (up.float() * strength).to(up.dtype)
        if more:
            down = _padded(down, 0, more)
            wide = _padded(wide, 1, more)
        found[name] = down, wide
    return found


def even_state(state: Mapping[str, Any], alphas: Mapping[str, Any]) -> dict[str, Any]:
    """A kohya file as diffusers has converted it, with its alphas put into the weights."""
    layers = {}
    for key in state:
        if ".down." in key and (up := key.replace(".down.", ".up.")) in state:
            rank = len(state[key])
            layers[key] = state[key], state[up], float(alphas.get(f"{key.split('.lora.')[0]}.alpha", rank)) / rank
    found = dict(state)
    for key, (down, wide) in evened(layers).items():
        found[key], found[key.replace(".down.", ".up.")] = down, wide
    return found


def _padded(tensor: Any, dim: int, more: int) -> Any:
    import torch

    shape = list(tensor.shape)
    shape[dim] = more
    return torch.cat([tensor, tensor.new_zeros(shape)], dim=dim).contiguous()


def alpha_of(settings: Mapping[str, Any], net: str, path: str, rank: int) -> float:
    """alpha of one layer such that its strength is alpha / rank."""
    given = {key.removeprefix(f"{net}."): value for key, value in settings.items() if key.startswith(f"{net}.")}
    alpha = given.get("lora_alpha", rank)
    for pattern, value in (given.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            alpha = value
            break
    return float(alpha) * (rank**0.5 if given.get("use_rslora") else 1.0)
