"""The pixels that published scorers see, against an independent re-implementation in Pillow and NumPy.

OpenAI's transform (aesthetic, ImageReward): in the image's own mode the shorter side goes to 224 (bicubic), a centre crop
begins at int(round((w - 224) / 2.0)), and then the image becomes RGB. transformers' processor floors instead of rounding.
"""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from prefkit.score.core import decode, make_scorer, score_batch
from prefkit.score.embed.networks import openai_transform
from prefkit.types import Candidate

SIDE, MEAN, STD = 224, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def published(image: Image.Image, side: int = SIDE) -> np.ndarray:
    """[3, side, side] float64, written from the description above."""
    width, height = image.size
    if width <= height:
        size = (side, int(side * height / width))
    else:
        size = (int(side * width / height), side)
    small = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (round((edge - side) / 2.0) for edge in small.size)
    seen = small.crop((left, top, left + side, top + side)).convert("RGB")
    return ((np.asarray(seen, np.float64) / 255 - MEAN) / STD).transpose(2, 0, 1)


def noise(width: int, height: int) -> Image.Image:
    rough = np.random.default_rng(width * height).integers(0, 256, (height // 4, width // 4, 3), np.uint8)
    return Image.fromarray(rough).resize((width, height), Image.Resampling.NEAREST)


def in_mode(mode: str, width: int, height: int) -> Image.Image:
    return noise(width, height).quantize(16) if mode == "P" else noise(width, height).convert(mode)


def candidate(image: Image.Image, kind: str = "PNG", **options: object) -> Candidate:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Candidate("x", "r", 0, 0, prompt="a hat", image=buffer.getvalue())


@pytest.mark.parametrize("size", [(640, 427), (427, 640), (512, 512), (500, 333), (227, 601)])
@pytest.mark.parametrize("mode", ["RGB", "P", "L", "1"])
def test_openais_transform(mode: str, size: tuple[int, int]):
    image = in_mode(mode, *size)
    seen = openai_transform(SIDE)(candidate(image).native())
    assert np.abs(seen.numpy() - published(image)).max() < 1e-5


def test_a_floored_crop_would_be_one_column_off():
    """At 640 x 427 the resized image has 335 columns, and (335 - 224) / 2 is 55.5."""
    image = noise(640, 427)
    small = image.resize((335, 224), Image.Resampling.BICUBIC)
    floored = ((np.asarray(small.crop((55, 0, 279, 224)), np.float64) / 255 - MEAN) / STD).transpose(2, 0, 1)
    assert np.abs(floored - published(image)).max() > 0.1


class Embedded:
    """Stands in for the network: what enters it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, scorer: object) -> None:
        self.pixels: list[torch.Tensor] = []
        model = scorer.encoder.network.inner.model  # type: ignore[attr-defined]
        inner = model.get_image_features

        def keep(pixel_values: torch.Tensor) -> object:
            self.pixels += list(pixel_values)
            return inner(pixel_values=pixel_values)

        monkeypatch.setattr(model, "get_image_features", keep)


@pytest.mark.parametrize("ahead", [False, True])
def test_aesthetic_sees_them(clip, tmp_path, monkeypatch, ahead: bool):
    from safetensors.torch import save_file

    widths = {"0": (24, 1024), "2": (1024, 128), "4": (128, 64), "6": (64, 16), "7": (16, 1)}
    state = {f"layers.{at}.weight": torch.ones(b, a) for at, (a, b) in widths.items()}
    save_file(
        state | {f"layers.{at}.bias": torch.ones(b) for at, (_, b) in widths.items()}, tmp_path / "model.safetensors"
    )
    scorer = make_scorer("aesthetic", {"head": str(tmp_path), "model": str(clip)})
    scorer.load("cpu", "float32")
    side = scorer.encoder.network.inner.model.config.vision_config.image_size
    embedded = Embedded(monkeypatch, scorer)
    # the resized long side minus `side` is 3 mod 4 here, where rounding and flooring differ
    pictures = [noise(2 * side + 6, 2 * side), in_mode("P", 2 * side + 6, 2 * side), in_mode("L", 100, 80)]
    batch = [candidate(image) for image in pictures]
    scores = score_batch(scorer, decode(batch) if ahead else batch)
    assert all(score.value is not None for score in scores)
    for seen, image in zip(embedded.pixels, pictures, strict=True):
        assert np.abs(seen.numpy() - published(image, side)).max() < 1e-5


def test_a_transparent_palette_is_composited_before_it_is_resized():
    image = in_mode("P", 64, 48)
    hidden = candidate(image, transparency=image.getpixel((0, 0)))
    assert hidden.native().mode == "RGB" and hidden.native().tobytes() == hidden.pil().tobytes()
    assert candidate(image).native().mode == "P"
