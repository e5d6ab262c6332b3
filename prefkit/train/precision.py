"""Numerical settings of a step: autocast, TF32, attention back end, torch.compile. They do not change the method.

float32     on CUDA torch's default is a mixture: exact matrix products, convolutions in TF32 (10 bits of mantissa).
            Errors of policy and reference are nearly equal and are subtracted, so precision `no` is exact in both, and
            `tf32` is a setting of its own
attention   a back end of diffusers by its name, for networks whose attention goes through its dispatcher
compile     torch.compile of the network's repeated blocks, or of the full network if it names none. A transformer
            repeats one block, so this costs a fraction of the time and gains nearly as much. Policy and reference are
            the same modules with other adapters active; dynamo guards the list of active adapters, so each gets its own
            graphs
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch

from prefkit.config import Train
from prefkit.distributed import device_of
from prefkit.errors import UsageError
from prefkit.train.policy import Policy

TF32 = "tf32"
AUTOCAST = {"no": None, TF32: None, "bf16": torch.bfloat16, "fp16": torch.float16}
WEIGHTS = {"no": "float32", TF32: "float32", "bf16": "bfloat16", "fp16": "float16"}
#: graphs of one block: (policy, policy measured, reference) x widths of the network x sizes of images. A U-Net with two
#: sizes exceeds torch's limit of 8, and graphs above the limit run uncompiled
GRAPHS = 64
FORWARD_ONLY = "sage"
BACKEND: str | None = None  # of torch.compile; None = its default, which needs a C++ compiler


def check(name: str, config: Train) -> None:
    """Raises UsageError, before anything is loaded, for a precision or attention that is not available."""
    device = device_of(config.device)
    if config.precision == TF32 and not device.startswith("cuda"):
        raise UsageError(
            f"train.{name}.precision: tf32 needs a CUDA device, but this training runs on {device}; set it to no "
            "(float32)."
        )
    if config.attention is None:
        return
    from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend

    known = [backend.value for backend in AttentionBackendName if FORWARD_ONLY not in backend.value]
    if config.attention not in known:
        problem = "has no backward pass" if FORWARD_ONLY in config.attention else "is unknown"
        raise UsageError(
            f"train.{name}.attention: {config.attention!r} {problem}; choose null (torch's own) or {', '.join(known)}."
        )
    try:
        with attention_backend(config.attention):
            pass
    except (RuntimeError, ValueError, ImportError) as error:
        raise UsageError(f"train.{name}.attention: {config.attention} cannot be used here: {error}") from error


def autocast(config: Train, device: torch.device) -> AbstractContextManager[Any]:
    """Context of the denoiser's forwards, in the precision of the training."""
    dtype = AUTOCAST[config.precision]
    return torch.autocast(device.type, dtype) if dtype is not None else nullcontext()


@contextmanager
def numerical_settings(config: Train, device: torch.device) -> Iterator[None]:
    """Float32 products and attention as configured; the former settings are restored at the end."""
    with ExitStack() as stack:
        if device.type == "cuda" and config.precision in ("no", TF32):
            stack.enter_context(float32_products(config.precision == TF32))
        if config.attention is not None:
            from diffusers.models.attention_dispatch import attention_backend

            stack.enter_context(attention_backend(config.attention))
        yield


@contextmanager
def float32_products(tf32: bool) -> Iterator[None]:
    """Matrix products and convolutions of float32 on CUDA, in TF32 or exact.

    This uses torch's older settings: Inductor reads them when it compiles, and torch refuses to read them once the
    newer ones (fp32_precision) were written.
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
    """Compile the policy's networks as configured; returns the rows of the start-up table about it."""
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
    """Raises UsageError if a back end is configured but the network's attention does not go through the dispatcher."""
    processors = getattr(net, "attn_processors", {}).values()
    modules = [*processors, *(getattr(module, "processor", None) for module in net.modules())]
    if attention is not None and not any(hasattr(processor, "_attention_backend") for processor in modules):
        raise UsageError(
            f"train.*.attention: the attention of {type(net).__name__} does not go through diffusers' dispatcher, so "
            f"{attention} would have no effect; torch chooses the kernel. Remove `attention`."
        )


def compile_blocks(net: Any) -> str:
    """Compile in place, at the first call; returns a description of the compiled part."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(GRAPHS, torch._dynamo.config.recompile_limit)
    options = {} if BACKEND is None else {"backend": BACKEND}
    names = set(getattr(net, "_repeated_blocks", None) or ())
    blocks = [module for module in net.modules() if type(module).__name__ in names]
    for module in blocks or [net]:
        module.compile(**options)
    return f"{len(blocks)} blocks ({', '.join(sorted(names))})" if blocks else "the full denoiser"
