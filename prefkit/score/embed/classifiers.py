"""Image classifiers of torchvision and timm, with weights from a local file. They also serve as image encoders.

`torchvision:NAME` is a model of torchvision.models, `timm:NAME` a model of timm.create_model. An embedding is the
pooled input of the last layer. The weight file determines the number of classes, so fine-tuned models can be loaded.
"""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.errors import UsageError
from prefkit.score.embed.weights import read_state

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn

LIBRARIES = ("torchvision", "timm")
#: names in torchvision's oldest DenseNet files, such as denselayer1.norm.1.weight, now denselayer1.norm1.weight
OLD_NAME = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d)\.")
#: tensors that a file may lack: counters that BatchNorm sets, and auxiliary heads that only training uses
OPTIONAL = re.compile(r"\.num_batches_tracked$|^(aux\d|AuxLogits)\.")


class ImageNetwork:
    """An image encoder: a classifier without its last layer, with its evaluation transform (Pillow).

    head: keep the last layer. `images` then returns logits, and `width` is the number of classes.
    """

    scale, bias = 1.0, 0.0  # neutral values: a classifier cannot encode texts

    def __init__(self, model: str, path: Path, device: str, dtype: str, head: bool = False) -> None:
        """Load the weights. Raises UsageError if they do not fit the model."""
        import torch
        from PIL import Image

        from prefkit.models.precision import dtype_of

        library, name = _parts(model)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # warnings about initial weights, which the file replaces
            net, self.transform = (_torchvision if library == "torchvision" else _timm)(name, path, head)
        self.device, self.dtype = device, dtype_of(dtype)
        self.model: Any = net.to(self.device, self.dtype).eval()
        shape = self.images([Image.new("RGB", (8, 8))]).shape
        if len(shape) != 2:
            raise UsageError(
                f"{model} returns an array of shape {list(shape[1:])} per image instead of a vector; choose an image classifier."
            )
        self.width = shape[1]

    def images(self, images: Sequence[Image]) -> Tensor:
        """Return features [B, width], or logits with `head`, as float32."""
        import torch

        with torch.inference_mode():
            pixels = torch.stack([self.transform(image) for image in images]).to(self.device, self.dtype)
            return self.model(pixels).float()


def is_classifier(model: str) -> bool:
    """Return True for torchvision:NAME and timm:NAME."""
    return model.startswith(tuple(f"{library}:" for library in LIBRARIES))


def check(model: str, pretrained: str | None) -> None:
    """Raise UsageError if the library does not have the model or `pretrained` is not a file."""
    from prefkit.registry import nearest

    library, name = _parts(model)
    known = _names(name, library)
    if name not in known:
        raise UsageError(f"{model}: {library} has no image classifier {name!r}.{nearest(name, known)}")
    if not pretrained or not Path(pretrained).expanduser().is_file():
        given = f"`pretrained` is {pretrained}, which is not a file" if pretrained else "`pretrained` is not set"
        raise UsageError(
            f"{model}: {given}. Set it to the path of the model's weights (.pth or .safetensors); nothing is downloaded. "
            f"{_source(name, library)}"
        )


def preprocessing(model: str, path: Path) -> str:
    """Return a description of the preprocessing, for a spec."""
    library, name = _parts(model)
    if library == "timm":
        config = _timm_config(name)
        size, crop, mode = config["input_size"][-1], config["crop_pct"], config["interpolation"]
        return f"timm's evaluation transform of {name} (crop {size}, {crop:g} of the side, {mode}), Pillow"
    weights = _published(name, path)
    preset = weights.transforms()
    sizes = f"resize {preset.resize_size[0]}, crop {preset.crop_size[0]}, {preset.interpolation.value}"
    return f"torchvision's evaluation transform of {weights} ({sizes}), Pillow"


def class_names(model: str, path: Path) -> list[str]:
    """Return the names of the published model's classes; [] if the library does not list them."""
    library, name = _parts(model)
    return list(_published(name, path).meta.get("categories", ())) if library == "torchvision" else []


def _parts(model: str) -> tuple[str, str]:
    library, _, name = model.partition(":")
    return library, name


def _names(name: str, library: str) -> list[str]:
    if library == "torchvision":
        from torchvision import models

        return models.list_models(module=models)
    import timm

    return timm.list_pretrained() if "." in name else timm.list_models()


def _source(name: str, library: str) -> str:
    """Return a sentence that says where to get the published weights."""
    if library == "torchvision":
        from torchvision import models

        return f"torchvision's default weights are at {models.get_model_weights(name).DEFAULT.url}."
    import timm

    config: Any = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        return "timm lists no published weights of this model."
    return f"`hf download {config.hf_hub_id} model.safetensors` downloads timm's weights and prints their path."


