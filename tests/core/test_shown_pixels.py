"""Pixels are those that a viewer shows: no hidden colours, profiles converted, deep values scaled."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from prefkit import images

sys.path.insert(0, str(Path(__file__).parent))
from profiles import ADOBE, SRGB, cmyk_profile, grey_profile, rgb_profile, srgb_of

WHITE, RED = (255, 255, 255), (200, 30, 40)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, depth: int, colour: int, row: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of one row, with samples as Pillow does not write them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0)
    body = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in body)


def pixels(data: bytes) -> list[tuple[int, ...]]:
    return [tuple(int(v) for v in pixel) for pixel in np.asarray(images.rgb(data)).reshape(-1, 3)]


def cut_out() -> Image.Image:
    """Left opaque red, right transparent over green."""
    return Image.fromarray(np.array([[[*RED, 255], [0, 255, 0, 0]]], np.uint8))


def gif_of(indices: list[int]) -> Image.Image:
    image = Image.new("P", (len(indices), 1))
    image.putpalette([*RED, 0, 255, 0])
    image.putdata(indices)
    return image


# -- transparency -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind, options", [("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})])
def test_what_is_transparent_is_white(kind: str, options: dict):
    data = encoded(cut_out(), kind, **options)
    assert Image.open(io.BytesIO(data)).convert("RGB").getpixel((1, 0)) == (0, 255, 0)  # hidden there
    assert pixels(data) == [RED, WHITE]
    assert images.traits(data) == {"transparent"}


GREY_CASES = {
    "LA": (encoded(Image.merge("LA", (Image.new("L", (1, 1), 40), Image.new("L", (1, 1), 0)))), [WHITE]),
    "L, 1 bit": (png(2, 1, 0, b"\x40", (b"tRNS", b"\0\1")), [(0, 0, 0), WHITE]),
    "L, 2 bits": (png(4, 2, 0, b"\x1b", (b"tRNS", b"\0\1")), [(0, 0, 0), WHITE, (170,) * 3, WHITE]),
    "L, 4 bits": (png(4, 4, 0, b"\x01\x2f", (b"tRNS", b"\0\2")), [(0, 0, 0), (17,) * 3, WHITE, WHITE]),
    "L, 8 bits": (png(3, 8, 0, b"\x00\x05\x06", (b"tRNS", b"\0\5")), [(0, 0, 0), WHITE, (6,) * 3]),
    "L, 16 bits": (
        png(3, 16, 0, struct.pack(">3H", 257, 300, 771), (b"tRNS", struct.pack(">H", 300))),
        [(1,) * 3, WHITE, (3,) * 3],
    ),
    "LA, 16 bits": (png(2, 16, 4, struct.pack(">4H", 0x1234, 0xFFFF, 0x8000, 0)), [(0x12,) * 3, WHITE]),
}
COLOUR_CASES = {
    "RGB, 8 bits": (
        png(2, 8, 2, bytes([1, 2, 3, 4, 5, 6]), (b"tRNS", struct.pack(">3H", 1, 2, 3))),
        [WHITE, (4, 5, 6)],
    ),
    "RGB, 16 bits": (
        png(2, 16, 2, struct.pack(">6H", *[0x1234] * 3, *[0x4321] * 3), (b"tRNS", struct.pack(">3H", *[0x1234] * 3))),
        [WHITE, (0x43,) * 3],
    ),
    "palette": (
        png(2, 8, 3, b"\0\1", (b"PLTE", bytes([0, 255, 0, *RED])), (b"tRNS", b"\0")),
        [WHITE, RED],
    ),
    "GIF": (encoded(gif_of([0, 1]), "GIF", transparency=1), [RED, WHITE]),
}


@pytest.mark.parametrize("name", [*GREY_CASES, *COLOUR_CASES])
def test_every_way_to_be_transparent(name: str):
    data, wanted = (GREY_CASES | COLOUR_CASES)[name]
    assert pixels(data) == wanted
    assert "transparent" in images.traits(data) and images.shown(data) != data
    assert pixels(images.shown(data)) == wanted


def test_premultiplied_colours_are_divided_again():
    stored = Image.frombytes("RGBa", (1, 1), bytes([100, 15, 20, 128]))  # its numbers are already times 128 / 255
    buffer = io.BytesIO()
    grey = Image.frombytes("La", (1, 1), bytes([20, 128]))
    grey.convert("LA").save(buffer, "TIFF")
    assert abs(pixels(buffer.getvalue())[0][0] - round(20 + 255 * (1 - 128 / 255))) <= 1
    colours, alpha = images._split(stored, stored, "")
    assert np.allclose(np.asarray(colours)[0, 0], np.array([100, 15, 20]) * 255 / 128, atol=1)
    assert alpha is not None and alpha.getpixel((0, 0)) == 128


def test_half_of_an_opacity_is_half_of_white():
    data = encoded(Image.fromarray(np.array([[[0, 100, 200, 51]]], np.uint8)))
    assert pixels(data) == [(204, 224, 244)]  # 0.2 of the colour, 0.8 of white


def test_another_background():
    data = encoded(cut_out())
    images.Background.set("#102030")
    try:
        assert pixels(data) == [RED, (16, 32, 48)]
        assert images.Background.rules() != f"{images.RULES} on #ffffff"
    finally:
        images.Background.set("white")


# -- colour profiles ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind, options", [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
def test_a_profile_is_converted_to_srgb(kind: str, options: dict):
    grid = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    profile = rgb_profile(ADOBE, 563 / 256)
    data = encoded(Image.fromarray(grid), kind, icc_profile=profile, **options)
    wanted = srgb_of(grid, ADOBE, 563 / 256)
    assert np.abs(wanted - grid).max() > 30  # the profile matters
    assert np.abs(np.asarray(images.rgb(data), float) - wanted).max() <= 2
    assert images.traits(data) == {"profile"}
    assert np.array_equal(np.asarray(images.rgb(images.shown(data))), np.asarray(images.rgb(data)))


def test_srgb_profiles_leave_every_pixel_as_stored():
    grid = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encoded(Image.fromarray(grid), icc_profile=own)
    assert np.array_equal(np.asarray(images.rgb(data)), grid)
    assert not images.traits(data) and images.shown(data) is data


def test_a_profile_and_transparency():
    image = cut_out()
    data = encoded(image, icc_profile=rgb_profile(ADOBE, 2.2))
    red, white = pixels(data)
    assert white == WHITE and np.abs(srgb_of(np.array(RED), ADOBE, 2.2) - red).max() <= 2


def test_grey_profiles():
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    grey = encoded(Image.fromarray(ramp), icc_profile=grey_profile(1.0))
    wanted = srgb_of(np.repeat(ramp[..., None], 3, 2), SRGB, 1.0)
    assert np.abs(np.asarray(images.rgb(grey), float) - wanted).max() <= 2
    coloured = encoded(Image.fromarray(ramp), "JPEG", quality=100, icc_profile=rgb_profile(SRGB, 1.0))  # a grey JPEG
    assert np.abs(np.asarray(images.rgb(coloured), float) - wanted).mean() < 2


def test_a_cmyk_profile():
    inks = Image.fromarray(np.array([[[0, 0, 0, 0], [255, 0, 0, 0]]], np.uint8), "CMYK")
    data = encoded(inks, "TIFF", icc_profile=cmyk_profile())
    white, cyan = pixels(data)
    assert min(white) >= 253 and np.ptp(cyan) <= 3 and abs(cyan[0] - 119) <= 4  # L* 50 is a grey of 119
    assert pixels(encoded(inks, "TIFF"))[1] == (0, 255, 255)  # without a profile


@pytest.mark.parametrize("damage", ["cut", "noise", "other space"])
def test_a_broken_profile_is_ignored(damage: str):
    whole = rgb_profile(ADOBE, 2.2)
    broken = {"cut": whole[:200], "noise": b"\x07" * 300, "other space": cmyk_profile()}[damage]
    grid = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    data = encoded(Image.fromarray(grid), icc_profile=broken)
    assert np.array_equal(np.asarray(images.rgb(data)), grid)
    assert images.traits(data) == {"broken_profile"}


# -- more than 8 bits ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "values, wanted",
    [
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[-0.5, 100.0, 255.0]], np.float32), [0, 100, 255]),
        (np.array([[0.0, 25700.0, 65535.0]], np.float32), [0, 100, 255]),
        (np.array([[0, 128, 255]], np.int32), [0, 128, 255]),
        (np.array([[0, 25700, 65535]], np.int32), [0, 100, 255]),
        (np.array([[0, 2**30, 2**31 - 1]], np.int32), [0, 127, 255]),
        (np.array([[0, 257, 65535]], np.uint16), [0, 1, 255]),
    ],
)
def test_deep_values_are_scaled(values: np.ndarray, wanted: list[int]):
    data = encoded(Image.fromarray(values), "TIFF")
    assert [pixel[0] for pixel in pixels(data)] == wanted
    assert images.traits(data) == {"deep"}
    assert pixels(images.shown(data)) == pixels(data) and not images.traits(images.shown(data))


def test_a_float_that_is_no_number_is_damage():
    data = encoded(Image.fromarray(np.array([[0.0, np.nan]], np.float32)), "TIFF")
    with pytest.raises(ValueError, match="not finite"):
        images.rgb(data)


# -- what stays, and what is handed on ----------------------------------------------------------------------------
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "CMYK", "RGBA"])
def test_images_that_hide_nothing_are_what_pillow_makes_of_them(mode: str):
    grid = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    plain = Image.fromarray(grid)
    plain = plain.quantize(16) if mode == "P" else plain.convert(mode)
    data = encoded(plain, "TIFF" if mode == "CMYK" else "PNG")
    with Image.open(io.BytesIO(data)) as opened:
        assert images.rgb(data).tobytes() == opened.convert("RGB").tobytes()
    assert not images.traits(data)


def test_bytes_are_handed_on_where_they_say_what_is_seen():
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 16, 3), np.uint8))
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    plain, turned = encoded(photo, "JPEG"), encoded(photo, "JPEG", exif=exif)
    moving = encoded(photo, "GIF", save_all=True, append_images=[photo.rotate(180)])
    assert images.shown(plain) is plain and images.shown(b"no image") == b"no image"
    assert images.traits(turned) == {"turned"} and images.traits(moving) == {"animated"}
    for odd in (turned, moving):
        assert images.shown(odd) != odd and images.rgb(images.shown(odd)).tobytes() == images.rgb(odd).tobytes()
        assert not images.traits(images.shown(odd))
