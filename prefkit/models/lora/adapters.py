"""LoRA adapters on a denoiser: add a new one, continue a loaded one, and export in diffusers' file format.

An export is always one file. A single adapter is written unchanged, with its configuration (rank and alpha). Several
adapters are joined along the rank with alpha = rank, which is exact: sum_i s_i B_i A_i = [s_1 B_1, ...] [A_1; ...].
"""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prefkit.config import Model
from prefkit.errors import TrainingError, UsageError
from prefkit.models.lora.files import ADAPTER_FILE, NETWORK
from prefkit.models.meta import LIBRARIES, components, on_meta_device, part_of
from prefkit.registry import nearest
from prefkit.tiny import located

POLICY = "policy"
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


def lora_layers(net: Any) -> Iterator[tuple[str, Any]]:
    """Return an iterator over (module name, peft layer) for every layer that has an adapter."""
    from peft.tuners.lora import LoraLayer

    return ((name, module) for name, module in net.named_modules() if isinstance(module, LoraLayer))


def active_adapters(net: Any) -> list[str]:
    """Return the names of the active adapters (those used in a forward pass), in order.

    diffusers activates all names on all networks of a pipeline; names that this network does not have are left out.
    """
    names = dict.fromkeys(name for _, layer in lora_layers(net) for name in layer.active_adapters)
    return [name for name in names if name in net.peft_config]


@contextmanager
def layers_active(layers: Sequence[Any], names: Sequence[str]) -> Iterator[None]:
    """Temporarily activate only the adapters `names`. Unlike peft's set_adapter, this leaves requires_grad unchanged.

    Training computes the reference in this way, with the initial model's adapters. layers: the network's layers with
    adapters (from lora_layers).
    """
    before = [layer._active_adapter for layer in layers]
    for layer in layers:
        layer._active_adapter = list(names)
    try:
        yield
    finally:
        for layer, active in zip(layers, before, strict=True):
            layer._active_adapter = active


def add_lora(
    net: Any, rank: int, alpha: float, targets: Sequence[str] | None = None, dropout: float = 0.0, seed: int = 0
) -> int:
    """Add a new float32 adapter to `net`, on top of its existing adapters, and freeze everything else.

    The factor B starts at zero, so the network's output does not change at first. targets: suffixes of module names;
    default: the network's `lora_targets` if it defines them, else the attention projections. Returns the number of
    trainable parameters. Raises UsageError if a given target matches no module, or one that cannot have an adapter;
    TrainingError if the network does not support adapters.
    """
    from peft import LoraConfig

    if not hasattr(net, "add_adapter"):
        raise TrainingError(
            f"{type(net).__name__} does not support adapters in diffusers. Set lora: null to train full weights."
        )
    start, endings = active_adapters(net), _linear_endings(net)
    own: Sequence[str] = getattr(net, "lora_targets", TARGETS)
    chosen = list(targets or own)
    _check_targets(net, chosen, endings, every=bool(targets))
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft takes fractions too
        target_modules=chosen,
        lora_dropout=dropout,
        init_lora_weights="gaussian",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            _add(net, config)
        except ValueError as error:  # peft's message prints the whole module and all supported types
            kind = re.match(r"Target module (\w+)", str(error))
            raise UsageError(
                f"lora.targets: a module in {type(net).__name__} whose name ends in {' or '.join(map(repr, chosen))} "
                f"is a {kind[1] if kind else 'module'}, which cannot have an adapter. The names of linear modules end "
                f"in {', '.join(endings)}."
            ) from error
    return _train_only(net, [*start, POLICY])


def _add(net: Any, config: Any) -> None:
    """Add the trained adapter through peft; add_adapter of transformers 5.24 needs a peft that is not released yet."""
    from transformers import PreTrainedModel

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are intended here
        if not isinstance(net, PreTrainedModel):
            net.add_adapter(config, adapter_name=POLICY)
            return
        from peft import inject_adapter_in_model

        inject_adapter_in_model(config, net, POLICY)
        net._hf_peft_config_loaded = True


