"""Rendering of a scene, 64 x 64: a subject under a law, in one of the law's looks, in a random pose on a random background."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import effects
import numpy as np
from drawn import LIQUID_TONES, SIZE, TONES, VESSELS, flame, tank, tree, vessel
from laws import LAWS
from PIL import Image
from sprites import sprite

from prefkit.errors import UsageError
from prefkit.tiny.scene import SHADOW, place, shadow

BACKGROUNDS = {
    "cream": (247, 238, 196), "grey": (166, 168, 170), "sky": (170, 210, 246), "mint": (176, 230, 202), "lavender": (200, 186, 240),
    "sand": (214, 184, 134), "rose": (244, 190, 198), "white": (238, 238, 242),
}  # fmt: skip
LAMPS = {"red": (240, 92, 88), "green": (104, 214, 116), "blue": (96, 136, 244)}
SIDE, SCALED, TURNED, MOVED = 46.0, 0.10, 8.0, 3.0  # px, fraction, degrees, px


@dataclass(frozen=True)
class Scene:
    """The content of a picture. setting: the lamp or the liquid; "" where the law has none."""

    law: str
    subject: str
    look: str
    setting: str = ""

    def check(self) -> None:
        """Raise UsageError if the world has no such scene."""
        law = LAWS.get(self.law)
        if law is None:
            raise UsageError(f"Unknown law {self.law!r}. Laws: {', '.join(LAWS)}.")
        for value, allowed in (
            (self.subject, law.kind_of),
            (self.look, law.looks),
            (self.setting, tuple(law.settings.values()) or ("",)),
        ):
            if value not in allowed:
                raise UsageError(
                    f"{value!r} does not exist in the law {self.law}. Possible: {', '.join(map(repr, allowed))}."
                )


def render(scene: Scene, seed: int, background: str | None = None) -> Image.Image:
    """Render a scene in RGB. The background is random unless given; under a coloured lamp it has the lamp's colour."""
    scene.check()
    rng = np.random.default_rng(seed)
    names = list(BACKGROUNDS)
    ground = BACKGROUNDS[background or names[rng.integers(len(names))]]
    image = Image.new("RGB", (SIZE, SIZE), ground_of(scene, ground))
    front = foreground(scene, rng)
    image.paste(front, (0, 0), front)
    pixels = np.asarray(image, np.float32) + rng.normal(0, rng.uniform(0, 4), (SIZE, SIZE, 3)) + rng.uniform(-6, 6)
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def ground_of(scene: Scene, ground: tuple[int, int, int]) -> tuple[int, int, int]:
    return LAMPS.get(scene.setting, ground)


