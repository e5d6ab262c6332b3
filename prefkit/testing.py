"""Tiny models with random weights, for tests and experiments.

`tiny_pipeline("sd", folder)`, or `python -m prefkit.testing sd FOLDER`, saves a pipeline of the real diffusers class
without downloads. One core makes a few of its 64 x 64 px images per second. `prefkit score --check NAME` runs
`check_scorer(scorer)`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefkit.errors import UsageError
from prefkit.score.check import Check, check_scorer

__all__ = ["TINY_KINDS", "TINY_SIZE", "Check", "check_scorer", "tiny_pipeline", "wake_zeros"]

TINY_KINDS = ("sd", "sd-v", "sdxl", "sd3", "flux")
TINY_SIZE = 64


def tiny_pipeline(kind: str, folder: str | Path, seed: int = 0) -> Path:
    """Save a tiny pipeline with random weights and return its folder. kind: one of TINY_KINDS. Raises UsageError.

    sd      StableDiffusionPipeline, epsilon, DDIM
    sd-v    like sd, but with v_prediction and zero terminal SNR
    sdxl    StableDiffusionXLPipeline, epsilon, EulerDiscrete
    sd3     StableDiffusion3Pipeline, flow matching, three text encoders
    flux    FluxPipeline, flow matching, packed tokens, embedded guidance
    """
    import torch

    if kind not in TINY_KINDS:
        raise UsageError(f"unknown tiny pipeline {kind!r}; choose one of {', '.join(TINY_KINDS)}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = {"sd": _sd, "sd-v": _sd_v, "sdxl": _sdxl, "sd3": _sd3, "flux": _flux}[kind]()
        for component in pipe.components.values():
            if isinstance(component, torch.nn.Module):
                wake_zeros(component)
    pipe.save_pretrained(folder, safe_serialization=True)
    return Path(folder)


def wake_zeros(module: Any, scale: float = 0.05) -> None:
    """Add small noise to every parameter that is all zeros: a network that outputs only zeros tests nothing."""
    import torch

    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(std=scale)


def _sd(**schedule: Any) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
        cross_attention_dim=32,
    )
    tokenizer = _clip_tokenizer()
    return StableDiffusionPipeline(
        vae=_vae(channels=4, scaling_factor=0.18215),
        text_encoder=_clip_text(tokenizer),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler.from_config(_SD_SCHEDULE | schedule),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sd_v() -> Any:
    return _sd(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")


def _sdxl() -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 1),
        projection_class_embeddings_input_dim=32 + 6 * 8,  # pooled text embedding; 6 size values, 8 dimensions each
        cross_attention_dim=64,
    )
    tokenizer = _clip_tokenizer()
    return StableDiffusionXLPipeline(
        vae=_vae(channels=4, scaling_factor=0.13025, force_upcast=True),
        text_encoder=_clip_text(tokenizer),
        text_encoder_2=_clip_text(tokenizer, projected=True),
        tokenizer=tokenizer,
        tokenizer_2=_clip_tokenizer(),
        unet=unet,
        scheduler=EulerDiscreteScheduler.from_config(_SD_SCHEDULE | {"timestep_spacing": "leading"}),
    )


def _sd3() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=64,
        caption_projection_dim=32,
        pooled_projection_dim=64,
    )
    tokenizer = _clip_tokenizer()
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(channels=4, scaling_factor=1.5305, shift_factor=0.0609, quant=False),
        text_encoder=_clip_text(tokenizer, projected=True),
        tokenizer=tokenizer,
        text_encoder_2=_clip_text(tokenizer, projected=True),
        tokenizer_2=_clip_tokenizer(),
        text_encoder_3=_t5_text(64),
        tokenizer_3=_t5_tokenizer(),
    )


def _flux() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,  # 4 latent channels, packed in 2 x 2 patches
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    tokenizer = _clip_tokenizer()
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=_vae(channels=4, scaling_factor=0.3611, shift_factor=0.1159, quant=False),
        text_encoder=_clip_text(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=_t5_text(32),
        tokenizer_2=_t5_tokenizer(),
        transformer=transformer,
    )


_SD_SCHEDULE: dict[str, Any] = {  # the published settings; some keys apply only to other schedulers
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
    "skip_prk_steps": True,
}


def _vae(channels: int, quant: bool = True, **config: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=TINY_SIZE,
        use_quant_conv=quant,
        use_post_quant_conv=quant,
        **config,
    )


def _clip_text(tokenizer: Any, projected: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=32,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def _clip_tokenizer() -> Any:
    """Return a tokenizer whose tokens are bytes, bytes at the end of a word, and the two special tokens."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)


def _t5_text(width: int) -> Any:
    from transformers import T5Config, T5EncoderModel

    settings: Any = T5Config  # Any, because its type hints lack some keyword arguments
    config = settings(
        vocab_size=len(_t5_tokenizer()),
        d_model=width,
        d_kv=8,
        d_ff=37,
        num_layers=1,
        num_heads=4,
        tie_word_embeddings=False,
    )
    return T5EncoderModel(config)


def _t5_tokenizer() -> Any:
    from transformers import T5Tokenizer

    letters = [chr(code) for code in range(33, 127)]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), ("▁", -2.0), *((letter, -3.0) for letter in letters)]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=512)


def main(arguments: list[str] | None = None) -> None:
    import argparse

    parser = argparse.ArgumentParser(description="Save a tiny random-weight diffusers pipeline.")
    parser.add_argument("kind", choices=TINY_KINDS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    print(tiny_pipeline(options.kind, options.folder, options.seed))


if __name__ == "__main__":
    main()
