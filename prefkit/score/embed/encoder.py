"""Encoders for scorers: they embed images, and most also embed texts, as unit vectors.

Scorers in one process whose encoders have equal weights, preprocessing, device and dtype share one network, with a
cache of the latest `CACHED` image and text embeddings.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakValueDictionary

from prefkit import tiny
from prefkit.errors import UsageError
from prefkit.images import Background
from prefkit.models.load.snapshot import on_hub
from prefkit.score.embed import classifiers
from prefkit.types import Candidate, Score, digest

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

HUB = "hf-hub:"  # open_clip's prefix of a Hub id
#: endings of checkpoints; open_clip has no tag with one of them
WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
CACHED = 4096  # number of images, and also of texts; 16 MB each at 1024 dimensions


class Encoder:
    """An encoder. `load` opens its network, or reuses the network of an equal encoder.

    library     open_clip: `model` is `local-dir:FOLDER`, `hf-hub:owner/name`, `tiny` (the embedded model), or an
                architecture with `pretrained`, an open_clip tag or a local checkpoint (safetensors or state dict).
                transformers: `model` is a folder or Hub id of a CLIP or SigLIP model; `pretrained` is not used.
                Both: `model` may be the classifier torchvision:NAME or timm:NAME; `pretrained` is then its weight file
    processor   transformers: folder or Hub id of tokenizer and image processor, default: the model's own
    openai      transformers: prepare images as OpenAI's code does, which resizes them before it converts them to RGB
    revision    branch, tag or commit of a Hub id; not of a processor in another repository
    resize      open_clip: shortest | longest (letterbox) | squash, default: the model's own
    needs_text  False: image classifiers, which cannot encode texts, are allowed too
    """

    def __init__(
        self,
        model: str,
        pretrained: str | None = None,
        *,
        library: Literal["open_clip", "transformers", "torchvision", "timm"] = "open_clip",
        processor: str | None = None,
        resize: str | None = None,
        openai: bool = False,
        needs_text: bool = True,
        revision: str | None = None,
    ) -> None:
        self.library: str = library
        self.shown = model
        self.name = f"local-dir:{tiny.CLIP}" if model == tiny.NAME and library == "open_clip" else model
        self.pretrained = None if ":" in self.name or library == "transformers" else pretrained
        self.processor, self.wanted = processor or model, revision
        if revision is not None and self.repository() is None:
            raise UsageError(f"`revision` is for a Hub id, but `model` is {model}. Remove `revision`.")
        self.resize, self.openai = resize, openai
        self.network: Any = None
        self.read: set[str] = set()  # digests of all texts that were encoded; `cut`: of those that were truncated
        self.cut: set[str] = set()
        self.length = 0  # tokens of a text that the network reads
        if classifiers.is_classifier(model):
            if needs_text:
                raise UsageError(
                    f"{model} encodes images only, but the scorer must encode texts too. Choose a CLIP or SigLIP model."
                )
            self.library, self.pretrained = model.partition(":")[0], pretrained
            classifiers.check(model, pretrained)
        elif library == "open_clip" and ":" not in self.name and not pretrained:
            raise UsageError(
                f"`pretrained` is not set, and {model!r} is only an architecture, whose weights would be random. "
                "Set `pretrained` to an open_clip tag (such as laion2b_s34b_b79k) or a local checkpoint, "
                "or set `model` to local-dir:FOLDER, hf-hub:owner/name or `tiny`."
            )
        elif self.pretrained:
            _check_architecture(model, self.pretrained)

    def weights(self) -> str:
        """Return the name of the weights, for a spec."""
        if self.library == "transformers":
            return self.shown + (f", processor {self.processor}" if self.processor != self.name else "")
        if classifiers.is_classifier(self.name):
            return f"{self.shown} {self._file().name}"
        return f"{self.shown} {self.pretrained or ''}".strip()

    def repository(self) -> str | None:
        """Return the Hub id of the model; None for local weights and for weights that open_clip finds by its tag."""
        name = self.name.removeprefix(HUB)
        written = self.name.startswith(HUB) if self.library == "open_clip" else self.library == "transformers"
        return name if written and on_hub(name) else None

    def revision(self) -> str | None:
        """Return the commit of a Hub id or the hash of local weights; None for weights that open_clip finds by its tag."""
        from prefkit.models.load.revision import weights_revision

        if self.library == "transformers":
            parts = {self.name: self.wanted} | ({self.processor: None} if self.processor != self.name else {})
            return " ".join(weights_revision(name, wanted) for name, wanted in parts.items())
        if repository := self.repository():
            return weights_revision(repository, self.wanted)
        local = Path((self.pretrained or self.name).removeprefix("local-dir:")).expanduser()
        return weights_revision(local) if local.exists() else None

    def preprocessing(self) -> str:
        """Return a description of the preprocessing, for a spec."""
        if self.openai:
            return "OpenAI's transform: shortest side, bicubic (Pillow), rounded centre crop, then RGB"
        if classifiers.is_classifier(self.name):
            return classifiers.preprocessing(self.name, self._file())
        if self.library == "transformers":
            return "RGB; the model's own image processor, Pillow"
        return "the model's own evaluation transform in open_clip" + f", resize {self.resize}" * bool(self.resize)

    def key(self, device: str, dtype: str) -> tuple[Any, ...]:
        """Return the key of the network. Encoders with equal keys give equal embeddings."""
        settings = (self.library, self.name, self.pretrained, self.processor, self.resize, self.revision())
        return (*settings, device, dtype, Background.rules())

    def load(self, device: str, dtype: str) -> None:
        """Raises UsageError if the library does not know the model or cannot load it."""
        key = self.key(device, dtype)
        self.network = _OPEN.get(key)
        if self.network is None:
            self.network = _OPEN[key] = _Shared(self._open(device, dtype))

    def _open(self, device: str, dtype: str) -> Any:
        from prefkit.score.embed import networks

        if classifiers.is_classifier(self.name):
            return classifiers.ImageNetwork(self.name, self._file(), device, dtype)
        return networks.opened(self, device, dtype)

    def _file(self) -> Path:
        return Path(self.pretrained or "").expanduser()

    @property
    def scale(self) -> float:
        """exp(logit_scale) of the stored weights, before the cast to the network's dtype; 1 for image classifiers."""
        return self.network.inner.scale

    @property
    def bias(self) -> float:
        """SigLIP's logit_bias; 0 for other models."""
        return self.network.inner.bias

    @property
    def width(self) -> int:
        """Length of an embedding."""
        return self.network.inner.width

    def candidates(self, batch: Sequence[Candidate], normalize: bool = True) -> Tensor:
        """Return image embeddings [B, D] float32, cached by image; unit vectors if `normalize`."""
        inner = self.network.inner

        def embed(new: list[int]) -> Tensor:
            if self.openai:
                return inner.images([batch[i].native() for i in new], openai=True)
            return inner.images([batch[i].pil() for i in new])

        rows = self.network.images.rows([image_key(c, self.openai) for c in batch], embed)
        return _unit(rows) if normalize else rows

    def images(self, images: Sequence[Image], normalize: bool = True) -> Tensor:
        """Return image embeddings [B, D] float32, not cached; unit vectors if `normalize`."""
        rows = self.network.inner.images(images)
        return _unit(rows) if normalize else rows

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return text embeddings [B, D] float32, unit vectors. Texts are truncated at the context length."""
        self._count(texts)
        return _unit(self.network.texts.rows(texts, lambda new: self.network.inner.texts([texts[i] for i in new])))

    def _count(self, texts: Sequence[str]) -> None:
        new = {key: text for text in texts if (key := digest(text)) not in self.read}
        self.read |= new.keys()
        network = self.network.inner
        tokens = network.tokens(list(new.values())) if new else []
        self.length = network.length
        self.cut |= {key for key, length in zip(new, tokens, strict=True) if length > network.length}

    def cosines(self, batch: Sequence[Candidate], texts: Sequence[str]) -> Tensor:
        """Return the cosine of candidate i with text i, for all i: [B] float32."""
        return (self.candidates(batch) * self.texts(texts)).sum(-1)


def _check_architecture(name: str, pretrained: str) -> None:
    """Raise UsageError for an architecture that open_clip does not know, or for weights that are neither tag nor file."""
    import open_clip

    from prefkit.registry import nearest

    if name not in open_clip.list_models():
        raise UsageError(f"open_clip has no model {name!r}.{nearest(name, open_clip.list_models())}")
    path = Path(pretrained).expanduser()
    if not path.is_file() and (os.sep in pretrained or path.suffix.lower() in WEIGHT_FILES):
        raise UsageError(f"{name}: `pretrained` is {pretrained}, which is not a file. Correct the path.")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not open_clip.get_pretrained_cfg(name, pretrained) and not path.is_file():
        raise UsageError(
            f"{name}: `pretrained` is {pretrained!r}, which is neither a file nor a tag of open_clip for this model. Its "
            f"tags: {', '.join(tags) or 'none'}."
        )


class CosineScorer:
    """Common part of scorers whose value is the cosine of image and text, or a function of this cosine."""

    requires = frozenset({"image", "prompt"})
    scope = "absolute"
    encoder: Encoder

    def load(self, device: str, dtype: str) -> None:
        """Raises UsageError if the weights are missing, unknown to the library or of another kind of model."""
        self.encoder.load(device, dtype)

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        cosines = self.encoder.cosines(batch, [self.text(c) for c in batch]).double()
        return [Score(value) for value in self.scaled(cosines).tolist()]

    def text(self, candidate: Candidate) -> str:
        return candidate.prompt

    def scaled(self, cosines: Tensor) -> Tensor:
        return cosines


class _Shared:
    """An open network with its cached embeddings."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.images, self.texts = EmbeddingCache(CACHED), EmbeddingCache(CACHED)


