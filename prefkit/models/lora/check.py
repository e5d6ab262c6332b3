"""Whether an adapter file is read whole: what nothing reads is refused by name, and what is read is counted again.

Every LoRA layout is pairs of factors, and changes weights by strength * up @ down. Loaders rename, split and reorder
these, and put strengths into the factors or beside them; none of that changes the sum over all layers of the squared
Frobenius norm of strength * up @ down. So it is taken of the file and of the loaded layers: where a loader drops a layer
or scales it wrongly, the two differ.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prefkit.errors import UsageError

FACTOR = re.compile(
    r"(?P<module>.+?)(?P<kind>[._]lora(?:_linear_layer)?[._])(?P<side>down|up|A|B)(?:\.default)?\.weight"
)
MAGNITUDE = re.compile(r".+\.lora_magnitude_vector(?:\.default)?(?:\.weight)?")
OTHER = {"down": "up", "A": "B"}
#: a part of a key -> what such a file is
KINDS = {
    "lokr_": "a LoKr",
    "hada_": "a LoHa",
    "oft_": "an OFT",
    "boft": "a BOFT",
    "ia3": "an IA3",
    "on_input": "an IA3",
    "dora_scale": "a DoRA of LyCORIS",
    "lora_mid": "a LoCon with Tucker factors",
    "lora_embedding": "a LoRA of embeddings",
    "bundle_emb": "a LoRA with embeddings of its own",
    "lora_B.bias": "a LoRA with biases",
    "diff_b": "a LyCORIS with differences of biases",
    ".diff": "a LyCORIS with differences of whole weights",
    "w_norm": "a LyCORIS with norms",
    "b_norm": "a LyCORIS with norms",
}
CLOSE = 2e-2  # of one layer: its factors may be rounded to the network's dtype
CLOSE_TOGETHER = 1e-3  # of all layers, over which rounding averages out


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a safetensors file. Raises UsageError naming it where it is damaged."""
    import safetensors

    try:
        with safetensors.safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise UsageError(
            f"the adapter {path} is no safetensors file that can be read ({error}). Get it again."
        ) from error


def refuse_unread(state: Mapping[str, Tensor], source: str) -> None:
    """Raises UsageError naming the first key that is not part of a LoRA's pair of factors, its alpha, or a DoRA's magnitude."""
    modules = {found["module"] for key in state if (found := FACTOR.fullmatch(key))}
    magnitudes = [key for key in state if MAGNITUDE.fullmatch(key)]
    lone = [key for key in state if (f := FACTOR.fullmatch(key)) and not _partner(key, f, state)]
    unknown = [
        key for key in state if not FACTOR.fullmatch(key) and key not in magnitudes and not _alpha_key(key, modules)
    ]
    left = unknown or lone or (magnitudes if len(magnitudes) != len(modules) else [])
    if not left:
        return
    key = left[0]
    kind = next((text for part, text in KINDS.items() if part in key), "")
    if key in magnitudes:
        kind = "a DoRA of only some of its layers"
    elif key in lone:
        kind = "a LoRA with half a pair of factors"
    raise UsageError(
        f"the adapter {source} {f'is {kind}: it ' if kind else ''}holds {len(left)} weights that prefkit does not read, the "
        f"first being {key}. Only LoRA is read whole, so nothing of it was loaded. Merge it into the base with the program "
        "that made it and start from that, or convert it to a LoRA."
    )


def _partner(key: str, found: re.Match[str], state: Mapping[str, Tensor]) -> str | None:
    """The other factor's key; None where it is not there."""
    sides = OTHER | {up: down for down, up in OTHER.items()}
    start, end = found.span("side")
    other = key[:start] + sides[found["side"]] + key[end:]
    return other if other in state else None


def _alpha_key(key: str, modules: Iterable[str]) -> bool:
    return key.endswith(".alpha") and key.removesuffix(".alpha") in modules


def check_whole(pipe: Any, name: str, state: Mapping[str, Tensor], metadata: Mapping[str, str], source: str) -> None:
    """Raises UsageError where the layers called `name`, as loaded at weight 1, are not what the file says."""
    written, loaded = _of_file(state, metadata), _of_layers(pipe, name)
    whole = len(loaded) >= len(written) and abs(sum(loaded) - sum(written)) <= CLOSE_TOGETHER * sum(written)
    if len(written) == len(loaded):  # nothing was split: layer by layer
        whole = all(abs(a - b) <= CLOSE * a for a, b in zip(sorted(written), sorted(loaded), strict=True))
    scales = [float(value.float().square().sum()) for key, value in state.items() if MAGNITUDE.fullmatch(key)]
    if not whole or abs(sum(scales) - _magnitudes(pipe, name)) > CLOSE_TOGETHER * sum(scales):
        raise UsageError(
            f"the adapter {source} would be read in part or at another strength: by its file it changes {len(written)} "
            f"layers by {sum(written) ** 0.5:.4g} together, as loaded {len(loaded)} by {sum(loaded) ** 0.5:.4g}. It was made "
            "for another model, or its layout is not known; convert it to diffusers' layout with the program that made it."
        )


def _of_file(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> list[float]:
    """Squared norm of each layer's change, at the strength that the file gives it: 1 where it gives none."""
    from prefkit.models.lora.files import alpha_of

    settings = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    norms = []
    for key, down in state.items():
        found = FACTOR.fullmatch(key)
        if found is None or found["side"] not in OTHER:
            continue
        up, rank = state[_partner(key, found, state) or ""], len(down)
        alpha = state.get(f"{found['module']}.alpha")
        net, _, path = found["module"].partition(".")
        strength = (alpha_of(settings, net, path, rank) if alpha is None else float(alpha)) / rank
        norms.append(strength**2 * _norm(down, up))
    return norms


def _layers(pipe: Any, name: str) -> Iterator[Any]:
    from prefkit.models.lora.adapters import lora_layers

    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            yield from (layer for _, layer in lora_layers(component) if name in layer.lora_A)


def _of_layers(pipe: Any, name: str) -> list[float]:
    return [
        layer.scaling[name] ** 2 * _norm(layer.lora_A[name].weight, layer.lora_B[name].weight)
        for layer in _layers(pipe, name)
    ]


def _magnitudes(pipe: Any, name: str) -> float:
    """Squared norm of all magnitudes of a DoRA, 0 for a plain LoRA."""
    own = [layer.lora_magnitude_vector[name] for layer in _layers(pipe, name) if name in layer.lora_magnitude_vector]
    return sum(float(vector.weight.detach().float().square().sum()) for vector in own)


def _norm(down: Tensor, up: Tensor) -> float:
    """Squared Frobenius norm of up @ down, without the product: down [r, ...], up [out, r, ...] (1 x 1 for convolutions)."""
    a, b = down.detach().flatten(1).float(), up.detach().flatten(1).float()
    return float(((b.T @ b) * (a @ a.T)).sum())
