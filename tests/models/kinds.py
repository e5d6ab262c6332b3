"""Tiny text-to-image pipelines of many kinds. Real denoisers, VAEs and calls; only their text is made up, but for SD 2
and SD 3.5."""

from __future__ import annotations

import hashlib

import diffusers
import torch
import transformers

from prefkit.testing import _SD_SCHEDULE, _sd3, _sd_v, _vae, wake_zeros
from tests.models.editing import awake, qwen_parts

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


def build(name, text, vae, net, scheduler, **more):
    base = getattr(diffusers, name)
    kind = type(name, (base,), {"encode_prompt": text, "check_inputs": lambda self, *args, **kwargs: None})
    for module in (vae, net):
        wake_zeros(module)
        module.eval()
    where = "unet" if isinstance(net, diffusers.UNet2DConditionModel) else "transformer"
    return kind(vae=vae, scheduler=scheduler, text_encoder=None, tokenizer=None, **{where: net}, **more)


def sd2():
    """As SD 2.1 at 768 px: v-prediction, an OpenCLIP text encoder, linear projections, attention upcast."""
    parts = dict(_sd_v().components)
    text = {**parts["text_encoder"].config.to_dict(), "hidden_act": "gelu"}
    parts["text_encoder"] = transformers.CLIPTextModel(transformers.CLIPTextConfig(**text)).eval()
    changes = {"use_linear_projection": True, "attention_head_dim": (2, 4), "upcast_attention": True}
    parts["unet"] = awake(diffusers.UNet2DConditionModel.from_config({**parts["unet"].config, **changes}))
    scheduler = diffusers.DDIMScheduler.from_config({**_SD_SCHEDULE, "prediction_type": "v_prediction"})
    return diffusers.StableDiffusionPipeline(**{**parts, "scheduler": scheduler}, requires_safety_checker=False)


def sd35():
    """As SD 3.5 medium: a second attention in the first blocks, normed queries and keys."""
    parts = dict(_sd3().components)
    parts["text_encoder_3"].eval()  # T5 comes with dropout
    changes = {"dual_attention_layers": (0,), "qk_norm": "rms_norm"}
    parts["transformer"] = awake(
        diffusers.SD3Transformer2DModel.from_config({**parts["transformer"].config, **changes})
    )
    return diffusers.StableDiffusion3Pipeline(**parts)


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
    parts = qwen_parts()
    return build("QwenImagePipeline", padded_text, parts["vae"], parts["transformer"], parts["scheduler"])


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


def rows_of(prompt, length=12):
    return torch.stack([embedding(p, length) for p in ([prompt] if isinstance(prompt, str) else prompt)])


def flow(**options):
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, **options)


def vae16():
    return _vae(4, scaling_factor=0.36, shift_factor=0.12, quant=False)


def chroma():
    def text(self, prompt, **_):
        rows, ids, mask = rows_of(prompt), torch.zeros(12, 3), torch.ones(len(rows_of(prompt)), 12)
        return rows, ids, mask, rows, ids, mask

    net = diffusers.ChromaTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, axes_dims_rope=(4, 4, 8), approximator_num_channels=8, approximator_hidden_dim=16,
        approximator_layers=1,
    )  # fmt: skip
    return build("ChromaPipeline", text, vae16(), net, flow(use_dynamic_shifting=True))


def aura_flow():
    net = diffusers.AuraFlowTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=WIDTH, caption_projection_dim=32, out_channels=4,
        pos_embed_max_size=64,
    )  # fmt: skip
    return build("AuraFlowPipeline", masked_text, _vae(4, scaling_factor=0.13), net, flow())


def cogview4():
    net = diffusers.CogView4Transformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=4, num_attention_heads=4,
        text_embed_dim=WIDTH, time_embed_dim=8, condition_dim=4, pos_embed_max_size=16, sample_size=8,
        rope_axes_dim=(16, 16),
    )  # fmt: skip
    scheduler = flow(use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75, base_image_seq_len=256)
    text = lambda self, prompt, *_, **__: (rows_of(prompt, 16),) * 2  # noqa: E731
    return build("CogView4Pipeline", text, _vae(4, scaling_factor=0.13), net, scheduler)