_OPEN: WeakValueDictionary[tuple[Any, ...], _Shared] = WeakValueDictionary()  # a network is freed with its last scorer


class EmbeddingCache:
    """Cache of up to `most` embeddings by key; drops the least recently used ones."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.entries: OrderedDict[str, Tensor] = OrderedDict()

    def rows(self, keys: Sequence[str], embed: Callable[[list[int]], Tensor]) -> Tensor:
        """Return embeddings [len(keys), D]. `embed` computes the missing ones from their indices in `keys`."""
        import torch

        rows = {key: self.entries[key] for key in keys if key in self.entries}
        new: dict[str, int] = {}
        for i, key in enumerate(keys):
            if key not in rows:
                new.setdefault(key, i)
        if new:
            rows |= dict(zip(new, embed(list(new.values()))))
        for key in keys:
            self.entries[key] = rows[key]
            self.entries.move_to_end(key)
        while len(self.entries) > self.most:
            self.entries.popitem(last=False)
        return torch.stack([rows[key] for key in keys])


def image_key(candidate: Candidate, openai: bool = False) -> str:
    """Return the hash of the image file, else of the pixels. openai: a different key, for OpenAI's preprocessing."""
    if candidate.decoded is not None and candidate.sha256:
        return candidate.sha256 + " openai" * openai
    image, mode = candidate.pil(), f" openai {candidate.native().mode}" if openai else ""
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest() + mode


def _unit(rows: Tensor) -> Tensor:
    import torch

    return torch.nn.functional.normalize(rows, dim=-1)
