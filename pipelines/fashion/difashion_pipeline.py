"""Stable Diffusion with the conditions of DiFashion (arXiv 2402.17279), as a custom pipeline of diffusers.

    pipe = DiffusionPipeline.from_pretrained(
        "stabilityai/stable-diffusion-2-base", custom_pipeline="pipelines/fashion/difashion_pipeline.py",
        trust_remote_code=True)                     # the base, with new layers for the conditions
    pipe.save_pretrained("difashion")               # complete with this file: DiffusionPipeline.from_pretrained("difashion")
    pipe(prompt, outfit=[images of the other items], history=[images that the user has of this category])

Not verified with published weights. The new layers need DiFashion's training first, which prefkit does not have.

- category: the prompt, `A photo of a {category}, on white background, high quality`; null is the empty prompt.
- history: the mean of the images' latents, beside the sample at the input of the U-Net. conv_in gets 4 more channels, at zero.
- outfit (mutual): m = encoder(mean of the images' latents), and the U-Net gets (1 - eta) x_t + eta m instead of x_t.
- Without images, and as null of the guidance, history and outfit are a white image (item 0 of DiFashion's data).

conv_in is linear. Therefore W [(1 - eta) x_t + eta m, history] is computed as [(1 - eta) W_x, eta W_x, W_h] [x_t, m, history], by
a conv_in of 12 channels: the denoiser stays a UNet2DConditionModel, and both conditions are further channels of its input, as in
inpainting.
`widened` converts the weights of 4 channels, or of DiFashion's 8.

Four branches per step (guided). With guidance_scale <= 1 there is no guidance, but e_all alone, as in InstructPix2Pix; this is
what prefkit trains on. Unlike DiFashion's code, which takes the sum of the clean latents of the other items in sampling and the
mean of noised ones in training, this is the mean of clean ones. Four items that are all blank are not generated together.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from PIL import Image
from torch import Tensor, nn

MODULE = "difashion_pipeline"
ETA = 0.1
Images = Sequence[Image.Image] | Sequence[Sequence[Image.Image]] | None


class MutualEncoder(ModelMixin, ConfigMixin):
    """Maps the other items' mean latents [B, C, H, W] to m of the same shape. size: C * H * W.

    The last layer starts at zero, so that an untrained encoder adds nothing.
    """

    @register_to_config
    def __init__(self, size: int = 4 * 64 * 64, hidden: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(size, hidden), nn.LeakyReLU(), nn.Dropout(0.1), nn.Linear(hidden, size), nn.Tanh()
        )
        nn.init.zeros_(self.layers[3].weight)
        nn.init.zeros_(self.layers[3].bias)

    def forward(self, latents: Tensor) -> Tensor:
        size = latents[0].numel()
        if size != self.config.size:
            raise ValueError(f"the mutual encoder is for {self.config.size} latents, but the image has {size}.")
        return self.layers(latents.flatten(1)).view_as(latents)


MutualEncoder.__module__ = MODULE  # the name of its file in a saved folder, however this file was loaded


def widened(weight: Tensor, eta: float = ETA) -> Tensor:
    """Return conv_in's weight for [x_t, m, history], [O, 12, k, k]; from 4 channels (x_t) or 8 (x_t, history)."""
    of_x = weight[:, :4]
    of_history = weight[:, 4:] if weight.shape[1] == 8 else torch.zeros_like(of_x)
    return torch.cat([(1 - eta) * of_x, eta * of_x, of_history], dim=1)


def widen(unet: UNet2DConditionModel, eta: float = ETA) -> None:
    """Give the U-Net's conv_in 12 input channels, in place."""
    old = unet.conv_in
    new = nn.Conv2d(12, old.out_channels, old.kernel_size, padding=old.padding).to(old.weight)
    new.weight.data, new.bias = widened(old.weight.data, eta), old.bias
    unet.conv_in = new
    unet.register_to_config(in_channels=12)


def guided(branches: Tensor, category: float, mutual: float, history: float) -> Tensor:
    """Return e_0 + s_h (e_all - e_cm) + s_m (e_cm - e_c) + s_c (e_c - e_0).

    branches: [4 B, ...], e_0 (no condition), e_c (category), e_cm (and mutual) and e_all (and history).
    """
    e_0, e_c, e_cm, e_all = branches.chunk(4)
    return e_0 + history * (e_all - e_cm) + mutual * (e_cm - e_c) + category * (e_c - e_0)


