"""Numerical settings of training: autocast, TF32, attention back end, torch.compile. They do not change the method.

float32     On CUDA, torch by default computes matrix products exactly, but convolutions in TF32 (10 bits of mantissa).
            The errors of policy and reference are nearly equal and are subtracted, so rounding matters. Precision `no`
            makes convolutions exact too; precision `tf32` uses TF32 for both.
attention   The name of a diffusers back end, for networks whose attention goes through diffusers' dispatcher.
compile     torch.compile of the network's repeated blocks (faster to compile and nearly as fast to run), or of the full
            network if it lists no such blocks. Policy and reference are the same modules with different active
            adapters. Dynamo guards the list of active adapters, so policy and reference get separate graphs.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch

from prefkit.config import Recipe, Train
from prefkit.distributed import device_of
from prefkit.errors import UsageError
from prefkit.store import Store
from prefkit.store.files import read_json
from prefkit.train.policy import Policy

TF32, AUTO = "tf32", "auto"
CHOICES = (AUTO, "no", TF32, "bf16", "fp16")
#: what the start-up table and cards call each precision
SHOWN = {"no": "no (float32)"}
#: `settled` replaces auto before training; elsewhere it counts as float32
AUTOCAST = {AUTO: None, "no": None, TF32: None, "bf16": torch.bfloat16, "fp16": torch.float16}
WEIGHTS = {AUTO: "float32", "no": "float32", TF32: "float32", "bf16": "bfloat16", "fp16": "float16"}
#: limit on the compiled graphs of a block, one per role (policy in training, policy in measuring, reference), network
#: width and image size. A U-Net with two image sizes exceeds torch's limit of 8, beyond which nothing more is compiled
GRAPHS = 64
FORWARD_ONLY = "sage"
BACKEND: str | None = None  # back end of torch.compile; None = torch's default, which needs a C++ compiler


def check(name: str, config: Train) -> None:
    """Raise UsageError, before anything is loaded, for a precision or attention that is not available."""
    device = device_of(config.device)
    if config.precision == TF32 and not device.startswith("cuda"):
        raise UsageError(
            f"train.{name}.precision: `tf32` needs a CUDA device, but training runs on {device}; set precision to "
            "`no` (float32)."
        )
    if config.attention is None:
        return
    from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend

    known = [backend.value for backend in AttentionBackendName if FORWARD_ONLY not in backend.value]
    if config.attention not in known:
        problem = "has no backward pass" if FORWARD_ONLY in config.attention else "is unknown"
        raise UsageError(
            f"train.{name}.attention: {config.attention!r} {problem}; choose `null` (torch's) or {', '.join(known)}."
        )
    try:
        with attention_backend(config.attention):
            pass
    except (RuntimeError, ValueError, ImportError) as error:
        raise UsageError(f"train.{name}.attention: {config.attention} cannot be used here: {error}") from error


def settled(store: Store, recipe: Recipe, name: str) -> Recipe:
    """Return the recipe in which precision `auto` of train.NAME is replaced by the precision that it means.

    A training that has begun keeps its precision, also on another device. Online training compares log-probabilities
    of sampling and training, which must agree more closely than bf16 computes.
    """
    config = recipe.train.get(name)
    if config is None or config.precision != AUTO:
        return recipe
    stored = store.train(name) / "spec.json"
    if stored.exists():
        value = str((read_json(stored).get("train") or {}).get("precision", "no"))
    else:
        value = "bf16" if config.online is None and has_bf16(config.device) else "no"
    return replace(recipe, train={**recipe.train, name: replace(config, precision=value)})


def stored(settings: dict[str, Any]) -> dict[str, Any]:
    """Return a training's settings for its fingerprint, as earlier versions stored them.

    Precision `no`, and settings of text encoders that are not trained, are left out.
    """
    kept = {key: value for key, value in settings.items() if (key, value) != ("precision", "no")}
    lora = kept.get("lora")
    if isinstance(lora, dict) and not lora["text_encoder"]:
        kept["lora"] = {key: value for key, value in lora.items() if not key.startswith("text_encoder")}
    return kept


def has_bf16(device: str | None) -> bool:
    """True if training on this device (null: the best available one) would run on CUDA with native bf16."""
    return device_of(device).startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False)


def autocast(config: Train, device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which the denoiser's forward passes run in the configured precision."""
    dtype = AUTOCAST[config.precision]
    return torch.autocast(device.type, dtype) if dtype is not None else nullcontext()


@contextmanager
def numerical_settings(config: Train, device: torch.device) -> Iterator[None]:
    """Context in which float32 precision and the attention back end are set as configured."""
    with ExitStack() as stack:
        if device.type == "cuda" and config.precision in ("no", TF32):
            stack.enter_context(float32_products(config.precision == TF32))
        if config.attention is not None:
            from diffusers.models.attention_dispatch import attention_backend

            stack.enter_context(attention_backend(config.attention))
        yield


@contextmanager
def float32_products(tf32: bool) -> Iterator[None]:
    """Context in which float32 matrix products and convolutions on CUDA are computed in TF32 or exactly.

    Only torch's older settings are set: Inductor reads the older ones when it compiles, and torch refuses to read them
    after the newer ones (fp32_precision) have been set.
    """
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    _set_float32_products("high" if tf32 else "highest", tf32)
    try:
        yield
    finally:
        _set_float32_products(*before)


def _set_float32_products(matmul: str, convolutions: bool) -> None:
    with warnings.catch_warnings():  # torch 2.9 and later recommend the newer settings
        warnings.filterwarnings("ignore", "Please use the new API")
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolutions


def prepare_network(policy: Policy, config: Train) -> dict[str, str]:
    """Compile the policy's networks as configured; return rows about the network for the start-up table."""
    check_dispatched(policy.net, config.attention)
    checkpointed = getattr(policy.net, "is_gradient_checkpointing", False)
    rows = {"gradient checkpointing": "on" if checkpointed else "off"}
    if config.compile:
        rows["compiled"] = compile_blocks(policy.net)
        if policy.frozen is not None:
            compile_blocks(policy.frozen)
    if config.attention is not None:
        rows["attention"] = config.attention
    return rows


def check_dispatched(net: Any, attention: str | None) -> None:
    """Raise UsageError if a back end is set but the network's attention does not go through diffusers' dispatcher."""
    processors = getattr(net, "attn_processors", {}).values()
    modules = [*processors, *(getattr(module, "processor", None) for module in net.modules())]
    if attention is not None and not any(hasattr(processor, "_attention_backend") for processor in modules):
        raise UsageError(
            f"train.NAME.attention: the attention of {type(net).__name__} does not go through diffusers' dispatcher, "
            f"so {attention} would have no effect; torch chooses the kernel. Remove train.NAME.attention."
        )


def compile_blocks(net: Any) -> str:
    """Mark the network's blocks for compilation at their first call; return a description of the blocks."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(GRAPHS, torch._dynamo.config.recompile_limit)
    options = {} if BACKEND is None else {"backend": BACKEND}
    names = set(getattr(net, "_repeated_blocks", None) or ())
    blocks = [module for module in net.modules() if type(module).__name__ in names]
    for module in blocks or [net]:
        module.compile(**options)
    return f"{len(blocks)} blocks ({', '.join(sorted(names))})" if blocks else "the full denoiser"
