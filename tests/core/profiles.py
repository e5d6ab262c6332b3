"""Small colour profiles (ICC version 2), written by hand from the specification."""

from __future__ import annotations

import struct

import numpy as np

#: columns: red, green and blue in XYZ under D50
ADOBE = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
D50 = (0.9642, 1.0, 0.8249)


def rgb_profile(matrix: np.ndarray, gamma: float) -> bytes:
    tags = {f"{name}XYZ": _xyz(column) for name, column in zip("rgb", matrix.T, strict=True)}
    return _profile(b"RGB ", b"XYZ ", {**tags, **{f"{name}TRC": _curve(gamma) for name in "rgb"}, "wtpt": _xyz(D50)})


def grey_profile(gamma: float) -> bytes:
    return _profile(b"GRAY", b"XYZ ", {"kTRC": _curve(gamma), "wtpt": _xyz(D50)})


def cmyk_profile() -> bytes:
    """Lightness 100 without ink, 50 with cyan alone, 0 with any other ink; no colour."""
    ramp = bytes(range(256))
    corners = []
    for inks in np.ndindex(2, 2, 2, 2):
        light = 255 if not any(inks) else 128 if inks == (1, 0, 0, 0) else 0
        corners += [light, 128, 128]
    identity = b"".join(struct.pack(">i", v) for v in np.eye(3, dtype=int).ravel() * 65536)
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + ramp * 4 + bytes(corners) + ramp * 3
    return _profile(b"CMYK", b"Lab ", {"A2B0": lut, "wtpt": _xyz(D50)}, kind=b"prtr")


def srgb_of(pixels: np.ndarray, matrix: np.ndarray, gamma: float) -> np.ndarray:
    """uint8 [..., 3] in the profile's space -> float64 levels of sRGB, by the textbook's formulas."""
    linear = (pixels / 255.0) ** gamma @ matrix.T @ np.linalg.inv(SRGB).T
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def _xyz(values: object) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(float(v) * 65536)) for v in values)


def _curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IHH", 1, round(gamma * 256), 0)


def _profile(space: bytes, pcs: bytes, tags: dict[str, bytes], kind: bytes = b"mntr") -> bytes:
    start, table, data = 128 + 4 + 12 * len(tags), b"", b""
    for name, value in tags.items():
        table += name.encode() + struct.pack(">II", start + len(data), len(value))
        data += value + b"\0" * (-len(value) % 4)
    date = struct.pack(">6H", 2020, 1, 1, 0, 0, 0)
    light = _xyz(D50)[8:]
    head = b"\0" * 4 + struct.pack(">I", 0x02100000) + kind + space + pcs + date + b"acsp" + b"\0" * 28 + light
    head = (struct.pack(">I", start + len(data)) + head).ljust(128, b"\0")
    return head + struct.pack(">I", len(tags)) + table + data
