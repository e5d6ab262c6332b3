"""Image classifiers of torchvision and timm as encoders: features, refused weights, and the scorers that use them."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from prefkit.errors import UsageError
from prefkit.score.core import make_scorer
from prefkit.score.embed import classifiers
from prefkit.score.embed.encoder import Encoder
from tests.classifier_files import saved

#: name -> node that torchvision's own feature extraction reads: the input of the last layer
NODES = {
    "resnet18": "flatten",
    "mobilenet_v3_small": "classifier.2",
    "efficientnet_b0": "flatten",
    "shufflenet_v2_x0_5": "mean",
    "regnet_x_400mf": "flatten",
    "swin_t": "flatten",
}


def pictures():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, size, np.uint8)) for size in ((90, 70, 3), (40, 120, 3))]


def opened(model, path):
    encoder = Encoder(model, str(path), needs_text=False)
    encoder.load("cpu", "float32")
    return encoder


@pytest.mark.parametrize("name", NODES)
def test_features_are_the_input_of_the_last_layer(name, tmp_path):
    """Against torchvision's create_feature_extractor and the transform of its weights."""
    from torchvision import models
    from torchvision.models.feature_extraction import create_feature_extractor

    model, path = saved(tmp_path, name, num_classes=5)
    before = torch.get_rng_state()
    encoder = opened(f"torchvision:{name}", path)
    assert torch.equal(before, torch.get_rng_state())
    transform = models.get_model_weights(name).DEFAULT.transforms()
    with torch.inference_mode():
        pixels = torch.stack([transform(image) for image in pictures()])
        expected = create_feature_extractor(model, {NODES[name]: "features"})(pixels)["features"]
    found = encoder.images(pictures(), normalize=False)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert encoder.width == expected.shape[1] and expected.std() > 0.01
    assert (encoder.scale, encoder.bias) == (1.0, 0.0)
    assert torch.allclose(encoder.images(pictures()).norm(dim=-1), torch.ones(2), atol=1e-5)


def test_a_last_layer_that_is_a_convolution_is_pooled(tmp_path):
    from torchvision import models

    model, path = saved(tmp_path, "squeezenet1_1")
    transform = models.SqueezeNet1_1_Weights.DEFAULT.transforms()
    with torch.inference_mode():
        expected = model.features(torch.stack([transform(image) for image in pictures()])).mean((2, 3))
    found = opened("torchvision:squeezenet1_1", path).images(pictures(), normalize=False)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_timm(tmp_path):
    """Against timm's own features before the logits, with a head of three classes."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model("tf_efficientnet_lite0", num_classes=3).eval()
    save_file(model.state_dict(), tmp_path / "lite.safetensors")
    encoder = opened("timm:tf_efficientnet_lite0", tmp_path / "lite.safetensors")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with torch.inference_mode():
        maps = model.forward_features(torch.stack([transform(image) for image in pictures()]))
        expected = model.forward_head(maps, pre_logits=True)
    torch.testing.assert_close(encoder.images(pictures(), normalize=False), expected)
    assert encoder.width == 1280 and "crop 224" in encoder.preprocessing()


def test_old_and_converted_files_load(tmp_path):
    """DenseNet's old names, BatchNorm without counters, and safetensors without versions of layers."""
    model, path = saved(tmp_path, "densenet121")
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)\.", r"\1.\2.", key): value
        for key, value in model.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    expected = opened("torchvision:densenet121", path).images(pictures())
    torch.save(old, tmp_path / "old.pth")
    torch.testing.assert_close(opened("torchvision:densenet121", tmp_path / "old.pth").images(pictures()), expected)
    model, path = saved(tmp_path, "mnasnet0_5")
    save_file(model.state_dict(), tmp_path / "mnasnet.safetensors")
    expected = opened("torchvision:mnasnet0_5", path).images(pictures())
    converted = opened("torchvision:mnasnet0_5", tmp_path / "mnasnet.safetensors")
    torch.testing.assert_close(converted.images(pictures()), expected)


def test_inception_and_googlenet_normalise_as_their_published_weights_expect(tmp_path):
    """torchvision sets transform_input with weights; the files of a model without auxiliary heads are read too."""
    from torchvision import models

    model, _ = saved(tmp_path, "googlenet", init_weights=False)
    model.transform_input, model.fc, model.aux1, model.aux2 = True, torch.nn.Identity(), None, None
    state = model.state_dict() | {"fc.weight": torch.zeros(4, 1024), "fc.bias": torch.zeros(4)}
    torch.save(state, tmp_path / "googlenet.pth")
    transform = models.GoogLeNet_Weights.DEFAULT.transforms()
    with torch.inference_mode():
        expected = model(torch.stack([transform(image) for image in pictures()]))
    found = opened("torchvision:googlenet", tmp_path / "googlenet.pth").images(pictures(), normalize=False)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_transform_is_that_of_the_file(tmp_path):
    """By the file's name, else the default. tests/weights/test_encoders.py finds it by the hash."""
    from torchvision import models

    table = models.ResNet50_Weights
    (tmp_path / "mine.pth").write_bytes(b"1")
    (tmp_path / "resnet50-0676ba61.pth").write_bytes(b"2")
    assert classifiers._published("resnet50", tmp_path / "mine.pth") is table.DEFAULT is table.IMAGENET1K_V2
    assert classifiers._published("resnet50", tmp_path / "resnet50-0676ba61.pth") is table.IMAGENET1K_V1
    text = Encoder("torchvision:resnet50", str(tmp_path / "resnet50-0676ba61.pth"), needs_text=False).preprocessing()
    assert "ResNet50_Weights.IMAGENET1K_V1 (resize 256, crop 224, bilinear)" in text


