"""`shard: fsdp2` uses torch's fully_shard to shard weights, gradients and optimizer states over the processes.

A block's weights are gathered when it computes, in forward and again in backward (ZeRO-3). Gradients are summed over
processes, as they are without sharding, so training differs only in the order of summation. Checkpoints hold full
tensors, written by rank 0, so any number of processes, sharded or not, can resume from them.

Every forward and backward pass needs all processes, so all processes make the same number of passes (`padded`). They
also all take part in measuring the initial model and in exporting.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from prefkit import output
from prefkit.config import Train
from prefkit.distributed.collectives import Processes
from prefkit.errors import UsageError
from prefkit.models.lora import adapters
from prefkit.models.trees import Tree
from prefkit.train.policy import Policy

SHARDS = ("none", "fsdp2")
#: environment variable set by `accelerate launch` -> the unsupported feature that the variable enables
REFUSED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed, whose engine takes over backward, clipping, steps and checkpoints, so "
    "resuming would no longer be exact",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM, which splits language models",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config, but prefkit's processes only split the batch",
}


def check_launch(name: str, config: Train) -> None:
    """Raise UsageError for an unsupported accelerate configuration; warn if its precision differs from the recipe's."""
    where = f"train {name}: the accelerate configuration"
    for variable, request in REFUSED.items():
        if _is_set(variable):
            raise UsageError(
                f"{where} asks for {request}. Launch with `accelerate launch --multi_gpu`, or a configuration whose "
                "distributed_type is MULTI_GPU."
            )
    if _is_set("ACCELERATE_USE_FSDP"):
        if os.environ.get("FSDP_VERSION", "1") != "2":
            raise UsageError(f"{where} asks for FSDP 1; set fsdp_version: 2.")
        if _is_set("FSDP_OFFLOAD_PARAMS"):
            raise UsageError(f"{where} asks for fsdp_offload_params, which is not supported; set it to false.")
        if os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() == "false":
            raise UsageError(
                f"{where} sets fsdp_reshard_after_forward: false (ZeRO-2), which is not supported; set it to true."
            )
        if _is_set("FSDP_ACTIVATION_CHECKPOINTING") and not config.gradient_checkpointing:
            raise UsageError(
                f"{where} asks for fsdp_activation_checkpointing; set train.{name}.gradient_checkpointing: true "
                "instead."
            )
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", config.precision):
        output.warn(
            f"{where} sets mixed_precision {precision}, which has no effect: the recipe sets the precision "
            f"(`{config.precision}`). Set train.{name}.precision to change it."
        )


def shard_of(config: Train) -> str:
    """Return the recipe's `shard`, or "fsdp2" if `shard` is "none" and accelerate is configured for FSDP."""
    return "fsdp2" if config.shard == "none" and _is_set("ACCELERATE_USE_FSDP") else config.shard


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("true", "1", "yes")


def shard_policy(policy: Policy, shard: str, processes: Processes, name: str) -> None:
    """Shard the policy's networks in place by blocks (diffusers' _no_split_modules), unless there is one process."""
    if shard == "none" or processes.count == 1:
        return
    blocks = _shard(policy.net, processes)
    if policy.frozen is not None:
        _shard(policy.frozen, processes)
    policy.sharded = True
    policy.__dict__.pop("_trained", None)  # sharding replaces the parameters
    if processes.main:
        output.note(f"train {name}: weights sharded over {processes.count} processes in {blocks} blocks ({shard}).")


def _shard(net: Any, processes: Processes) -> int:
    """Shard a network in place; return the number of its blocks."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(processes.device.type, (processes.count,))
    named = os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP") or ",".join(getattr(net, "_no_split_modules", None) or ())
    kinds = {kind.strip() for kind in named.split(",")}
    inner = [module for module in net.modules() if type(module).__name__ in kinds and module is not net]
    for module in [*reversed(inner), net]:  # inner modules first
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    for module in net.modules():
        if isinstance(module, FSDPModule):  # gradients are summed, not averaged (gloo cannot average)
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return len(inner)


def reshard(policy: Policy) -> None:
    """Shard the weights again after forward passes without a backward pass."""
    from torch.distributed.fsdp import FSDPModule

    for module in policy.net.modules() if policy.sharded else ():
        if isinstance(module, FSDPModule):
            module.reshard()


def padded(batches: Sequence[Any], policy: Policy, processes: Processes) -> Iterator[tuple[Any, float]]:
    """Yield (batch, weight 1). If sharded, a process with fewer batches repeats its last one with weight 0."""
    count = processes.max(len(batches)) if policy.sharded else len(batches)
    for number in range(count):
        yield batches[min(number, len(batches) - 1)], float(number < len(batches))


# -- full tensors, for checkpoints and exports: every process takes part, rank 0 gets them ----------------------
def full(tree: Tree, main: bool = True) -> Tree:
    """Return the tree with every sharded tensor replaced by the full tensor on the CPU or, if not `main`, by None."""
    if isinstance(tree, DTensor):
        tensor = tree.full_tensor().detach()
        return tensor.cpu() if main else None
    if isinstance(tree, Mapping):
        return {key: full(child, main) for key, child in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(full(child, main) for child in tree)
    return tree


def shard_state(state: Mapping[str, Tensor], like: Mapping[str, Any]) -> dict[str, Tensor]:
    """Shard full tensors (the same in all processes) in the same way as the tensors of the same name in `like`."""
    return {key: _shard_as(tensor, like.get(key)) for key, tensor in state.items()}


def shard_optimizer_state(state: dict[str, Any], parameters: Sequence[nn.Parameter]) -> dict[str, Any]:
    """Shard the full tensors of an optimizer state in the same way as the parameters that they belong to."""
    sharded = {
        number: {name: _shard_as(value, parameters[number]) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    return state | {"state": sharded}


def _shard_as(value: Any, like: Any) -> Any:
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def gather(policy: Policy, main: bool) -> None:
    """Gather the full trained parameters on rank 0's CPU, for the export at the end of training."""
    if not policy.sharded:
        return
    layers = [layer for _, layer in adapters.lora_layers(policy.net)]
    adapted = [part[name] for layer in layers for part in (layer.lora_A, layer.lora_B) for name in part]
    for module in policy.net.modules() if policy.lora is None else adapted:
        for name, parameter in list(module.named_parameters(recurse=False)):
            tensor = full(parameter, main)
            if main:
                module._parameters[name] = nn.Parameter(tensor, parameter.requires_grad)
