"""The scorer `classify` on a tiny ViT of transformers and a torchvision network, both of random weights."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from prefkit.errors import UsageError
from prefkit.score.core import make_scorer
from prefkit.types import Candidate

NAMES = ["tabby, tabby cat", "Egyptian cat", "crane", "espresso", "Crane"]
NETWORK = "shufflenet_v2_x0_5"


def image(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (50, 70, 3), np.uint8))


def candidate(seed: int, **extra) -> Candidate:
    buffer = io.BytesIO()
    image(seed).save(buffer, "PNG")
    return Candidate(f"c{seed}", "r", seed, 0, "a cat", buffer.getvalue(), extra=extra)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """(folder, model, processor)"""
    from transformers import ViTConfig, ViTForImageClassification
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    folder = tmp_path_factory.mktemp("vit")
    size = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ViTConfig(image_size=32, patch_size=8, id2label=dict(enumerate(NAMES)), initializer_range=0.5, **size)
    torch.manual_seed(0)
    model = ViTForImageClassification(config).eval()
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    for part in (model, processor):
        part.save_pretrained(folder)
    return folder, model, processor


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Weight files of NETWORK with 1000 and with 3 classes."""
    from torchvision import models

    torch.manual_seed(0)
    paths = {}
    for classes in (1000, 3):
        paths[classes] = tmp_path_factory.mktemp("net") / f"{classes}.pth"
        torch.save(models.get_model(NETWORK, num_classes=classes).state_dict(), paths[classes])
    return paths


def scores(seeds=(0, 1), extra=None, **options):
    scorer = make_scorer("classify", options)
    scorer.load("cpu", "float32")
    return scorer.score([candidate(seed, **(extra or {})) for seed in seeds])


def expected(vit, seed):
    _, model, processor = vit
    with torch.inference_mode():
        return model(**processor(images=image(seed), return_tensors="pt")).logits[0].softmax(0).numpy()


@pytest.mark.parametrize(
    "label, members",
    [
        ("Egyptian cat", [1]),
        ("egyptian  CAT", [1]),
        ("tabby cat", [0]),
        ("tabby, tabby cat", [0]),
        ("crane", [2, 4]),
        (["tabby", "Egyptian cat", "tabby cat"], [0, 1]),
        ("{animal}", [3]),
    ],
)
def test_the_value_is_the_probability_of_the_classes(vit, label, members):
    found = scores(model=str(vit[0]), label=label, extra={"animal": "espresso"})
    probabilities = [expected(vit, seed) for seed in (0, 1)]
    assert [s.value for s in found] == pytest.approx([p[members].sum() for p in probabilities], abs=1e-5)
    assert [s.text for s in found] == [NAMES[p.argmax()] for p in probabilities]
    assert probabilities[0].max() > 0.3 and abs(probabilities[0] - probabilities[1]).max() > 0.01  # not a flat network


def test_a_column_is_required_and_an_unknown_class_in_it_fails_alone(vit):
    scorer = make_scorer("classify", {"model": str(vit[0]), "label": "{animal}"})
    assert scorer.requires == {"image", "animal"}
    scorer.load("cpu", "float32")
    good, bad = scorer.score([candidate(0, animal="Tabby"), candidate(1, animal="tubby")])
    assert good.value > 0 and bad.value is None and "has no class 'tubby'. Similar: 'tabby', 'tabby cat'." in bad.error


def test_an_unknown_class_of_the_recipe_is_an_error(vit):
    with pytest.raises(UsageError, match=r"has no class 'egyptian cta'. Similar: 'egyptian cat'"):
        scores(model=str(vit[0]), label=["tabby", "egyptian cta"])


def test_a_network_of_torchvision_has_the_published_names(networks):
    from torchvision import models

    weights = models.get_model_weights(NETWORK).DEFAULT
    model = models.get_model(NETWORK)
    model.load_state_dict(torch.load(networks[1000], weights_only=True))
    with torch.inference_mode():
        row = model.eval()(weights.transforms()(image(0))[None])[0].softmax(0)
    index = weights.meta["categories"].index("Egyptian cat")
    (found,) = scores((0,), model=f"torchvision:{NETWORK}", pretrained=str(networks[1000]), label="Egyptian cat")
    assert found.value == pytest.approx(float(row[index]), rel=1e-4)
    assert found.text == weights.meta["categories"][int(row.argmax())]


def test_a_fine_tuned_head_needs_names(networks, tmp_path):
    options = {"model": f"torchvision:{NETWORK}", "pretrained": str(networks[3]), "label": "boot"}
    with pytest.raises(
        UsageError, match="has 3 classes, but the published list has 1000 class names. Set `classes` to"
    ):
        scores(**options)
    file = tmp_path / "names.txt"
    file.write_text("hat\nboot\n\n")
    with pytest.raises(UsageError, match="line 3 of .* is empty"):
        make_scorer("classify", options | {"classes": str(file)})
    file.write_text("hat\nboot\n")
    with pytest.raises(UsageError, match="has 3 classes, but .*names.txt has 2 class names"):
        scores(**options, classes=str(file))
    file.write_text("hat\nboot\ncoat\n")
    values = [scores((0,), **options | {"label": name}, classes=str(file))[0].value for name in ("hat", "boot", "coat")]
    assert sum(values) == pytest.approx(1, abs=1e-6) and len(set(values)) == 3
    spec = make_scorer("classify", options | {"classes": str(file)}).spec()
    file.write_text("boot\nhat\ncoat\n")
    assert make_scorer("classify", options | {"classes": str(file)}).spec() != spec and spec.verified == ""


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "`model` is not set"),
        ({"model": "x"}, "`label` is not set"),
        ({"model": "torchvision:mobilenet_v9", "label": "cat"}, "no image classifier 'mobilenet_v9'"),
        ({"model": "torchvision:mobilenet_v2", "label": "cat"}, "`pretrained` is not set"),
        ({"model": "x", "label": "cat", "classes": "/no/such/file"}, "could not be read as UTF-8 text"),
    ],
)
def test_messages(options, message):
    with pytest.raises(UsageError, match=message):
        make_scorer("classify", options)


def test_a_list_of_names_may_have_a_byte_order_mark_and_not_be_empty(tmp_path):
    file = tmp_path / "names.txt"
    options = {"model": "x", "label": "hat", "classes": str(file)}
    file.write_text("hat\nboot\n", encoding="utf-8-sig")
    assert make_scorer("classify", options).given == ["hat", "boot"]
    file.write_text("")
    with pytest.raises(UsageError, match="names.txt is empty"):
        make_scorer("classify", options)


def test_a_network_that_returns_nan_has_no_score(networks, tmp_path):
    state = torch.load(networks[3], weights_only=True)
    state["fc.bias"][0] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    (tmp_path / "names.txt").write_text("hat\nboot\ncoat\n")
    options = {"pretrained": str(tmp_path / "nan.pth"), "classes": str(tmp_path / "names.txt"), "label": "boot"}
    (score,) = scores((0,), model=f"torchvision:{NETWORK}", **options)
    assert score.value is None or np.isnan(score.value)


def test_another_kind_of_model_is_refused(clip):
    with pytest.raises(UsageError, match="could not be loaded|lacks weights"):
        scores(model=str(clip), label="cat")


def test_it_passes_the_checks_of_every_scorer(vit, cli):
    code, out, err = cli("score", "--check", "classify", "--model", vit[0], "--label", "tabby")
    assert code == 0 and len(out.splitlines()) == 8 and "FAILED" not in out, out + err