def hunyuan_dit():
    def text(self, prompt, text_encoder_index=0, **_):
        rows = rows_of(prompt, 16 if text_encoder_index else 12)
        mask = torch.ones(rows.shape[:2]).long()
        return rows, rows, mask, mask

    net = diffusers.HunyuanDiT2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, patch_size=2, sample_size=8, hidden_size=32,
        num_layers=2, mlp_ratio=2.0, cross_attention_dim=WIDTH, cross_attention_dim_t5=WIDTH, pooled_projection_dim=16,
        text_len=12, text_len_t5=16, activation_fn="gelu-approximate",
    )  # fmt: skip
    scheduler = diffusers.DDPMScheduler(
        beta_start=0.00085, beta_end=0.02, beta_schedule="scaled_linear", prediction_type="v_prediction",
        steps_offset=1, clip_sample=False,
    )  # fmt: skip
    more = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return build("HunyuanDiTPipeline", text, _vae(4, scaling_factor=0.13), net, scheduler, **more)


def kolors():
    def text(self, prompt, **_):
        rows = rows_of(prompt)
        return rows, rows, rows.mean(1), rows.mean(1)

    net = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=8, transformer_layers_per_block=(1, 1),
        projection_class_embeddings_input_dim=WIDTH + 6 * 8, cross_attention_dim=16, encoder_hid_dim=WIDTH,
        encoder_hid_dim_type="text_proj",
    )  # fmt: skip
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.014, beta_schedule="scaled_linear", num_train_timesteps=1100,
        timestep_spacing="leading", steps_offset=1,
    )  # fmt: skip
    return build("KolorsPipeline", text, _vae(4, scaling_factor=0.13), net, scheduler)


def hidream():
    def text(self, prompt, **_):
        rows = rows_of(prompt)
        layers, pooled = torch.stack([rows, rows / 2]), rows.mean(1)  # two layers of the language model
        return rows, rows, layers, layers, pooled, pooled

    net = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8,
        num_attention_heads=4, caption_channels=[WIDTH, WIDTH], text_emb_dim=WIDTH, num_routed_experts=2,
        num_activated_experts=1, axes_dims_rope=(4, 2, 2), max_resolution=(32, 32), llama_layers=[0, 1],
    )  # fmt: skip
    more = {f"{part}_{i}": None for part in ("text_encoder", "tokenizer") for i in (2, 3, 4)}
    pipe = build("HiDreamImagePipeline", text, vae16(), net, flow(), **more)
    pipe.default_sample_size = 8  # it brings every size to this area, a million pixels
    return pipe


def lumina():
    def text(self, prompt, *_, **__):
        rows = rows_of(prompt)
        mask = torch.ones(rows.shape[:2]).long()
        return rows, mask, rows, mask

    net = diffusers.LuminaNextDiT2DModel(
        sample_size=8, patch_size=2, in_channels=4, hidden_size=24, num_layers=1, num_attention_heads=3,
        num_kv_heads=1, multiple_of=16, learn_sigma=True, qk_norm=True, cross_attention_dim=WIDTH, scaling_factor=1.0,
    )  # fmt: skip
    return build("LuminaPipeline", text, _vae(4, scaling_factor=0.13), net, flow())


def wan():
    net = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16, text_dim=WIDTH, freq_dim=16,
        ffn_dim=32, num_layers=1, rope_max_seq_len=32,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    return build("WanPipeline", lambda self, prompt, **_: (rows_of(prompt),) * 2, vae, net, flow())


def cascade():
    levels = {"down_num_layers_per_block": (1, 1), "up_num_layers_per_block": (1, 1), "num_attention_heads": (2, 2)}
    levels |= {"down_blocks_repeat_mappers": (1, 1), "up_blocks_repeat_mappers": (1, 1), "block_out_channels": (8, 8)}
    net = diffusers.StableCascadeUNet(
        in_channels=4, out_channels=4, conditioning_dim=8, clip_text_pooled_in_channels=8, switch_level=(False,),
        timestep_ratio_embedding_dim=8, block_types_per_layer=(("SDCascadeResBlock",),) * 2, **levels,
    )  # fmt: skip
    scheduler = diffusers.DDPMWuerstchenScheduler()
    return diffusers.StableCascadeDecoderPipeline(net, None, None, scheduler, None)


BINNED = ("SanaPipeline", "PixArtSigmaPipeline", "HunyuanDiTPipeline")  # bring sizes to those of a list


def extras(pipe):
    return {"use_resolution_binning": False} if type(pipe).__name__ in BINNED else {}