def _linear_endings(net: Any) -> list[str]:
    """Return the endings of linear modules' names: the last part or, if it is a number, the last two (to_out.0)."""
    endings = set()
    for path, module in net.named_modules():
        if isinstance(module, torch.nn.Linear):
            parts = path.split(".")
            endings.add(".".join(parts[-2:] if parts[-1].isdigit() else parts[-1:]))
    return sorted(endings)


def _check_targets(net: Any, targets: Sequence[str], endings: Sequence[str], every: bool) -> None:
    """Raise UsageError if no target matches a module. every: raise it also if any single target matches no module."""
    paths = [f".{path}" for path, _ in net.named_modules() if path]
    unused = [target for target in targets if not any(path.endswith(f".{target}") for path in paths)]
    if unused and (every or len(unused) == len(targets)):
        raise UsageError(
            f"lora.targets: no module name in {type(net).__name__} ends in {' or '.join(map(repr, unused))}."
            f"{nearest(unused[0], endings)} The names of its linear modules end in {', '.join(endings)}."
        )


def check_targets(model: Model, targets: Sequence[str]) -> None:
    """Raise UsageError if a target matches no module of the denoiser. Reads no weights; checks local folders only."""
    source = str(located(model.base))
    if not (Path(source) / "model_index.json").is_file():
        return
    for name, entry in components(source, None).items():
        if part_of(name) == "denoiser" and entry[0] in LIBRARIES:
            net = on_meta_device(entry, source, name, None, torch.float32, "cpu")
            _check_targets(net, targets, _linear_endings(net), every=True)


def continue_lora(net: Any, start: str = "start0", dropout: float = 0.0) -> int:
    """Copy the loaded adapter `start` and make the copy trainable; the original stays frozen for the reference.

    dropout: dropout of the copy. Returns the number of trainable parameters.
    """
    before = active_adapters(net)
    _add(net, _with_dropout(net.peft_config[start], dropout))
    with torch.no_grad():
        for _, layer in lora_layers(net):
            if start not in layer.lora_A:
                continue
            layer.scaling[POLICY] = layer.scaling[start]
            for pair in (layer.lora_A, layer.lora_B):
                pair[POLICY].weight.copy_(pair[start].weight)
    return _train_only(net, [POLICY if active == start else active for active in before])


def _train_only(net: Any, active: Sequence[str]) -> int:
    net.requires_grad_(False)
    count = 0
    for _, layer in lora_layers(net):
        layer._active_adapter = list(active)
        if POLICY in layer.lora_A:
            for module in (layer.lora_A[POLICY], layer.lora_B[POLICY]):
                module.to(torch.float32).requires_grad_(True)
                count += sum(parameter.numel() for parameter in module.parameters())
    return count


def lora_state(net: Any, name: str = POLICY) -> dict[str, Tensor]:
    """Return an adapter's weights by name, such as "module.lora_A.weight". The tensors are not copied."""
    state = {}
    for path, layer in lora_layers(net):
        if name in layer.lora_A:
            state[f"{path}.lora_A.weight"] = layer.lora_A[name].weight
            state[f"{path}.lora_B.weight"] = layer.lora_B[name].weight
    return state


def load_lora_state(net: Any, state: dict[str, Tensor]) -> None:
    """Copy saved weights into the trained adapter. Raises TrainingError if the keys differ."""
    weights = lora_state(net)
    differing = sorted(weights.keys() ^ state.keys())
    if differing:
        raise TrainingError(
            f"the saved adapter belongs to another network: {len(differing)} keys differ, for example {differing[0]}."
        )
    with torch.no_grad():
        for key, tensor in weights.items():
            tensor.copy_(state[key])


def export_adapter(net: Any, denoiser: str, folder: str | Path, text_encoders: Mapping[str, Any] | None = None) -> Path:
    """Write the active adapters to `folder`/pytorch_lora_weights.safetensors, with component names as key prefixes.

    text_encoders: component name -> text encoder whose adapters are written too.
    """
    import safetensors.torch

    tensors: dict[str, Tensor] = {}
    settings: dict[str, Any] = {}
    for component, owner in {denoiser: net, **(text_encoders or {})}.items():
        state, config = _portable(owner, *_active(owner)) if owner is not net else _active(owner)
        tensors |= {f"{component}.{key}": value.detach().contiguous().cpu() for key, value in state.items()}
        settings |= {f"{component}.{key}": value for key, value in config.to_dict().items()}
    described = json.dumps(
        settings, default=lambda v: sorted(v) if isinstance(v, (set, frozenset)) else str(v), sort_keys=True
    )
    Path(folder).mkdir(parents=True, exist_ok=True)
    path = Path(folder) / ADAPTER_FILE
    metadata = {"format": "pt", "lora_adapter_metadata": described, NETWORK: _network(net)}
    safetensors.torch.save_file(tensors, path, metadata=metadata)
    _sort_metadata(path)
    return path