def foreground(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Draw everything but the background in a random pose: RGBA 64 x 64."""
    drawn = DRAWERS[scene.law](scene, rng)
    if isinstance(drawn, np.ndarray):
        item = place(drawn, SIDE * _scale(rng), _angle(rng), _shift(rng))
        return _with_shadow(item)
    return drawn.transform((SIZE, SIZE), Image.Transform.AFFINE, _pose(rng), Image.Resampling.BICUBIC)


def _scale(rng: np.random.Generator) -> float:
    return float(rng.uniform(1 - SCALED, 1 + SCALED))


def _angle(rng: np.random.Generator) -> float:
    return float(rng.uniform(-TURNED, TURNED))


def _shift(rng: np.random.Generator) -> tuple[float, float]:
    x, y = rng.uniform(-MOVED, MOVED, 2)
    return float(x), float(y)


def _pose(rng: np.random.Generator) -> tuple[float, ...]:
    """Return an affine map for own drawings, which fill the picture: smaller by up to 8 %, turned by 3 degrees, moved by 2 px."""
    scale, angle = 1 / rng.uniform(0.92, 1.0), np.radians(rng.uniform(-3, 3))
    x, y = 32 + rng.uniform(-2, 2, 2)
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    return tuple(map(float, (cos, sin, 32 - cos * x - sin * y, -sin, cos, 32 + sin * x - cos * y)))


def _with_shadow(item: Image.Image) -> Image.Image:
    opacity = Image.new("L", item.size)
    opacity.paste(shadow(item), (1, 2))
    dark = Image.new("RGBA", item.size, SHADOW)
    dark.putalpha(opacity)
    return Image.alpha_composite(dark, item)


def _ripeness(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    return effects.ripeness(scene.subject, scene.look, LAWS["ripeness"].kind_of[scene.subject] == "turns")


def _rust(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    return effects.rusty(scene.subject, rng) if scene.look == "rusty" else effects.metal(scene.subject)


def _melting(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    return effects.puddle(scene.subject, rng) if scene.look == "puddle" else sprite(scene.subject)


def _light(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    return effects.pale(scene.subject) if scene.look == "pale" else sprite(scene.subject)


def _watering(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    return effects.withered(scene.subject) if scene.look == "withered" else sprite(scene.subject)


def _absorption(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    return effects.black(scene.subject) if scene.look == "dark" else sprite(scene.subject)


def _circuit(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Draw a device, lit with a halo or dark."""
    lit = scene.look == "lit"
    item = place(
        sprite(scene.subject) if lit else effects.unlit(scene.subject), 40 * _scale(rng), _angle(rng), _shift(rng)
    )
    item = _with_shadow(item)
    if not lit:
        return item
    y, x = np.mgrid[:SIZE, :SIZE]
    far = np.hypot(x - 32, y - 32)
    halo = np.zeros((SIZE, SIZE, 4), np.uint8)
    halo[..., :3] = (255, 232, 110)
    halo[..., 3] = ((30 - far) / 6).clip(0, 1) * 150 + ((22 - far) / 6).clip(0, 1) * 70
    return Image.alpha_composite(Image.fromarray(halo), item)


def _buoyancy(scene: Scene, rng: np.random.Generator) -> Image.Image:
    back, front = tank(scene.setting)
    height = -8.0 if scene.look == "floats" else 14.0
    x, y = _shift(rng)
    item = place(effects.metal(scene.subject), 23 * _scale(rng), 2 * _angle(rng), (2 * x, height + 0.4 * y))
    return Image.alpha_composite(Image.alpha_composite(back, item), front)


def _layers(scene: Scene, rng: np.random.Generator) -> Image.Image:
    tone, water = (*TONES[scene.subject], 255), (*LIQUID_TONES["water"], 255)
    name = list(VESSELS)[rng.integers(len(VESSELS))]
    middle, top = rng.uniform(0.38, 0.48), rng.uniform(0.78, 0.86)
    if scene.look == "mixed":
        mixed = tuple(round(0.65 * a + 0.35 * b) for a, b in zip(tone, water))
        return vessel(name, [(0, top, mixed)])
    lower, upper = (water, tone) if scene.look == "above" else (tone, water)
    return vessel(name, [(0, middle, lower), (middle, top, upper)])


def _diffusion(scene: Scene, rng: np.random.Generator) -> Image.Image:
    tone = TONES[scene.subject]
    name = list(VESSELS)[rng.integers(len(VESSELS))]
    top = rng.uniform(0.78, 0.86)
    water = (0.0, top, (190, 224, 250, 255))
    if scene.look == "spread":
        return vessel(name, [(0, top, (*tone, 255))])
    if scene.look == "bottom":
        rest = [(rng.uniform(-0.8, 0.8), rng.uniform(0.05, 0.26), rng.uniform(1.2, 2.0), tone) for _ in range(34)]
        return vessel(name, [water, (0, 0.2, (*tone, 255))], rest)
    x = rng.uniform(-0.2, 0.2)
    blot = [(x + rng.normal(0, 0.1), top - 0.2 + rng.normal(0, 0.05), rng.uniform(2, 3.6), tone) for _ in range(12)]
    return vessel(name, [water], blot)


def _season(scene: Scene, rng: np.random.Generator) -> Image.Image:
    return tree(scene.subject, scene.look, rng)


def _flame(scene: Scene, rng: np.random.Generator) -> Image.Image:
    return flame(scene.subject, scene.look, rng)


DRAWERS: dict[str, Callable[[Scene, np.random.Generator], np.ndarray | Image.Image]] = {
    "ripeness": _ripeness, "season": _season, "rust": _rust, "melting": _melting, "light": _light, "watering": _watering,
    "circuit": _circuit, "flame": _flame, "buoyancy": _buoyancy, "absorption": _absorption, "layers": _layers,
    "diffusion": _diffusion,
}  # fmt: skip
