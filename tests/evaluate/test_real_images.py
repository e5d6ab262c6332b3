"""The folder of real images: what is read, what is cached, and each error names its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prefkit import images
from prefkit.config import Eval, Generate, Recipe, compatibility
from prefkit.errors import UsageError
from prefkit.evaluate.real_images import real_embeddings, real_files

CFG = Eval(encoder="tiny", batch_size=2, device="cpu")


class Counting:
    """An encoder whose embedding is the mean colour and size; counts the images that it encodes."""

    shown = "counting"

    def __init__(self, revision: str = "1") -> None:
        self.encoded, self._revision = 0, revision

    def weights(self) -> str:
        return "counting"

    def revision(self) -> str:
        return self._revision

    def preprocessing(self) -> str:
        return "none"

    def key(self, device: str, dtype: str) -> tuple[str, ...]:
        return ("counting", self._revision, device, dtype)

    def load(self, device: str, dtype: str) -> None:
        assert (device, dtype) == ("cpu", "float32")

    def images(self, batch, normalize):
        import torch

        assert not normalize and len(batch) <= 2
        self.encoded += len(batch)
        return torch.tensor([[*np.asarray(image).mean(axis=(0, 1)), *image.size] for image in batch]).float()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two levels, four sizes, four formats, and a file that is no image."""
    root = tmp_path / "real"
    (root / "b" / "c").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in {"z.png": (9, 7), "b/a.jpg": (20, 30), "b/c/x.webp": (5, 40), "b/c/y.bmp": (8, 8)}.items():
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(root / name)
    (root / "notes.csv").write_text("a\n")
    return root


def read(folder: Path, cache: Path, encoder: Counting):
    return real_embeddings("held", Eval(encoder="tiny", real=str(folder), batch_size=2, device="cpu"), encoder, cache)


def test_every_image_is_encoded_once_and_as_it_is_shown(folder, tmp_path, capsys):
    encoder = Counting()
    rows, record = read(folder, tmp_path / "cache", encoder)
    paths = [folder / name for name in ("b/a.jpg", "b/c/x.webp", "b/c/y.bmp", "z.png")]
    shown = [images.rgb(path) for path in paths]
    expected = [[*np.asarray(image).mean(axis=(0, 1)), *image.size] for image in shown]
    np.testing.assert_allclose(rows, expected, rtol=1e-6)
    assert encoder.encoded == record["images"] == 4 and record["encoder"] == "counting"
    assert "1 file was skipped: 1 .csv" in capsys.readouterr().err
    again, second = read(folder, tmp_path / "cache", encoder)
    assert encoder.encoded == 4 and second == record
    np.testing.assert_array_equal(again, rows)


def test_the_cache_knows_the_content_and_the_encoder(folder, tmp_path):
    encoder, cache = Counting(), tmp_path / "cache"
    rows, record = read(folder, cache, encoder)
    (folder / "z.png").rename(folder / "renamed.png")
    assert read(folder, cache, encoder)[1] == record and encoder.encoded == 4
    other = Counting("2")
    read(folder, cache, other)
    assert other.encoded == 4
    Image.new("RGB", (3, 3)).save(folder / "renamed.png")
    changed, second = read(folder, cache, encoder)
    assert encoder.encoded == 8 and second["content"] != record["content"] and not np.array_equal(changed, rows)


def test_a_damaged_cache_is_made_again(folder, tmp_path, capsys):
    encoder, cache = Counting(), tmp_path / "cache"
    rows, _ = read(folder, cache, encoder)
    (path,) = cache.iterdir()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    np.testing.assert_array_equal(read(folder, cache, encoder)[0], rows)
    assert encoder.encoded == 8 and f"{path.name}.damaged" in capsys.readouterr().err


def test_folders_that_hold_no_set(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.heic").write_text("x")
    (tmp_path / "one").mkdir()
    Image.new("RGB", (3, 3)).save(tmp_path / "one" / "a.png")
    for name, message in {
        "missing": "eval.held.real: .*missing is not a folder. Give a folder of images",
        "real/z.png": "z.png is not a folder",
        "empty": "empty holds no images, and a distance between sets needs at least two",
        "texts": "texts holds no images.* 1 .heic .an image format that is not read; convert it",
        "one": "one holds one image",
    }.items():
        with pytest.raises(UsageError, match=message):
            real_files("held", Eval(encoder="tiny", real=str(tmp_path / name)))


@pytest.mark.parametrize("make", ["text", "cut", "folder link"])
def test_a_file_that_cannot_be_read_is_named(folder, tmp_path, make):
    path = folder / "b" / "broken.png"
    if make == "folder link":
        path.symlink_to(folder / "missing.png")
    else:
        whole = (folder / "z.png").read_bytes()
        path.write_bytes(b"not an image" if make == "text" else whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=r"eval.held.real: .*b/broken.png could not be read \(.+\). Replace or remove"):
        read(folder, tmp_path / "cache", Counting())
    assert not (tmp_path / "cache").exists()


def test_real_needs_an_encoder():
    recipe = Recipe(generate={"own": Generate()}, eval={"held": Eval(real="photos")})
    with pytest.raises(UsageError, match="eval.held.real is photos, but encoder is not set"):
        compatibility.check("eval", "held", recipe)


def test_weights_of_no_encoder_are_refused():
    recipe = Recipe(generate={"own": Generate()}, eval={"held": Eval(encoder_pretrained="net.pth")})
    with pytest.raises(UsageError, match="eval.held.encoder_pretrained is net.pth, but encoder is not set"):
        compatibility.check("eval", "held", recipe)
