"""The scorer `ocr` without the OCR packages: agreement of texts, choice of the package, results of rapidocr 3."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from prefkit.errors import UsageError
from prefkit.score.core import make_scorer
from prefkit.score.scorers import ocr
from prefkit.score.scorers.ocr import agreement, edits
from prefkit.types import Candidate


@pytest.mark.parametrize(
    "asked, read, value",
    [
        ("SALE", "Big sale!", 1.0),
        ("open now", "OPENNOW", 1.0),
        ("open", "opon", 0.75),
        ("a", "xyz", 0.0),
        ("ab", "", 0.0),
    ],
)
def test_agreement(asked, read, value):
    assert agreement(asked, read) == value


def ocr_package(folder, name, version, *files):
    """Put an installed package with these files on the path; the files' content is their name."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
    for file in files:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(file)


def test_ocr_says_what_to_install(monkeypatch):
    monkeypatch.setattr(ocr, "PACKAGES", ("no-such-reader", "nor-this-one"))
    scorer = make_scorer("ocr", {})
    for act in (scorer.spec, lambda: scorer.load("cpu", "float32")):
        with pytest.raises(UsageError, match="neither no-such-.* is installed. Run: pip install rapidocr onnxruntime"):
            act()


def test_ocr_reads_by_the_newer_package_and_its_spec_names_the_weights(tmp_path, monkeypatch):
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
        monkeypatch.syspath_prepend(str(folder))
    ocr_package(old, "old-reader", "1.4", "old/v4_det_infer.onnx")
    monkeypatch.setattr(ocr, "PACKAGES", ("new-reader", "old-reader"))
    assert make_scorer("ocr", {}).spec().weights == "old-reader 1.4: v4_det_infer"
    ocr_package(new, "new-reader", "3.10", "m/v6_rec_small.onnx", "m/v6_det_small.onnx", "m/config.yaml")
    spec = make_scorer("ocr", {}).spec()
    assert spec.weights == "new-reader 3.10: v6_det_small, v6_rec_small" and spec.verified == ""


FOUND = (("Big ", "SALE", "x"), (0.9, 0.6, 0.2))


@pytest.fixture
def rapidocr(monkeypatch, tmp_path):
    """A fake rapidocr 3 whose engine finds FOUND; the list of parameters that it gets."""
    given = []

    class Engine:
        def __init__(self, params):
            given.append(params)

        def __call__(self, image):
            found = FOUND if image.any() else (None, None)
            return SimpleNamespace(txts=found[0], scores=found[1])

    for name, content in (("onnxruntime", {}), ("rapidocr", {"RapidOCR": Engine})):
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(ocr, "PACKAGES", ("rapidocr",))
    monkeypatch.syspath_prepend(str(tmp_path))
    return given


def picture(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 20), colour).save(buffer, "PNG")
    return Candidate("c", "r", 0, 0, 'a sign "big sale"', buffer.getvalue())


def test_ocr_reads_the_result_of_rapidocr_3(rapidocr, tmp_path):
    names = ("a_det_small", "a_rec_small", "b_cls_mobile")
    ocr_package(tmp_path, "rapidocr", "3.10", *(f"models/{name}.onnx" for name in names))
    scorer = make_scorer("ocr", {})
    scorer.load("cpu", "float32")
    white, black = scorer.score([picture("white"), picture("black")])
    assert (white.value, white.text) == (1.0, "Big  SALE") and (black.value, black.text) == (0.0, "")
    paths = {kind: rapidocr[0][f"{kind}.model_path"] for kind in ("Det", "Rec", "Cls")}
    assert {kind: Path(path).stem for kind, path in paths.items()} == dict(zip(("Det", "Rec", "Cls"), names))


def test_ocr_does_not_let_rapidocr_download_a_missing_file(rapidocr, tmp_path):
    ocr_package(tmp_path, "rapidocr", "3.10", "models/a_det_small.onnx", "models/b_cls_mobile.onnx")
    with pytest.raises(UsageError, match=r"does not contain one ONNX file for rec. Run: pip install --force-reinstall"):
        make_scorer("ocr", {}).load("cpu", "float32")
    assert rapidocr == []


def test_text_is_asked_for_by_quotes_or_by_key():
    assert make_scorer("ocr", {"asked": "text"}).requires == {"image", "prompt", "text"}


def test_edits_against_a_plain_recursion():
    from functools import cache

    @cache
    def slow(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(slow(a[1:], b) + 1, slow(a, b[1:]) + 1, slow(a[1:], b[1:]) + (a[0] != b[0]))

    rng = np.random.default_rng(0)
    for _ in range(50):
        a, b = ("".join(rng.choice(list("abc"), rng.integers(0, 7))) for _ in range(2))
        assert edits(a, b) == slow(a, b)
