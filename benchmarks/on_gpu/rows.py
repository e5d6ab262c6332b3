"""The rows of benchmarks/gpu.py. Importing this module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """A row of the table. work: name in WORK. side: pixels; batch: pairs (training) or images. estimate: shipped recipe."""

    name: str
    work: str
    model: str = ""
    side: int = 512
    batch: int = 4
    precision: str = "bf16"
    options: dict[str, Any] = field(default_factory=dict)
    estimate: str = ""
    limit: float = 150.0


def rows() -> list[Any]:
    """All rows, the most valuable first."""
    lean = {"gradient_checkpointing": True, "optimizer": "adamw8bit"}
    xl: dict[str, Any] = {"model": "sdxl", "side": 1024, "batch": 1}
    flux: dict[str, Any] = {"model": "flux", "side": 1024, "batch": 1}
    return [
        Row("matrix products", "rate"),
        Row("sd15 dpo fp32", "dpo", "sd15", precision="no"),
        Row("sd15 script fp32", "plain", "sd15", precision="no"),
        Row("sd15 dpo bf16", "dpo", "sd15", estimate="sd15_12gb"),
        Row("sd15 script bf16", "plain", "sd15"),
        Row("sd15 cpu reference", "reference", "sd15", precision="no", batch=1),
        Row("sd15 dpo tf32", "dpo", "sd15", precision="tf32"),
        Row("sd15 dpo fp16", "dpo", "sd15", precision="fp16"),
        Row("sd15 dpo fp32 cache_reference", "dpo", "sd15", precision="no", options={"cache_reference": True}),
        Row("sd15 dpo bf16 cache_reference", "dpo", "sd15", options={"cache_reference": True}),
        Row("sd15 dpo bf16 lean", "dpo", "sd15", options=lean),
        Row("sd15 script bf16 lean", "plain", "sd15", options={"checkpointing": True, "optimizer": "adamw8bit"}),
        Row("sd15 dpo bf16 compile", "dpo", "sd15", options={"compile": True}, limit=100.0),
        Row("sdxl dpo bf16", "dpo", **xl, estimate="sdxl_24gb"),
        Row("flux dpo bf16", "dpo", **flux, options={"gradient_checkpointing": False}, estimate="flux_80gb"),
        Row("flux dpo bf16 checkpointing", "dpo", **flux, options={"gradient_checkpointing": True}),
        Row("flux dpo bf16 attention cudnn", "dpo", **flux, options={"attention": "_native_cudnn"}),
        Row("flux dpo bf16 attention flash", "dpo", **flux, options={"attention": "_native_flash"}),
        Row("sdxl dpo bf16 checkpointing", "dpo", **xl, options={"gradient_checkpointing": True}),
        Row("sd15 trajectory", "trajectory", "sd15", batch=2),
        Row("sdxl dpo nf4", "dpo", **xl, options={"quantize": "nf4"}),
        Row("sdxl dpo int8", "dpo", **xl, options={"quantize": "int8"}),
        Row("sdxl dpo fp8", "dpo", **xl, options={"quantize": "fp8"}),
        Row("sdxl generate bf16", "generate", "sdxl", side=1024),
        Row("sdxl generate bf16 offload model", "generate", "sdxl", side=1024, options={"offload": "model"}),
        Row("sdxl generate bf16 offload sequential", "generate", "sdxl", side=1024, options={"offload": "sequential"}),
        Row("sd15 full weights bf16", "dpo", "sd15", options={"lora": False}),
        Row("sd15 full weights bf16 adamw8bit", "dpo", "sd15", options={"lora": False, "optimizer": "adamw8bit"}),
        Row("sd15 online ddpo", "online", "sd15", batch=8, precision="no", options={"objective": "ddpo"}),
        Row("sd15 generate and score bf16", "curate", "sd15", batch=16),
        Row("sd15 dpo tf32 compile", "dpo", "sd15", precision="tf32", options={"compile": True}, limit=100.0),
        Row("flux online flow_grpo bf16", "online", "flux", batch=8, options={"objective": "flow_grpo"}),
    ]
