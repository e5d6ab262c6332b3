"""How a step is computed, none of which changes what it computes: float32's products, attention kernels, compilation.

float32     on CUDA torch's default is a mixture: matrix products exact, convolutions in TF32 (10 bits of mantissa). Errors
            of policy and reference are nearly equal and subtracted, so precision `no` is exact in both, and `tf32` says so
attention   a back end of diffusers by its name, for networks whose attention goes through its dispatcher
compile     torch.compile of the network's repeated blocks, or of the whole where it names none. A transformer is one block
            many times over, so that costs a fraction and gains nearly as much. Policy and reference are the same modules
            with other adapters on; which are on is a list that dynamo guards, so each gets graphs of its own
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from prefkit.config import Train
from prefkit.distributed import device_of
from prefkit.errors import UsageError

TF32 = "tf32"
#: graphs of one block: (policy, policy measured, reference) x widths of the network x sizes of images. A U-Net with two
#: sizes has more than the 8 that torch allows, and what is above runs uncompiled
GRAPHS = 64
FORWARD_ONLY = "sage"
BACKEND: str | None = None  # of torch.compile; None = its own, which needs a C++ compiler


def check(name: str, config: Train) -> None:
    """Raises UsageError, before anything is loaded, for arithmetic or kernels that are not there."""
    device = device_of(config.device)
    if config.precision == TF32 and not device.startswith("cuda"):
        raise UsageError(
            f"train.{name}.precision: tf32 is for CUDA devices, and this is {device}; give no, which is float32."
        )
    if config.attention is None:
        return
    from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend

    known = [backend.value for backend in AttentionBackendName if FORWARD_ONLY not in backend.value]
    if config.attention not in known:
        why = "has no backward pass" if FORWARD_ONLY in config.attention else "is not known"
        raise UsageError(
            f"train.{name}.attention: {config.attention!r} {why}; choose null (torch's own) or {', '.join(known)}."
        )
    try:
        with attention_backend(config.attention):
            pass
    except (RuntimeError, ValueError, ImportError) as error:
        raise UsageError(f"train.{name}.attention: {config.attention} cannot be used here: {error}") from error


@contextmanager
def computing(config: Train, device: torch.device) -> Iterator[None]:
    """with computing(...): products and attention as configured; afterwards as they were."""
    with ExitStack() as stack:
        if device.type == "cuda" and config.precision in ("no", TF32):
            stack.enter_context(products(config.precision == TF32))
        if config.attention is not None:
            from diffusers.models.attention_dispatch import attention_backend

            stack.enter_context(attention_backend(config.attention))
        yield


@contextmanager
def products(tf32: bool) -> Iterator[None]:
    """Matrix products and convolutions of float32 on CUDA, in TF32 or exact.

    By torch's older settings alone: Inductor reads them when it compiles, and torch refuses to read them once the newer
    ones (fp32_precision) were written.
    """
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    _set_products("high" if tf32 else "highest", tf32)
    try:
        yield
    finally:
        _set_products(*before)


def _set_products(matmul: str, convolutions: bool) -> None:
    with warnings.catch_warnings():  # torch 2.9 and later ask for the newer settings
        warnings.filterwarnings("ignore", "Please use the new API")
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolutions


def arrange(loop: Any) -> dict[str, str]:
    """Set up how an offline loop's steps are computed; returns what there is to say of it before the first."""
    config, policy = loop.config, loop.policy
    check_dispatched(policy.net, config.attention)
    checkpointed = getattr(policy.net, "is_gradient_checkpointing", False)
    said = {"gradient checkpointing": "on" if checkpointed else "off"}
    if config.compile:
        said["compiled"] = compile_blocks(policy.net)
        if policy.frozen is not None:
            compile_blocks(policy.frozen)
    if config.attention is not None:
        said["attention"] = config.attention
    return said


def check_dispatched(net: Any, attention: str | None) -> None:
    """Raises UsageError where a back end was asked for and the network's attention does not ask which."""
    processors = getattr(net, "attn_processors", {}).values()
    modules = [*processors, *(getattr(module, "processor", None) for module in net.modules())]
    if attention is not None and not any(hasattr(processor, "_attention_backend") for processor in modules):
        raise UsageError(
            f"train.*.attention: the attention of {type(net).__name__} does not go through diffusers' dispatcher, so "
            f"{attention} would change nothing; torch chooses the kernel. Leave `attention` out."
        )


def compile_blocks(net: Any) -> str:
    """Compile in place, at the first call; returns what is compiled."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(GRAPHS, torch._dynamo.config.recompile_limit)
    how = {} if BACKEND is None else {"backend": BACKEND}
    names = set(getattr(net, "_repeated_blocks", None) or ())
    blocks = [module for module in net.modules() if type(module).__name__ in names]
    for module in blocks or [net]:
        module.compile(**how)
    return f"{len(blocks)} blocks ({', '.join(sorted(names))})" if blocks else "the whole denoiser"
