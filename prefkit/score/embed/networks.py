"""Image-text networks. Their methods `images` and `texts` return embeddings [B, D] float32, not normalised."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from prefkit.errors import UsageError
from prefkit.models.load.pipeline import silence_bars
from prefkit.models.load.snapshot import snapshot
from prefkit.models.long_prompts import lengths
from prefkit.models.precision import dtype_of

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from prefkit.score.embed.encoder import Encoder


#: files of a model of open_clip on the Hub
FILES = (
    "open_clip_config.json",
    "open_clip_model.safetensors",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens*",
)


def opened(encoder: Encoder, device: str, dtype: str) -> OpenClip | Transformers:
    """Return a new copy of an encoder's network. Raises UsageError."""
    if encoder.library == "transformers":
        return Transformers(encoder.name, encoder.processor, device, dtype, encoder.wanted)
    folder = folder_of(encoder) if encoder.wanted or not encoder.repository() else None  # open_clip takes no revision
    name = f"local-dir:{folder}" if folder else encoder.name
    return OpenClip(name, encoder.pretrained, encoder.resize, device, dtype)


def folder_of(encoder: Encoder) -> Path | None:
    """Return the folder of an open_clip model, downloaded if it has a Hub id; None for an architecture."""
    if repository := encoder.repository():
        return snapshot(repository, encoder.wanted, FILES)[0]
    local = encoder.name.startswith("local-dir:")
    return Path(encoder.name.removeprefix("local-dir:")).expanduser() if local else None


class OpenClip:
    """A model of open_clip with its own evaluation transform (Pillow) and tokenizer."""

    def __init__(self, name: str, pretrained: str | None, resize: str | None, device: str, dtype: str) -> None:
        """Raises UsageError for an architecture or weights unknown to open_clip."""
        import open_clip

        try:
            model, _, transform = open_clip.create_model_and_transforms(
                name, pretrained, device=device, weights_only=True, image_resize_mode=resize
            )
            self.tokenizer = open_clip.get_tokenizer(name)
        except (RuntimeError, OSError, ValueError, KeyError) as error:
            raise unloadable(f"{name} {pretrained or ''}".strip(), error) from error
        self.transform: Any = transform
        self.length = int(getattr(self.tokenizer, "context_length", None) or 77)
        self.scale, self.bias = _scaling(model)
        self.device, self.dtype = device, dtype_of(dtype)
        self.model: Any = model.to(self.dtype).eval()
        self.width = self.texts([""]).shape[-1]

    def images(self, images: Sequence[Image]) -> Tensor:
        with torch.inference_mode():
            pixels = torch.stack([self.transform(image) for image in images]).to(self.device, self.dtype)
            return self.model.encode_image(pixels).float()

    def texts(self, texts: Sequence[str]) -> Tensor:
        with torch.inference_mode():
            return self.model.encode_text(self.tokenizer(list(texts)).to(self.device)).float()

    def tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text before truncation."""
        inner = getattr(self.tokenizer, "tokenizer", None)  # set if open_clip wraps a tokenizer of transformers
        if inner is not None:
            return lengths(inner, texts)
        return [len(self.tokenizer.encode(text)) + 2 for text in texts]


class Transformers:
    """A CLIP or SigLIP model of transformers, with the Pillow image processor. Texts are padded to the full context."""

    def __init__(self, model: str, processor: str, device: str, dtype: str, revision: str | None = None) -> None:
        """revision: of the model, and of the processor if it is in the same repository.

        Raises UsageError if `model` is not a CLIP or SigLIP model, or `processor` has no Pillow image processor."""
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        silence_bars()
        try:
            other = None if processor != model else revision
            self.processor: Any = AutoImageProcessor.from_pretrained(processor, revision=other, backend="pil")
            self.tokenizer: Any = AutoTokenizer.from_pretrained(processor, revision=other)
            options: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True, "revision": revision}
            net, info = AutoModel.from_pretrained(model, **options)
        except (RuntimeError, OSError, ValueError, KeyError, ImportError) as error:
            raise unloadable(model, error) from error
        if not all(hasattr(net, name) for name in ("get_image_features", "get_text_features", "logit_scale")):
            raise UsageError(f"{model} is a {type(net).__name__}; it must be a CLIP or SigLIP model.")
        if info["missing_keys"]:  # transformers would leave them random
            raise UsageError(f"{model} lacks weights: {', '.join(sorted(info['missing_keys'])[:4])}.")
        if getattr(self.processor, "backend", "") != "pil":
            raise UsageError(f"{processor}: {type(self.processor).__name__} is not a Pillow image processor.")
        self.transform: Any = openai_transform(net.config.vision_config.image_size)
        self.scale, self.bias = _scaling(net)
        self.length = net.config.text_config.max_position_embeddings
        self.device, self.dtype = device, dtype_of(dtype)
        self.model = net.to(self.device, self.dtype).eval()
        self.width = self.texts([""]).shape[-1]

    def images(self, images: Sequence[Image], openai: bool = False) -> Tensor:
        """openai: use `openai_transform`; its centre crop rounds half pixels, and the processor's floors them."""
        if openai:
            pixels = torch.stack([self.transform(image) for image in images]).to(self.device, self.dtype)
            with torch.inference_mode():
                return _features(self.model.get_image_features(pixel_values=pixels))
        inputs = self.processor(images=list(images), return_tensors="pt")
        with torch.inference_mode():
            # BatchFeature.to casts floating-point tensors only, not masks and shapes
            return _features(self.model.get_image_features(**inputs.to(self.device, self.dtype)))

    def texts(self, texts: Sequence[str]) -> Tensor:
        ids = self.tokenizer(
            list(texts), padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        ).input_ids
        with torch.inference_mode():
            return _features(self.model.get_text_features(input_ids=ids.to(self.device)))

    def tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text before truncation."""
        return lengths(self.tokenizer, texts)


def openai_transform(size: int) -> Any:
    """Return OpenAI's transform of an image in any mode to [3, size, size] float32: shortest side to `size` (bicubic,
    Pillow), centre crop at int(round((w - size) / 2)), then RGB and CLIP's normalisation."""
    import open_clip

    return open_clip.image_transform(size, is_train=False)


def unloadable(name: str, error: Exception) -> UsageError:
    return UsageError(f"{name} could not be loaded: {' '.join(str(error).split())[:300]}")


def _scaling(model: Any) -> tuple[float, float]:
    """Return exp(logit_scale) and logit_bias before the weights are cast: bfloat16 would turn 100 into 98.9."""
    bias = getattr(model, "logit_bias", None)
    return float(model.logit_scale.detach().double().exp()), 0.0 if bias is None else float(bias.detach())


def _features(output: Any) -> Tensor:
    """Return the projected embedding, which transformers 5 wraps in an output object."""
    return (output if isinstance(output, torch.Tensor) else output.pooler_output).float()
