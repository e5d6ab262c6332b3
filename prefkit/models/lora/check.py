"""Check that an adapter file is loaded completely: refuse unknown weights, and compare the loaded layers with the file.

A LoRA holds pairs of factors, up and down, and changes weights by strength * up @ down. Loaders may rename, split and
reorder the factors, or multiply strengths into them. None of this changes the sum over all layers of the squared
Frobenius norm of strength * up @ down. The sum is computed from the file and from the loaded layers: if a loader drops
a layer or scales it wrongly, the results differ.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prefkit.errors import UsageError
from prefkit.models.lora.adapters import lora_layers
from prefkit.models.lora.files import alpha_of

FACTOR = re.compile(
    r"(?P<module>.+?)(?P<kind>[._]lora(?:_linear_layer)?[._])(?P<side>down|up|A|B)(?:\.default)?\.weight"
)
MAGNITUDE = re.compile(r".+\.lora_magnitude_vector(?:\.default)?(?:\.weight)?")
#: text in a key -> the kind of adapter that has such keys
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
    "bundle_emb": "a LoRA with its own embeddings",
    "lora_B.bias": "a LoRA with biases",
    "diff_b": "a LyCORIS with differences of biases",
    ".diff": "a LyCORIS with differences of whole weights",
    "w_norm": "a LyCORIS with norms",
    "b_norm": "a LyCORIS with norms",
}
LAYER_TOLERANCE = 2e-2  # relative, for one layer: its factors may be rounded to the network's dtype
TOTAL_TOLERANCE = 1e-3  # relative, for the sum over all layers, where rounding averages out


def refuse_unread(state: Mapping[str, Tensor], source: str) -> None:
    """Raise UsageError if the file holds anything but pairs of LoRA factors, alphas and DoRA magnitudes."""
    factors = {key: match for key in state if (match := FACTOR.fullmatch(key))}
    modules = {match["module"] for match in factors.values()}
    magnitudes = [key for key in state if MAGNITUDE.fullmatch(key)]
    lone = [key for key, match in factors.items() if _partner(key, match) not in state]
    known = {*factors, *magnitudes, *(f"{module}.alpha" for module in modules)}
    unread = (
        [key for key in state if key not in known] or lone or (magnitudes if len(magnitudes) != len(modules) else [])
    )
    if not unread:
        return
    key = unread[0]
    kind = next((text for part, text in KINDS.items() if part in key), "")
    if key in magnitudes:
        kind = "a DoRA of only some of its layers"
    elif key in lone:
        kind = "a LoRA with half a pair of factors"
    raise UsageError(
        f"the adapter {source} {f'is {kind}: it ' if kind else ''}holds {len(unread)} weights that prefkit does not "
        f"read, for example {key}. Merge the adapter into the base model with the program that made it, and set the "
        "result as model.base; or convert it to a LoRA."
    )


def _partner(key: str, match: re.Match[str]) -> str:
    """Return the key of the second factor in the pair of `key`."""
    start, end = match.span("side")
    return key[:start] + {"down": "up", "up": "down", "A": "B", "B": "A"}[match["side"]] + key[end:]


def check_whole(pipe: Any, name: str, state: Mapping[str, Tensor], metadata: Mapping[str, str], source: str) -> None:
    """Raise UsageError if the loaded layers of adapter `name`, at weight 1, differ from the file's layers."""
    layers = [
        layer
        for component in pipe.components.values()
        if isinstance(component, torch.nn.Module)
        for _, layer in lora_layers(component)
        if name in layer.lora_A
    ]
    written = _file_norms(state, metadata)
    loaded = [x.scaling[name] ** 2 * _norm(x.lora_A[name].weight, x.lora_B[name].weight) for x in layers]
    complete = len(loaded) >= len(written) and abs(sum(loaded) - sum(written)) <= TOTAL_TOLERANCE * sum(written)
    if len(written) == len(loaded):  # no layer was split: compare layer by layer
        complete = all(abs(a - b) <= LAYER_TOLERANCE * a for a, b in zip(sorted(written), sorted(loaded), strict=True))
    magnitudes = [layer.lora_magnitude_vector[name].weight for layer in layers if name in layer.lora_magnitude_vector]
    in_file = sum(_squared(value) for key, value in state.items() if MAGNITUDE.fullmatch(key))
    if not complete or abs(in_file - sum(map(_squared, magnitudes))) > TOTAL_TOLERANCE * in_file:
        raise UsageError(
            f"the adapter {source} would be loaded only in part or at another strength: the file changes "
            f"{len(written)} layers by {sum(written) ** 0.5:.4g} in total (Frobenius norm), the loaded adapter "
            f"{len(loaded)} layers by {sum(loaded) ** 0.5:.4g}. It belongs to another model, or its layout is unknown. "
            "Convert it to diffusers' layout with the program that made it."
        )


def _file_norms(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> list[float]:
    """Return each layer's squared norm of strength * up @ down. The strength is 1 if the file gives none."""
    settings = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    norms = []
    for key, down in state.items():
        match = FACTOR.fullmatch(key)
        if match is None or match["side"] not in ("down", "A"):
            continue
        alpha = state.get(f"{match['module']}.alpha")
        net, _, path = match["module"].partition(".")
        strength = (alpha_of(settings, net, path, len(down)) if alpha is None else float(alpha)) / len(down)
        norms.append(strength**2 * _norm(down, state[_partner(key, match)]))
    return norms


def _squared(tensor: Tensor) -> float:
    return float(tensor.detach().float().square().sum())


def _norm(down: Tensor, up: Tensor) -> float:
    """Return the squared norm of up @ down without computing the product. down: [r, ...], up: [out, r, ...]."""
    a, b = down.detach().flatten(1).float(), up.detach().flatten(1).float()
    return float(((b.T @ b) * (a @ a.T)).sum())
