"""Pipelines that differ in what they do around the denoiser. Real denoisers, VAEs and calls; only text is made up."""

from __future__ import annotations

import hashlib

import diffusers
import numpy as np
import pytest
import torch

from prefkit.models import latents
from prefkit.models.capture import capture
from prefkit.models.conditions import capture_conditions, collate
from prefkit.models.predict import predict
from prefkit.models.record import watch
from prefkit.models.sample import Sampler
from prefkit.testing import _vae, wake_zeros

PROMPTS = ["a red cat", "a dog in a hat"]
WIDTH = 32


def embedding(prompt, length=None):
    """[L, WIDTH], a function of the prompt; without a length one row a letter."""
    seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "little")
    return torch.randn(length or len(prompt), WIDTH, generator=torch.Generator().manual_seed(seed))


def masked_text(self, prompt, do_classifier_free_guidance=True, negative_prompt="", **_):
    """(embeddings, mask) twice, as PixArt, Sana and Lumina2 have it."""
    prompts = [prompt] if isinstance(prompt, str) else prompt
    rows = torch.stack([embedding(p, 12) for p in prompts])
    mask = torch.stack([(torch.arange(12) < len(p)).long() for p in prompts])
    return rows, mask, rows.flip(1), mask


def listed_text(self, prompt, **_):
    """Lists of embeddings of different lengths, as Z-Image has it."""
    prompts = [prompt] if isinstance(prompt, str) else prompt
    return [embedding(p) for p in prompts], [embedding("") if p else embedding("x") for p in prompts]


def padded_text(self, prompt, **_):
    """Embeddings and a mask as long as the longest prompt, as Qwen-Image has it."""
    prompts = [prompt] if isinstance(prompt, str) else prompt
    longest = max(map(len, prompts))
    rows = torch.stack([torch.nn.functional.pad(embedding(p), (0, 0, 0, longest - len(p))) for p in prompts])
    return rows, torch.stack([(torch.arange(longest) < len(p)).long() for p in prompts])


def build(name, text, vae, net, scheduler):
    base = getattr(diffusers, name)
    kind = type(name, (base,), {"encode_prompt": text, "check_inputs": lambda self, *args, **kwargs: None})
    for module in (vae, net):
        wake_zeros(module)
        module.eval()
    return kind(vae=vae, transformer=net, scheduler=scheduler, text_encoder=None, tokenizer=None)


def pixart():
    net = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=8,
        patch_size=2, caption_channels=WIDTH, cross_attention_dim=16, norm_num_groups=4,
        use_additional_conditions=False,
    )  # fmt: skip
    scheduler = diffusers.DPMSolverMultistepScheduler(beta_schedule="linear", beta_start=0.0001, beta_end=0.02)
    return build("PixArtSigmaPipeline", masked_text, _vae(4, scaling_factor=0.13), net, scheduler)


def z_image():
    net = diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=WIDTH,
        axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return build(
        "ZImagePipeline", listed_text, _vae(4, scaling_factor=0.36, shift_factor=0.12, quant=False), net, scheduler
    )


def lumina2():
    net = diffusers.Lumina2Transformer2DModel(
        sample_size=8, in_channels=4, hidden_size=24, num_layers=1, num_refiner_layers=1, num_attention_heads=3,
        num_kv_heads=1, multiple_of=2, axes_dim_rope=(4, 2, 2), axes_lens=(128, 128, 128), cap_feat_dim=WIDTH,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=6.0)
    return build(
        "Lumina2Pipeline", masked_text, _vae(4, scaling_factor=0.36, shift_factor=0.12, quant=False), net, scheduler
    )


def qwen_image():
    net = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[-0.3, 0.1, 0.2, -0.1], latents_std=[2.0, 1.5, 0.7, 1.1],
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, shift_terminal=0.02, base_shift=0.5, max_shift=0.9
    )
    return build("QwenImagePipeline", padded_text, vae, net, scheduler)


def sana():
    net = diffusers.SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=4, patch_size=1,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=WIDTH,
        sample_size=8,
    )  # fmt: skip
    vae = diffusers.AutoencoderDC(
        latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)), scaling_factor=0.41,
        downsample_block_type="Conv", upsample_block_type="interpolate",
        decoder_norm_types="rms_norm", decoder_act_fns="silu",
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0)
    return build("SanaPipeline", masked_text, vae, net, scheduler)


EXPECTED = {  # builder -> input, output, clock, layout, affine
    pixart: ("identity", "first_half", "index", "plain", "scale"),
    z_image: ("list_of_frames", "frame_negated", "1-sigma", "plain", "scale_shift"),
    lumina2: ("identity", "negated", "1-sigma", "plain", "scale_shift"),
    qwen_image: ("identity", "identity", "sigma", "packed_frame", "mean_std"),
    sana: ("identity", "identity", "steps_sigma", "plain", "scale"),
}


def extras(pipe):
    return {"use_resolution_binning": False} if "Sana" in type(pipe).__name__ or "PixArt" in type(pipe).__name__ else {}


@pytest.mark.parametrize("builder", EXPECTED, ids=lambda f: f.__name__)
def test_proven_and_reproduced(builder):
    torch.manual_seed(0)
    pipe = builder()
    call = extras(pipe)
    wiring = capture(pipe, height=64, width=64, call=call)
    assert (wiring.input, wiring.output, wiring.clock, wiring.layout, wiring.affine) == EXPECTED[builder]
    prompts = PROMPTS if builder is not qwen_image else ["a red cat", "a big dog"]  # of one length
    condition = collate(wiring, capture_conditions(pipe, wiring, prompts, height=64, width=64, call=call))
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    run = {"prompt": prompts, "generator": generators, "num_inference_steps": 3, "height": 64, "width": 64}
    for step in watch(pipe, "transformer", run | call | dict(wiring.no_guidance)).steps:
        time = torch.full((2,), step.time / 1000 if wiring.prediction == "flow" else step.time)
        with torch.no_grad():
            ours = predict(pipe.transformer, wiring, step.before, time, condition)
        torch.testing.assert_close(ours, step.model_output.float(), rtol=1e-4, atol=1e-5)
    rows = Sampler(pipe, steps=2, height=64, width=64, extra_call=call).sample(PROMPTS, [1, 2])
    images = latents.decode(pipe, wiring, torch.stack([row.latents for row in rows]), (64, 64))
    for row, image in zip(rows, images, strict=True):
        assert np.array_equal(np.asarray(row.image), np.asarray(image))
    assert latents.encode(pipe, wiring, images).shape[1:] == rows[0].latents.shape
