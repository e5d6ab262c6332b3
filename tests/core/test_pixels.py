"""A picture is looked at alike by everyone: upright, in 8 bits."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from prefkit import pixels
from prefkit.types import Candidate


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def half_red() -> Image.Image:
    image = Image.new("RGB", (32, 16), "white")
    image.paste("red", (0, 0, 16, 16))
    return image


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_photo_on_its_side_stands_up(turn: int):
    exif = Image.Exif()
    exif[pixels.ORIENTATION] = turn
    data = encoded(half_red(), "PNG", exif=exif)
    with Image.open(io.BytesIO(data)) as opened:
        wanted = ImageOps.exif_transpose(opened).convert("RGB")
    seen = pixels.rgb(data)
    assert seen.tobytes() == wanted.tobytes() and seen.size == wanted.size == pixels.size(data)
    assert seen.size == ((16, 32) if turn >= 5 else (32, 16))


def test_grey_of_16_bits_keeps_its_greys():
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    data = encoded(Image.fromarray(ramp))
    assert np.array_equal(np.asarray(pixels.rgb(data))[..., 0], (ramp // 257).astype(np.uint8))


def test_a_candidate_is_seen_so(tmp_path):
    exif = Image.Exif()
    exif[pixels.ORIENTATION] = 6
    data = encoded(half_red(), "JPEG", exif=exif, quality=95)
    (tmp_path / "a.jpg").write_bytes(data)
    held = Candidate(id="a", request_id="r", index=0, seed=0, prompt="", image=data)
    kept = Candidate(id="b", request_id="r", index=0, seed=0, prompt="", path=str(tmp_path / "a.jpg"))
    assert held.pil().size == kept.pil().size == (16, 32)
    red, green, blue = held.pil().getpixel((8, 4))
    assert red > 200 > 60 > max(green, blue)


def test_damage_is_told():
    with pytest.raises((OSError, ValueError, SyntaxError)):
        pixels.rgb(b"no image")
