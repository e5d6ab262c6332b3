"""A picture is looked at alike by everyone: upright, in 8 bits."""

from __future__ import annotations

import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from prefkit import images
from prefkit.types import Candidate


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def half_red() -> Image.Image:
    image = Image.new("RGB", (32, 16), "white")
    image.paste("red", (0, 0, 16, 16))
    return image


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_a_photo_on_its_side_stands_up(turn: int, kind: str):
    exif = Image.Exif()
    exif[images.ORIENTATION] = turn
    data = encoded(half_red(), kind, exif=exif)
    with Image.open(io.BytesIO(data)) as opened:
        wanted = ImageOps.exif_transpose(opened).convert("RGB")
    seen = images.rgb(data)
    assert seen.tobytes() == wanted.tobytes() and seen.size == wanted.size == images.size(data)
    assert seen.size == ((16, 32) if turn >= 5 else (32, 16))


def test_grey_of_16_bits_keeps_its_greys():
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    data = encoded(Image.fromarray(ramp))
    assert np.array_equal(np.asarray(images.rgb(data))[..., 0], (ramp // 257).astype(np.uint8))


def test_a_candidate_is_seen_so(tmp_path):
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    data = encoded(half_red(), "JPEG", exif=exif, quality=95)
    (tmp_path / "a.jpg").write_bytes(data)
    held = Candidate(id="a", request_id="r", index=0, seed=0, prompt="", image=data)
    kept = Candidate(id="b", request_id="r", index=0, seed=0, prompt="", path=str(tmp_path / "a.jpg"))
    assert held.pil().size == kept.pil().size == (16, 32)
    red, green, blue = held.pil().getpixel((8, 4))
    assert red > 200 > 60 > max(green, blue)


def chunked(data: bytes, kind: bytes, said: bytes) -> bytes:
    """The PNG with a further chunk before its end."""
    chunk = struct.pack(">I", len(said)) + kind + said + struct.pack(">I", zlib.crc32(kind + said))
    return data[:-12] + chunk + data[-12:]


def test_a_png_that_says_it_after_its_pixels_stands_up_too():
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    data = chunked(encoded(half_red()), b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    assert images.size(data) == images.rgb(data).size == (16, 32)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("turn", [1, 6])
def test_exif_data_that_is_broken_breaks_no_image(turn: int):
    exif = Image.Exif()
    exif[images.ORIENTATION] = turn
    exif[0x011A] = 72  # a resolution: rewriting it where it is no number fails
    said = exif.tobytes()
    for place in range(6, len(said)):
        for value in (0, 2, 255):
            broken = said[:place] + bytes([value]) + said[place + 1 :]
            data = chunked(encoded(half_red()), b"eXIf", broken.removeprefix(b"Exif\0\0"))
            assert images.size(data) == images.rgb(data).size, (place, value)
    cut = chunked(encoded(half_red()), b"eXIf", said[6:16])
    assert images.size(cut) == images.rgb(cut).size == (32, 16)


def test_the_size_of_a_png_is_read_without_its_pixels():
    data = encoded(half_red())
    assert images.size(data[: data.index(b"IDAT") + 8]) == (32, 16)


def test_damage_is_told(monkeypatch):
    with pytest.raises((OSError, ValueError)):
        images.rgb(b"no image")

    def broken(*given):
        raise SyntaxError("broken PNG file")

    monkeypatch.setattr(Image.Image, "convert", broken)
    with pytest.raises(ValueError, match="broken PNG file"):
        images.rgb(encoded(half_red()))


#: check that bytes are whole; send bytes as they are; read an own file
LOOK_ELSEWHERE = {
    "hub/importing/image_check.py",
    "score/judge/server.py",
    "score/check.py",
    "tiny/art.py",
    "images.py",
}


def test_nobody_opens_pictures_in_a_way_of_their_own():
    folder = Path(images.__file__).parent
    opening = re.compile(r"\b(Image|pil|PIL)\.open\(")
    assert {
        p.relative_to(folder).as_posix() for p in folder.rglob("*.py") if opening.search(p.read_text())
    } == LOOK_ELSEWHERE


def test_a_scorer_is_fitted_on_what_it_will_see():
    from prefkit.fit.preferences import Preferences

    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    data = encoded(half_red(), "PNG", exif=exif)
    assert Preferences([], lambda name: data, "").open("x").tobytes() == images.rgb(data).tobytes()
