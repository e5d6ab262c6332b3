"""Tiny instances of pipelines that take an image: every part is of the real class and can be saved and loaded."""

from __future__ import annotations

import inspect

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image

from prefkit.models.load.pipeline import load_pipeline
from prefkit.testing import wake_zeros
from tests.score.conftest import byte_tokenizer, tiny_qwen_vl

SIZE = {"height": 64, "width": 64}
CHAT = (
    "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{{ c['text'] }}{% endfor %}{% endif %}{% endfor %}"
)
TEXT = {"hidden_size": 8, "intermediate_size": 9, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4}


def size_for(pipe):
    """SIZE, of pipelines that take one."""
    return {name: side for name, side in SIZE.items() if name in inspect.signature(type(pipe).__call__).parameters}


def picture(seed, size=(64, 64)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def mask():
    found = np.zeros((64, 64), np.uint8)
    found[16:48, 8:40] = 255
    return Image.fromarray(found)


def awake(net):
    wake_zeros(net)
    return net.eval()


def wider(net, channels):
    """The same denoiser, more going in than coming out."""
    out = {"out_channels": net.config.in_channels}
    return awake(type(net).from_config({**net.config, **out, "in_channels": channels}))


def inpaint(tiny):
    parts = load_pipeline(tiny["sd"]).components
    parts["unet"] = wider(parts["unet"], 9)
    return diffusers.StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)


def sdxl_inpaint(tiny):
    parts = load_pipeline(tiny["sdxl"]).components
    parts["unet"] = wider(parts["unet"], 9)
    return diffusers.StableDiffusionXLInpaintPipeline(**parts)


def instruct(tiny):
    parts = load_pipeline(tiny["sd"]).components
    parts["unet"] = wider(parts["unet"], 8)
    return diffusers.StableDiffusionInstructPix2PixPipeline(**parts, requires_safety_checker=False)


def kontext(tiny):
    return diffusers.FluxKontextPipeline(**load_pipeline(tiny["flux"]).components)


def _wider_flux(tiny, channels):
    parts = load_pipeline(tiny["flux"]).components
    parts["transformer"] = wider(parts["transformer"], channels)
    return {name: part for name, part in parts.items() if name not in ("image_encoder", "feature_extractor")}


def fill(tiny):
    """Beside each token of 16: 16 of the masked image, and the 256 pixels of its mask."""
    return diffusers.FluxFillPipeline(**_wider_flux(tiny, 16 + 16 + 256))


def control(tiny):
    return diffusers.FluxControlPipeline(**_wider_flux(tiny, 16 + 16))


def _flux2(kind, text_encoder, tokenizer, guidance):
    net = diffusers.Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=3 * TEXT["hidden_size"], timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=64,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    vae.bn.running_mean.copy_(torch.randn(16, generator=generator))
    vae.bn.running_var.copy_(torch.rand(16, generator=generator) * 3 + 0.2)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return kind(
        vae=awake(vae),
        transformer=awake(net),
        scheduler=scheduler,
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
    )


def _tokenizer():
    return byte_tokenizer(["<pad>", "<end>"], [], pad_token="<pad>", eos_token="<end>", chat_template=CHAT)


def klein(tiny=None):
    tokenizer = _tokenizer()
    config = transformers.Qwen3Config(vocab_size=len(tokenizer), num_hidden_layers=27, **TEXT)
    return _flux2(diffusers.Flux2KleinPipeline, transformers.Qwen3ForCausalLM(config), tokenizer, guidance=False)


def flux2(tiny=None):
    """FLUX.2 dev: embedded guidance; the text is read at layers 10, 20 and 30 of a Mistral."""
    tokenizer = _tokenizer()
    text = transformers.MistralConfig(vocab_size=len(tokenizer), num_hidden_layers=30, **TEXT)
    vision = transformers.PixtralVisionConfig(
        hidden_size=8, intermediate_size=9, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    config = transformers.Mistral3Config(text_config=text, vision_config=vision, image_token_index=1)
    encoder = transformers.Mistral3ForConditionalGeneration(config)
    return _flux2(diffusers.Flux2Pipeline, encoder, tokenizer, guidance=True)


def qwen_parts():
    net = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[-0.3, 0.1, 0.2, -0.1], latents_std=[2.0, 1.5, 0.7, 1.1],
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, shift_terminal=0.02, base_shift=0.5, max_shift=0.9
    )
    return {"vae": awake(vae), "transformer": awake(net), "scheduler": scheduler}


def qwen_edit(tiny=None, kind=diffusers.QwenImageEditPipeline):
    encoder, processor = tiny_qwen_vl()
    return kind(**qwen_parts(), text_encoder=encoder.eval(), tokenizer=processor.tokenizer, processor=processor)


def qwen_edit_plus(tiny=None):
    return qwen_edit(kind=diffusers.QwenImageEditPlusPipeline)


def small_areas(patch):
    """Qwen-Image-Edit brings every image to a million pixels; here to 64 x 64. patch: pytest's monkeypatch."""
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as edit
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plus

    of_area = edit.calculate_dimensions
    patch.setattr(edit, "calculate_dimensions", lambda area, ratio: of_area(64 * 64, ratio))
    patch.setattr(plus, "VAE_IMAGE_SIZE", 64 * 64)
    patch.setattr(plus, "CONDITION_IMAGE_SIZE", 64 * 64)


KONTEXT = {"max_area": 64 * 64, "_auto_resize": False}
FILLED = [{"image": picture(i), "mask_image": mask()} for i in range(2)]
EDITED = [{"image": picture(i)} for i in range(2)]
CASES = {  # builder -> fixed arguments, images of the two requests, input, output, layout, affine
    inpaint: ({}, FILLED, ("extra_channels", "identity", "plain", "scale")),
    kontext: (KONTEXT, EDITED, ("extra_tokens", "first_tokens", "packed", "scale_shift")),
    sdxl_inpaint: ({}, FILLED, ("extra_channels", "identity", "plain", "scale")),
    instruct: ({}, EDITED, ("extra_channels", "identity", "plain", "scale")),
    fill: ({}, FILLED, ("extra_features", "identity", "packed", "scale_shift")),
    control: ({}, [{"control_image": picture(i)} for i in range(2)],
              ("extra_features", "identity", "packed", "scale_shift")),
    klein: ({}, EDITED, ("extra_tokens", "first_tokens", "packed", "batch_norm")),
    flux2: ({}, EDITED, ("extra_tokens", "first_tokens", "packed", "batch_norm")),
    qwen_edit: ({}, EDITED, ("extra_tokens", "first_tokens", "packed_frame", "mean_std")),
    qwen_edit_plus: ({}, EDITED, ("extra_tokens", "first_tokens", "packed_frame", "mean_std")),
}  # fmt: skip
