"""Trees: nested dicts, lists and tuples of tensors, None and scalars, such as a denoiser's condition."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from prefkit.models.precision import exact_dtype

Tree = Any


def leaves(tree: Tree, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, leaf) in order; a path is the keys and indices that lead to the leaf, joined with dots."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, (list, tuple)) else None
    if children is None:
        yield path, tree
        return
    for key, child in children:
        yield from leaves(child, f"{path}.{key}" if path else str(key))


def map_tensors(change: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """Return the tree with `change` applied to every tensor."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, dict):
        return {key: map_tensors(change, child) for key, child in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(map_tensors(change, child) for child in tree)
    return tree


def has_nan(tree: Tree) -> bool:
    return any(bool(leaf.isnan().any()) for _, leaf in leaves(tree) if isinstance(leaf, Tensor))


def to_device(tree: Tree, device: Any) -> Tree:
    """Move every tensor to `device`; float64 becomes float32 if the device lacks it."""
    exact = exact_dtype(device)

    def moved(tensor: Tensor) -> Tensor:
        return (tensor.to(exact) if tensor.dtype == torch.float64 else tensor).to(device, non_blocking=True)

    return map_tensors(moved, tree)


def dumps(tree: Tree) -> bytes:
    """Serialise a tree in the safetensors format: tensors are named by their paths; the metadata holds the rest."""
    import safetensors.torch

    tensors: dict[str, Tensor] = {}

    def skeleton(node: Tree, path: str) -> Any:
        if isinstance(node, Tensor):
            tensors[path] = node.detach().contiguous().cpu().clone()
            return {"tensor": path}
        if isinstance(node, dict):
            return {"dict": {key: skeleton(child, f"{path}.{key}") for key, child in node.items()}}
        if isinstance(node, (list, tuple)):
            kind = "tuple" if isinstance(node, tuple) else "list"
            return {kind: [skeleton(child, f"{path}.{i}") for i, child in enumerate(node)]}
        return {"value": node}

    shape = skeleton(tree, "")
    return safetensors.torch.save(tensors, metadata={"tree": json.dumps(shape)})


def loads(blob: bytes) -> Tree:
    """Read a tree that `dumps` wrote, with its tensors on the CPU."""
    import safetensors.torch

    length = int.from_bytes(blob[:8], "little")
    shape = json.loads(json.loads(blob[8 : 8 + length])["__metadata__"]["tree"])
    tensors = safetensors.torch.load(blob)

    def build(node: Any) -> Tree:
        ((kind, content),) = node.items()
        if kind == "dict":
            return {key: build(child) for key, child in content.items()}
        if kind in ("list", "tuple"):
            return {"list": list, "tuple": tuple}[kind](map(build, content))
        return tensors[content] if kind == "tensor" else content

    return build(shape)
