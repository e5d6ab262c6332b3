"""What an accelerate configuration asks for beyond processes: done, or refused by name, never left out in silence."""

from __future__ import annotations

import os

from prefkit.config import Train
from prefkit.errors import UsageError
from prefkit.output import warn

#: what `accelerate launch` sets in the environment -> what it asks for, and what to use instead
REFUSED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed, whose engine wants backward, clipping, step and checkpoints for itself: that "
    "would be a second loop beside the one whose steps and resumes are exact",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM, which splits language models",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config, and processes here share out the batch alone",
}


def check(name: str, config: Train) -> None:
    """Raises UsageError where the launcher was configured for what training would not do; warns of another precision."""
    for variable, what in REFUSED.items():
        if _on(variable):
            raise UsageError(f"train {name}: the accelerate configuration asks for {what}. Launch with `accelerate launch "
                             "--multi_gpu`, or a configuration whose distributed_type is MULTI_GPU.")  # fmt: skip
    if _on("ACCELERATE_USE_FSDP"):
        if os.environ.get("FSDP_VERSION", "1") != "2":
            raise UsageError(f"train {name}: the accelerate configuration asks for FSDP 1; set fsdp_version: 2.")
        if _on("FSDP_OFFLOAD_PARAMS"):
            raise UsageError(
                f"train {name}: the accelerate configuration asks for fsdp_offload_params, which is not offered."
            )
        if os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() == "false":
            raise UsageError(f"train {name}: the accelerate configuration sets fsdp_reshard_after_forward: false (ZeRO-2), "
                             "which is not offered; set it to true.")  # fmt: skip
        if _on("FSDP_ACTIVATION_CHECKPOINTING") and not config.gradient_checkpointing:
            raise UsageError(f"train {name}: the accelerate configuration asks for fsdp_activation_checkpointing; set "
                             f"train.{name}.gradient_checkpointing: true instead.")  # fmt: skip
    wanted = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if wanted not in ("no", config.precision):
        warn(f"train {name}: the accelerate configuration says mixed_precision {wanted}, but a training's precision is the "
             f"recipe's: {config.precision}. Set train.{name}.precision to change it.")  # fmt: skip


def shard_of(config: Train) -> str:
    """How weights are shared out: as the recipe says or, where it says nothing, as an accelerate configuration for FSDP does."""
    if config.shard != "none" or not _on("ACCELERATE_USE_FSDP"):
        return config.shard
    return "fsdp2"


def _on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("true", "1", "yes")