def refused(model, path=None, **more):
    with pytest.raises(UsageError) as caught:
        Encoder(model, None if path is None else str(path), **{"needs_text": False, **more}).load("cpu", "float32")
    return str(caught.value)


def test_refused_names_and_weights(tmp_path):
    _, path = saved(tmp_path, "resnet18")
    text = refused("torchvision:resnet18")
    assert "`pretrained` is not set" in text and "resnet18-f37072fd.pth" in text and "nothing is downloaded" in text
    assert "laion2b, which is not a file" in refused("torchvision:resnet18", "laion2b")
    assert "hf download timm/resnet18" in refused("timm:resnet18")
    assert "Did you mean 'resnet18'" in refused("torchvision:resnet8", path)
    assert "Did you mean 'resnet18'" in refused("timm:resnt18", path)
    text = refused("torchvision:resnet34", path)
    assert str(path) in text and "lacks layer1.2.conv1.weight" in text and "more" in text
    text = refused("torchvision:resnet50", path)
    assert "layer1.0.conv1.weight is [64, 64, 3, 3] instead of [64, 64, 1, 1]" in text
    torch.save({"weights": {}, "epoch": 3}, path)
    assert "has tensors that the model does not have: weights, epoch" in refused("torchvision:resnet18", path)
    for data in (b"", b"not a checkpoint", b"hello"):
        path.write_bytes(data)
        text = refused("torchvision:resnet18", path)
        assert "could not be read as weights: " in text and "weights_only" not in text and not text.endswith(": ")
    for content in ({"state_dict": 5}, [1, 2]):
        torch.save(content, path)
        assert f"has a {'int' if isinstance(content, dict) else 'list'} instead of a state dict" in refused(
            "torchvision:resnet18", path
        )
    torch.save({1: torch.ones(2)}, path)
    assert "its key 1 is not the name of a tensor" in refused("torchvision:resnet18", path)


class Command:
    """Unpickled without restrictions, it would run a command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


def test_pickled_code_is_not_run_and_its_loading_is_not_advised(tmp_path):
    path, mark = tmp_path / "weights.pth", tmp_path / "mark"
    for content in (torch.nn.Linear(1, 1), {"a": Command(mark)}):
        torch.save(content, path)
        text = refused("torchvision:resnet18", path)
        assert "it contains pickled Python objects" in text and "torch.save(model.state_dict(), PATH)" in text
        assert "weights_only" not in text and not mark.exists()


def test_scorers_of_texts_refuse_it(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(b"")
    for name in ("clip", "siglip"):
        with pytest.raises(UsageError, match="torchvision:resnet18 encodes images only"):
            make_scorer(name, {"model": "torchvision:resnet18", "pretrained": str(path)})


def test_personalization(tmp_path):
    """The cosine to the mean of the liked images' unit features."""
    import io

    from torchvision import models

    from prefkit.types import Candidate

    model, path = saved(tmp_path, "resnet18")
    model.fc = torch.nn.Identity()
    first, second = pictures()
    first.save(tmp_path / "a.png")
    second.save(tmp_path / "b.png")
    (tmp_path / "h.csv").write_text("user,image\nann,a.png\nann,b.png\n")
    options = {"history": str(tmp_path / "h.csv"), "model": "torchvision:resnet18"}
    with pytest.raises(UsageError, match="which is not a file"):
        make_scorer("personalization", options)  # the default `pretrained` belongs to a CLIP
    scorer = make_scorer("personalization", {**options, "pretrained": str(path)})
    spec = scorer.spec()
    assert (
        "ResNet18_Weights.IMAGENET1K_V1" in spec.preprocessing and spec.weights == "torchvision:resnet18 resnet18.pth"
    )
    scorer.load("cpu", "float32")
    new = Image.new("RGB", (64, 64), (250, 120, 20))
    data = io.BytesIO()
    new.save(data, "PNG")
    (score,) = scorer.score([Candidate("x", "r", 0, 0, image=data.getvalue(), extra={"user": "ann"})])
    transform = models.ResNet18_Weights.DEFAULT.transforms()
    with torch.inference_mode():
        unit = torch.nn.functional.normalize(model(torch.stack([transform(i) for i in (first, second, new)])).double())
    mean = unit[:2].mean(0)
    assert score.value == pytest.approx(float(unit[2] @ mean / mean.norm()), abs=1e-5) and score.value < 0.9999