def _active(net: Any) -> tuple[dict[str, Tensor], Any]:
    """Return the active adapters as one: (weights by name, configuration)."""
    names = active_adapters(net)
    if len(names) == 1 and _as_configured(net, names[0]):
        state, config = lora_state(net, names[0]), net.peft_config[names[0]]
    else:
        state, config = _joined(net, names)
    return state, _with_dropout(config, 0.0)  # otherwise, loading the file would enable dropout again


def _portable(encoder: Any, state: dict[str, Tensor], config: Any) -> tuple[dict[str, Tensor], Any]:
    """Return an adapter of a text encoder with names that all programs read.

    Files name a CLIP layer text_model.PATH, but transformers 5 dropped `text_model` from CLIPTextModel. The
    configuration names layers by the ends of their paths, which are the same in all versions.
    """
    start, changed = "text_model.", copy.copy(config)
    changed.base_model_name_or_path = None  # a local folder
    if not isinstance(config.target_modules, str):  # a string is a pattern
        changed.target_modules = {name.removeprefix(start) for name in config.target_modules}
    for name in ("rank_pattern", "alpha_pattern"):
        pattern = getattr(config, name) or {}
        setattr(changed, name, {key.removeprefix("^").removeprefix(start): value for key, value in pattern.items()})
    prefix = "" if hasattr(encoder, "text_model") else start
    return {f"{prefix}{key}": value for key, value in state.items()}, changed


def _sort_metadata(path: Path) -> None:
    """Sort the metadata in a safetensors file, so that equal adapters give identical files.

    The file starts with the header's length (8 bytes) and the header, which is JSON padded with spaces.
    """
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:
            file.seek(8)
            file.write(text.ljust(size))


def _network(net: Any) -> str:
    """Return the name of the network's diffusers class (a sharded network has a subclass of it)."""
    kinds = type(net).__mro__
    return next((k for k in kinds if k.__module__.startswith(("diffusers.", "prefkit."))), kinds[0]).__name__


def _with_dropout(config: Any, dropout: float) -> Any:
    changed = copy.copy(config)
    changed.lora_dropout = dropout
    return changed


def _as_configured(net: Any, name: str) -> bool:
    """True if the adapter's strength is lora_alpha / r in every layer."""
    config = net.peft_config[name]
    if config.alpha_pattern or config.rank_pattern or config.use_rslora:
        return False
    strength = config.lora_alpha / config.r
    return all(layer.scaling[name] == strength for _, layer in lora_layers(net) if name in layer.lora_A)


def _joined(net: Any, names: Sequence[str]) -> tuple[dict[str, Tensor], Any]:
    from peft import LoraConfig

    state: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for path, layer in lora_layers(net):
        present = [name for name in names if name in layer.lora_A]
        if not present:
            continue
        if getattr(layer, "use_dora", {}) and any(layer.use_dora.get(name) for name in present):
            raise TrainingError(f"{path} has a DoRA adapter, which cannot be joined with others. Merge it first.")
        down = [layer.lora_A[name].weight.float() for name in present]
        up = [layer.lora_B[name].weight.float() * layer.scaling[name] for name in present]
        state[f"{path}.lora_A.weight"], state[f"{path}.lora_B.weight"] = torch.cat(down, dim=0), torch.cat(up, dim=1)
        ranks[path] = len(state[f"{path}.lora_A.weight"])
    most = max(ranks.values())
    pattern = {f"^{path}": rank for path, rank in ranks.items() if rank != most}
    config = LoraConfig(
        r=most, lora_alpha=most, target_modules=list(ranks), rank_pattern=pattern, alpha_pattern=dict(pattern)
    )
    return state, config