class DiFashionPipeline(StableDiffusionPipeline):
    """Generates the missing item of an outfit for a user."""

    model_cpu_offload_seq = "text_encoder->image_encoder->mutual_encoder->unet->vae"
    _optional_components = [*StableDiffusionPipeline._optional_components, "mutual_encoder"]

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: UNet2DConditionModel,
        scheduler: Any,
        safety_checker: Any = None,
        feature_extractor: Any = None,
        image_encoder: Any = None,
        mutual_encoder: MutualEncoder | None = None,
        requires_safety_checker: bool = False,
    ) -> None:
        own = (safety_checker, feature_extractor, image_encoder, requires_safety_checker)
        super().__init__(vae, text_encoder, tokenizer, unet, scheduler, *own)
        if unet.config.in_channels != 12:
            widen(unet)
        if mutual_encoder is None:
            mutual_encoder = MutualEncoder(4 * unet.config.sample_size**2)
            nn.Module.to(mutual_encoder, unet.device, unet.dtype).eval()
        self.register_modules(mutual_encoder=mutual_encoder)

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Write the pipeline together with this file, which loading it then uses (trust_remote_code=True)."""
        super().save_pretrained(save_directory, **kwargs)
        folder = Path(save_directory)
        for place in (folder, folder / "mutual_encoder"):
            shutil.copyfile(__file__, place / f"{MODULE}.py")
        index = json.loads((folder / self.config_name).read_text(encoding="utf-8"))
        index["_class_name"] = [MODULE, type(self).__name__]
        index.pop("_name_or_path", None)
        (folder / self.config_name).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        outfit: Images = None,
        history: Images = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 12.0,
        mutual_guidance_scale: float = 5.0,
        history_guidance_scale: float = 4.0,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Generate. outfit, history: a list of images for all prompts, or one list for each prompt. eta: of DDIM.

        Raises ValueError for a number of lists that is not that of the prompts, and for an image size other than the
        mutual encoder's.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        count, device = len(prompts) * num_images_per_prompt, self._execution_device
        side = self.unet.config.sample_size * self.vae_scale_factor
        size = (height or side, width or side)
        guidance = guidance_scale > 1
        text = self.encode_prompt(prompts, device, num_images_per_prompt, False)[0]
        nothing = _each(self.latents_of([[]], size), count)
        others, past = (
            _each(self.latents_of(_lists(images, len(prompts), name), size), count)
            for name, images in (("outfit", outfit), ("history", history))
        )
        mutual = self.mutual_encoder(others)
        if guidance:
            no_text = self.encode_prompt([""], device, 1, False)[0].expand_as(text)
            no_mutual = self.mutual_encoder(nothing)
            text = torch.cat([no_text, text, text, text])
            mutual = torch.cat([no_mutual, no_mutual, mutual, mutual])
            past = torch.cat([nothing, nothing, nothing, past])
        beside = torch.cat([mutual, past], dim=1)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        latents = self.prepare_latents(count, 4, *size, text.dtype, device, generator, latents)
        extra = self.prepare_extra_step_kwargs(generator, eta)
        for time in self.progress_bar(self.scheduler.timesteps):
            x = self.scheduler.scale_model_input(latents, time)
            x = torch.cat([torch.cat([x] * (4 if guidance else 1)), beside], dim=1)
            noise = self.unet(x, time, encoder_hidden_states=text, return_dict=False)[0]
            if guidance:
                noise = guided(noise, guidance_scale, mutual_guidance_scale, history_guidance_scale)
            latents = self.scheduler.step(noise, time, latents, **extra, return_dict=False)[0]
        return self._finish(latents, text.dtype, output_type, return_dict)

    def _finish(self, latents: Tensor, dtype: torch.dtype, output_type: str, return_dict: bool) -> Any:
        images, flags = latents, None
        if output_type != "latent":
            images = self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0]
            images, flags = self.run_safety_checker(images, latents.device, dtype)
            clear = [True] * len(images) if flags is None else [not flag for flag in flags]
            images = self.image_processor.postprocess(images, output_type=output_type, do_denormalize=clear)
        self.maybe_free_model_hooks()
        return StableDiffusionPipelineOutput(images, flags) if return_dict else (images, flags)

    def latents_of(self, lists: Sequence[Sequence[Image.Image]], size: tuple[int, int]) -> Tensor:
        """Return the mean of the scaled latents of each list of images, [B, C, H, W]; of a white image if it is empty."""
        means = []
        for images in lists:
            images = list(images) or [Image.new("RGB", size[::-1], "white")]
            pixels = self.image_processor.preprocess(images, *size).to(self._execution_device, self.vae.dtype)
            encoded = self.vae.encode(pixels)
            encoded = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
            means.append(encoded.mean(0) * self.vae.config.scaling_factor)
        return torch.stack(means).to(self.unet.dtype)


def _each(means: Tensor, count: int) -> Tensor:
    """Return latents [1 or prompts, C, H, W] for each of `count` samples, those of a prompt beside each other."""
    return means.repeat_interleave(count // len(means), 0)


def _lists(images: Images, prompts: int, name: str) -> Sequence[Sequence[Image.Image]]:
    """Return one list of images for each prompt, or one for all. Raises ValueError for another number of lists."""
    if images is None or len(images) == 0 or isinstance(images[0], Image.Image):
        return [list(images or [])]  # type: ignore[arg-type]
    if len(images) != prompts:
        raise ValueError(f"{name} has {len(images)} lists of images for {prompts} prompts.")
    return images  # type: ignore[return-value]
