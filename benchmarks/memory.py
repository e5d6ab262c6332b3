"""Estimate of the GPU memory of a training, computed on the meta device without running it.

    python benchmarks/memory.py sdxl --side 1024 --pairs 1 --rank 16 --checkpointing
    python benchmarks/memory.py flux --side 1024 --quantize nf4 --checkpointing

weights      parameters of the published architecture, 2 bytes each (bf16, fp16), those of linear layers 1 byte (int8, fp8) or
             0.516 (nf4: 4 bits, and a quantised constant per 64)
adapter      LoRA on the default targets, float32: weights, gradients and two states of AdamW, 16 bytes per parameter
activations  bytes that autograd saves in one forward of both images of the pairs, counted tensor by tensor in 2 bytes per number,
             for attention q, k, v and its output; with checkpointing the inputs of the blocks, and the largest block
caches       the largest of text encoders, VAE (float32) and denoiser: the peak while a training is prepared
Not counted: the CUDA context and the allocator's slack (1 to 2 GB), activations of the VAE, and activations of the adapter's layers in float32.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prefkit.models.lora.adapters import add_lora, lora_layers

HALF, FLOAT32, ADAMW = 2, 4, 16
LINEAR = {None: 2.0, "int8": 1.0, "fp8": 1.0, "nf4": 0.516}
BLOCKS = ("ResnetBlock2D", "BasicTransformerBlock", "FluxTransformerBlock", "FluxSingleTransformerBlock")
GIB = 2**30


class Attention(torch.autograd.Function):
    """Attention that never writes its N x N matrix, as the fused kernels: keeps q, k, v and the output."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out)
        return out


def denoiser(model: str) -> nn.Module:
    """With the published configuration."""
    import diffusers

    if model == "sd15":
        return diffusers.UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
    if model == "flux":
        return diffusers.FluxTransformer2DModel(guidance_embeds=True)
    return diffusers.UNet2DConditionModel(
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(5, 10, 20),
        transformer_layers_per_block=(1, 2, 10),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


def texts(model: str) -> int:
    """Parameters of the text encoders."""
    import transformers as t

    clip = t.CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    encoders: list[Any] = [t.CLIPTextModel(clip)]
    if model == "sdxl":
        big = t.CLIPTextConfig(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, projection_dim=1280)
        encoders.append(t.CLIPTextModelWithProjection(big))
    if model == "flux":
        xxl = t.T5Config(d_model=4096, d_ff=10240, d_kv=64, num_heads=64, num_layers=24, feed_forward_proj="gated-gelu")
        encoders.append(t.T5EncoderModel(xxl))
    return sum(p.numel() for encoder in encoders for p in encoder.parameters())


def inputs(model: str, samples: int, side: int) -> dict[str, Any]:
    cells = side // 8

    def make(*shape: int) -> Tensor:
        return torch.empty(samples, *shape, dtype=torch.bfloat16)

    if model == "flux":
        tokens, words = (cells // 2) ** 2, 512
        ids = {"img_ids": torch.empty(tokens, 3), "txt_ids": torch.empty(words, 3)}
        given = {"hidden_states": make(tokens, 64), "encoder_hidden_states": make(words, 4096), "timestep": make()}
        return given | ids | {"pooled_projections": make(768), "guidance": make()}
    width, added = (768, None) if model == "sd15" else (2048, {"text_embeds": make(1280), "time_ids": make(6)})
    given = {
        "sample": make(4, cells, cells),
        "timestep": torch.empty(samples),
        "encoder_hidden_states": make(77, width),
    }
    return given if added is None else given | {"added_cond_kwargs": added}


@contextmanager
def kept(net: nn.Module) -> Iterator[dict[str, int]]:
    """{"all": bytes that autograd keeps, "block": of the block that keeps most}"""
    own = {p.untyped_storage()._cdata for p in net.parameters()}
    seen: dict[int, Any] = {}
    found = {"all": 0, "block": 0}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own and storage._cdata not in seen:
            seen[storage._cdata] = storage  # held, so that no address is used again
            found["all"] += storage.nbytes()
        return tensor

    began: dict[int, int] = {}

    def after(module: nn.Module, *_: Any) -> None:
        found["block"] = max(found["block"], found["all"] - began[id(module)])

    blocks = [module for module in net.modules() if type(module).__name__ in BLOCKS]
    hooks = [b.register_forward_pre_hook(lambda m, _: began.update({id(m): found["all"]})) for b in blocks]
    hooks += [b.register_forward_hook(after) for b in blocks]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found
    for hook in hooks:
        hook.remove()


def activations(net: Any, given: dict[str, Any]) -> dict[str, int]:
    attention = torch.nn.functional.scaled_dot_product_attention
    torch.nn.functional.scaled_dot_product_attention = lambda query, key, value, *_, **__: Attention.apply(
        query, key, value
    )
    try:
        with kept(net) as found:
            net(**given)
    finally:
        torch.nn.functional.scaled_dot_product_attention = attention
    return found


def estimate(
    model: str, side: int, pairs: int, rank: int, quantize: str | None, checkpointing: bool
) -> dict[str, float]:
    """GiB by kind."""
    import diffusers

    with torch.device("meta"):
        net: Any = denoiser(model).to(torch.bfloat16)
        linear = sum(m.weight.numel() for m in net.modules() if isinstance(m, nn.Linear))
        every = sum(p.numel() for p in net.parameters())
        vae = diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )
        weights = linear * LINEAR[quantize] + (every - linear) * HALF
        adapter = add_lora(net, rank=rank, alpha=rank)
        for _, layer in lora_layers(net):
            layer.to(torch.bfloat16)
        given = inputs(model, 2 * pairs, side)
        found = activations(net, given)
        if checkpointing:
            net.train().enable_gradient_checkpointing()
            needed = activations(net, given)["all"] + found["block"]
        else:
            needed = found["all"]
        parts = {"text": texts(model) * HALF, "vae": FLOAT32 * sum(p.numel() for p in vae.parameters()), "net": weights}
    sizes = {"weights": weights, "adapter": adapter * ADAMW, "activations": needed}
    return {k: v / GIB for k, v in (sizes | {"sum": sum(sizes.values()), "caches": max(parts.values())}).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("sd15", "sdxl", "flux"))
    parser.add_argument("--side", type=int, default=1024, help="pixels")
    parser.add_argument("--pairs", type=int, default=1, help="in a micro-batch")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--quantize", choices=("nf4", "int8", "fp8"))
    parser.add_argument("--checkpointing", action="store_true")
    found = estimate(**vars(parser.parse_args()))
    print("  ".join(f"{name} {size:.2f} GiB" for name, size in found.items()))


if __name__ == "__main__":
    main()
