"""An open_clip model by name: images and texts to unit vectors. Shared by every scorer that looks through CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit import tiny
from prefkit.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


class Encoder:
    """`model` is an open_clip architecture with `pretrained` a tag or a local checkpoint (safetensors, or a state
    dict read without pickle), `local-dir:FOLDER`, `hf-hub:owner/name`, or `tiny`, the embedded one."""

    def __init__(self, model: str, pretrained: str | None) -> None:
        self.name = f"local-dir:{tiny.CLIP}" if model == tiny.NAME else model
        self.shown = model
        self.pretrained = None if ":" in self.name else pretrained
        if ":" not in self.name and not pretrained:
            raise UsageError(
                f"clip: `pretrained` is empty, and {model!r} alone is an architecture: its weights would be random, and so "
                "would the scores. Set `pretrained` to an open_clip tag (such as laion2b_s34b_b79k) or a local checkpoint, "
                "or `model` to local-dir:FOLDER, hf-hub:owner/name or tiny."
            )

    def weights(self) -> str:
        """What a spec says of the weights."""
        return f"{self.shown} {self.pretrained or ''}".strip()

    def revision(self) -> str | None:
        """The hash of local weights; None for those that open_clip names."""
        from prefkit.models.revision import weights_revision

        local = Path((self.pretrained or self.name).removeprefix("local-dir:")).expanduser()
        return weights_revision(local) if local.exists() else None

    def load(self, device: str, dtype: str) -> None:
        """Raises UsageError for an architecture or weights that open_clip does not have."""
        import open_clip

        from prefkit.models.load import dtype_of

        if ":" not in self.name and self.name not in open_clip.list_models():
            from prefkit.registry import nearest

            raise UsageError(f"open_clip has no model {self.name!r}.{nearest(self.name, open_clip.list_models())}")
        try:
            model, _, self.transform = open_clip.create_model_and_transforms(
                self.name, self.pretrained, device=device, weights_only=True
            )
            self.tokenizer = open_clip.get_tokenizer(self.name)
        except (RuntimeError, OSError, ValueError, KeyError) as error:
            raise UsageError(
                f"clip: {self.weights()} could not be loaded: {' '.join(str(error).split())[:300]}"
            ) from error
        self.device, self.dtype = device, dtype_of(dtype)
        self.model: Any = model.to(self.dtype).eval()

    def images(self, images: Sequence[Image], normalize: bool = True) -> Tensor:
        """[B, D] float32, unit vectors unless told otherwise."""
        import torch

        with torch.inference_mode():
            pixels = torch.stack([self.transform(image) for image in images]).to(self.device, self.dtype)
            return self.model.encode_image(pixels, normalize=normalize).float()

    def texts(self, texts: Sequence[str]) -> Tensor:
        """[B, D] float32 unit vectors. Text beyond the context length is cut off, as in every published use."""
        import torch

        with torch.inference_mode():
            return self.model.encode_text(self.tokenizer(list(texts)).to(self.device), normalize=True).float()
