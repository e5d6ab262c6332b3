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
    "ACCELERATE_USE_FSDP": "FSDP, and every process of prefkit holds the whole model",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM, which splits language models",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config, and processes here share out the batch alone",
}


def check(name: str, config: Train) -> None:
    """Raises UsageError where the launcher was configured for what training would not do; warns of another precision."""
    for variable, what in REFUSED.items():
        if _on(variable):
            raise UsageError(f"train {name}: the accelerate configuration asks for {what}. Launch with `accelerate launch "
                             "--multi_gpu`, or a configuration whose distributed_type is MULTI_GPU.")  # fmt: skip
    wanted = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if wanted not in ("no", config.precision):
        warn(f"train {name}: the accelerate configuration says mixed_precision {wanted}, but a training's precision is the "
             f"recipe's: {config.precision}. Set train.{name}.precision to change it.")  # fmt: skip


def _on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("true", "1", "yes")
