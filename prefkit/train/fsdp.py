"""`shard`: weights, gradients and optimizer states shared out among processes, by FSDP2 (torch's fully_shard).

A block's weights are gathered when it computes, in forward and again in backward (ZeRO-3).
Gradients are summed over processes as without shards, so the training is the same but for the order of sums. Checkpoints hold
whole tensors, written by the main process: any number of processes, sharded or not, goes on from them.
Every forward and backward is a meeting of all processes. So they make equally many (`even`), and what one process alone
does without shards (measuring the start, exporting) begins with all of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from prefkit import output
from prefkit.config import Recipe
from prefkit.distributed import Processes
from prefkit.errors import UsageError
from prefkit.models.lora import adapters
from prefkit.models.trees import Tree
from prefkit.train.policy import Policy

SHARDS = ("none", "fsdp2")


def check(name: str, recipe: Recipe, objective: Any, shard: str) -> None:
    """Raises UsageError for what is not offered with shards."""
    if shard == "none":
        return
    config = recipe.train[name]
    why = {
        "model.quantize packs weights so that they cannot be cut": recipe.model.quantize is not None,
        "online training samples with the whole model": config.online is not None,
        "precision fp16 scales its loss by what all gradients were; take bf16": config.precision == "fp16",
        "compile has not been tried with it": config.compile,
        f"optimizer {config.optimizer} has not been tried with it; take adamw": config.optimizer != "adamw",
        "watch samples in one process": bool(config.watch),
        "with cache_reference processes would make unequal numbers of forwards": config.cache_reference,
        f"objective {config.objective.use} moves its reference, weight by weight": objective.reference == "ema",
    }
    for reason, holds in why.items():
        if holds:
            raise UsageError(f"train.{name}.shard is {shard}: {reason}. Change it, or set shard: none.")


def shard_policy(policy: Policy, shard: str, processes: Processes, name: str) -> None:
    """Share the networks out, in place; nothing with one process. Blocks are those that diffusers says not to split."""
    if shard == "none" or processes.count == 1:
        return
    blocks = _shard(policy.net, processes)
    if policy.frozen is not None:
        _shard(policy.frozen, processes)
    policy.sharded = True
    policy.__dict__.pop("_trained", None)  # other parameters now
    if processes.main:
        output.note(f"train {name}: weights shared out among {processes.count} processes in {blocks} blocks ({shard}).")


def _shard(net: Any, processes: Processes) -> int:
    """Shard a network in place; returns the number of its blocks."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(processes.device.type, (processes.count,))
    named = os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP") or ",".join(getattr(net, "_no_split_modules", None) or ())
    kinds = {kind.strip() for kind in named.split(",")}
    inner = [module for module in net.modules() if type(module).__name__ in kinds and module is not net]
    for module in [*reversed(inner), net]:  # what is inside comes first
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    for module in net.modules():
        if isinstance(module, FSDPModule):  # gradients are sums here, and gloo knows no averages
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return len(inner)


def rest(policy: Policy) -> None:
    """After forwards without a backward: weights are shared out again, and the parameters are their shards."""
    from torch.distributed.fsdp import FSDPModule

    for module in policy.net.modules() if policy.sharded else ():
        if isinstance(module, FSDPModule):
            module.reshard()


def even(batches: Sequence[Any], policy: Policy, processes: Processes) -> Iterator[tuple[Any, float]]:
    """(batch, 1) for each; with shards, (the last, 0) after them until this process has made as many as any other."""
    most = processes.max(len(batches)) if policy.sharded else len(batches)
    for number in range(most):
        yield batches[min(number, len(batches) - 1)], float(number < len(batches))


# -- whole tensors, for checkpoints and exports: every process takes part, the main one gets them ---------------------
def whole(tree: Tree, main: bool = True) -> Tree:
    """The same tree with sharded tensors whole, on the CPU; None in their place where not main. Others stay as they are."""
    if isinstance(tree, DTensor):
        full = tree.full_tensor().detach()
        return full.cpu() if main else None
    if isinstance(tree, Mapping):
        return {key: whole(child, main) for key, child in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(whole(child, main) for child in tree)
    return tree


def spread(state: Mapping[str, Tensor], like: Mapping[str, Any]) -> dict[str, Tensor]:
    """Whole tensors, the same in every process, shared out as those in `like` are."""
    return {key: _as(tensor, like.get(key)) for key, tensor in state.items()}


def spread_optimizer(state: dict[str, Any], parameters: Sequence[nn.Parameter]) -> dict[str, Any]:
    """What an optimizer holds per parameter, shared out as the parameter is."""
    own = {
        number: {name: _as(value, parameters[number]) for name, value in held.items()}
        for number, held in state["state"].items()
    }
    return state | {"state": own}


def _as(value: Any, like: Any) -> Any:
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def gather(policy: Policy, main: bool) -> None:
    """The end of training: what an export reads is whole, on the main process's CPU; there is no next step."""
    if not policy.sharded:
        return
    layers = [layer for _, layer in adapters.lora_layers(policy.net)]
    adapted = [part[name] for layer in layers for part in (layer.lora_A, layer.lora_B) for name in part]
    for module in policy.net.modules() if policy.lora is None else adapted:
        for name, parameter in list(module.named_parameters(recurse=False)):
            full = whole(parameter, main)
            if main:
                module._parameters[name] = nn.Parameter(full, parameter.requires_grad)