def _published(name: str, path: Path) -> Any:
    """Return a weight file's entry in torchvision's weights enum, by SHA-256, else by name, else the default entry.

    The entry determines the transform. torchvision's file names end in the first 8 digits of the SHA-256.
    """
    from torchvision import models

    from prefkit.models.load.revision import file_hash

    table: Any = models.get_model_weights(name)
    files = {Path(weights.url).name: weights for weights in table}
    sha256 = file_hash(path)
    by_hash = [weights for file, weights in files.items() if sha256.startswith(Path(file).stem.rpartition("-")[2])]
    return by_hash[0] if by_hash else files.get(path.name, table.DEFAULT)


def _torchvision(name: str, path: Path, head: bool) -> tuple[nn.Module, Callable[[Image], Tensor]]:
    from torch.nn import Identity
    from torchvision import models

    weights = _published(name, path)
    size = {"image_size": weights.meta["min_size"][0]} if name.startswith("vit_") else {}
    model: Any = models.get_model(name, weights=None, **size)
    state = _renamed(read_state(path))
    last, classes = _last_layer(model)
    found = _classes(state, last, classes)
    if found != classes:
        model = models.get_model(name, weights=None, num_classes=found, **size)
    if hasattr(model, "transform_input"):
        model.transform_input = True  # the published weights of Inception and GoogLeNet expect another normalisation
    load(model, state, path, f"torchvision:{name}")
    if not head:
        model.set_submodule(last, Identity())
    return model, weights.transforms()


def _last_layer(model: nn.Module) -> tuple[str, int]:
    """Return the name of the layer that returns the logits, and the number of logits."""
    from torch import nn

    name, layer = [(n, m) for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]
    return name, int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)


def _timm(name: str, path: Path, head: bool) -> tuple[nn.Module, Callable[[Image], Tensor]]:
    import timm

    state = read_state(path)
    model: Any = timm.create_model(name)
    classifier = model.pretrained_cfg.get("classifier")
    last = classifier if isinstance(classifier, str) else classifier[0] if classifier else ""
    found = _classes(state, last, model.num_classes)
    if found != model.num_classes:
        model = timm.create_model(name, num_classes=found)
    load(model, state, path, f"timm:{name}")
    if not head:
        model.reset_classifier(0)
    return model, timm.data.create_transform(**_timm_config(name))


def _timm_config(name: str) -> dict[str, Any]:
    import timm

    config: Any = timm.get_pretrained_cfg(name)
    return timm.data.resolve_data_config(pretrained_cfg={} if config is None else config.to_dict())


def _classes(state: Mapping[str, Any], layer: str, default: int) -> int:
    """Return the number of outputs of `layer` in a state dict; `default` if the state dict lacks the layer."""
    shape = getattr(state.get(f"{layer}.weight"), "shape", ())
    return int(shape[0]) if shape else default


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict, including its metadata, with DenseNet's current names."""
    renamed: Any = OrderedDict((OLD_NAME.sub(r"\1\2.", key), value) for key, value in state.items())
    if hasattr(state, "_metadata"):
        renamed._metadata = state._metadata  # layer versions, which tell torch how to convert old files
    return renamed


def load(model: Any, state: dict[str, Tensor], path: Path, shown: str) -> None:
    """Load a state dict. Raises UsageError that names the model (`shown`), the file and the tensors that differ."""
    wanted = {key: list(value.shape) for key, value in model.state_dict().items()}
    given = {key: list(getattr(value, "shape", ())) for key, value in state.items()}
    missing = [key for key in wanted if key not in given and not OPTIONAL.search(key)]
    unknown = [key for key in given if key not in wanted]
    other = [f"{k} is {given[k]} instead of {wanted[k]}" for k in wanted if k in given and given[k] != wanted[k]]
    parts = [("lacks", missing), ("has tensors that the model does not have:", unknown), ("has other shapes:", other)]
    differences = [
        f"it {verb} {', '.join(names[:3])}" + f" and {len(names) - 3} more" * (len(names) > 3)
        for verb, names in parts
        if names
    ]
    if differences:
        raise UsageError(
            f"{path} does not fit {shown}: {'; '.join(differences)}. Choose weights of this model, or another model."
        )
    if not hasattr(state, "_metadata"):
        state = OrderedDict(state)
        state._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]  # safetensors has none
    model.load_state_dict(state, strict=False)
