"""The vocabulary of the synthetic wardrobe: items, colours, backgrounds, patterns, and scenes composed from these.

This module imports only the standard library, so that prompts can be written and parsed without loading an image.
"""

from __future__ import annotations

from dataclasses import dataclass

#: item -> part of an outfit
ITEMS: dict[str, str] = {
    "t-shirt": "top",
    "coat": "top",
    "dress": "dress",
    "tank top": "top",
    "kimono": "top",
    "lab coat": "top",
    "jeans": "bottom",
    "shorts": "bottom",
    "running shoe": "shoes",
    "hiking boot": "shoes",
    "high heel": "shoes",
    "sandal": "shoes",
    "boot": "shoes",
    "socks": "shoes",
    "backpack": "bag",
    "handbag": "bag",
    "clutch": "bag",
    "briefcase": "bag",
    "cap": "hat",
    "top hat": "hat",
    "sun hat": "hat",
    "sunglasses": "accessory",
    "umbrella": "accessory",
    "watch": "accessory",
}
PLURAL = frozenset({"jeans", "shorts", "socks", "sunglasses"})  # without an article in prompts

#: item colour -> sRGB of the recoloured main cloth
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (218, 30, 40),
    "orange": (246, 128, 20),
    "yellow": (250, 212, 40),
    "green": (40, 158, 70),
    "blue": (35, 95, 225),
    "purple": (128, 50, 185),
    "pink": (248, 125, 180),
    "brown": (120, 72, 38),
    "black": (36, 36, 40),
    "white": (244, 244, 244),
}
#: background -> sRGB, each lighter than a black item and darker than a white item
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "cream": (247, 238, 196),
    "grey": (166, 168, 170),
    "sky": (160, 206, 246),
    "mint": (166, 228, 196),
    "lavender": (196, 180, 240),
    "sand": (214, 184, 134),
    "rose": (244, 182, 190),
    "navy": (62, 82, 132),
}
PATTERNS = ("plain", "striped", "dotted", "checked")


@dataclass(frozen=True)
class Scene:
    """The complete content of a wardrobe image: one item in one colour on one background."""

    item: str
    colour: str
    background: str
    pattern: str = "plain"
