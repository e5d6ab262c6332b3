"""Pictures of one dressed body each: random skin, clothes, light, background and flat objects in front of the body.

Every picture depends only on its pose and its random generator, and comes with labels: projected joints, the box around
the body, and for each joint whether it is visible, behind the body itself, or hidden by an object.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from noise import HIDDEN, SELF_OCCLUDED, VISIBLE
from PIL import Image, ImageDraw
from skeleton import SIDES

from prefkit.mesh.body import FREE, JOINT_NAMES, load_body
from prefkit.mesh.camera import Camera
from prefkit.mesh.render import Raster, rasterise

BODY = load_body()
FACES = BODY.faces.numpy()
#: side of a picture, px
SIZE = 256
#: metres from the camera; the focal length, not the distance, follows from the body's extent in the picture
DISTANCE = (3.0, 5.0)
#: longer side of the body as a fraction of the picture; a body of less than LEAST metres counts as that long
FILL, LEAST = (0.55, 0.82), 0.9
#: a joint this far (m) behind the surface is behind another part of the body; joints of the trunk are deep inside it
LIMB_DEPTH, TRUNK_DEPTH = 0.14, 0.25
TRUNK = ("Hips", "Spine1", "Neck", "Head", "LeftUpLeg", "RightUpLeg")
SHAPE_STD, SHAPES = 0.3, 10
LIGHTEST, DARKEST = np.array([250, 218, 190]), np.array([64, 40, 28])
HAIR = ((28, 22, 20), (74, 48, 32), (120, 78, 46), (196, 160, 104), (150, 150, 150))


@dataclass(frozen=True)
class Shot:
    """A posed body in front of a camera. vertices [V, 3], joints [18, 3], translation [3]: metres, camera frame."""

    vertices: np.ndarray
    joints: np.ndarray
    translation: np.ndarray
    camera: Camera


@dataclass(frozen=True)
class Picture:
    """image: RGB, SIZE px. joints: [18, 2] px. states: [18] of VISIBLE, SELF_OCCLUDED, HIDDEN. box: x, y, w, h px around
    the whole body, also where an object hides it."""

    image: Image.Image
    joints: np.ndarray
    states: np.ndarray
    box: np.ndarray


def random_shape(rng: np.random.Generator) -> np.ndarray:
    """Draw shape components [10], in std of the body model."""
    return rng.normal(0, SHAPE_STD, SHAPES).astype(np.float32)


def place(vertices: np.ndarray, joints: np.ndarray, rng: np.random.Generator) -> Shot:
    """Put a body whose hips are at the origin in front of a camera that shows all of it, at a random place and size."""
    z = rng.uniform(*DISTANCE)
    flat = vertices[:, :2] / (vertices[:, 2:] + z)
    low, high = flat.min(0), flat.max(0)
    fill = rng.uniform(*FILL) * SIZE
    focal = float(fill / max(float((high - low).max()), LEAST / z))
    room = (SIZE - focal * (high - low)) / 2 - 0.06 * SIZE
    offset = rng.uniform(-0.6, 0.6, 2) * np.maximum(room, 0) / focal - (low + high) / 2
    translation = np.array([*(offset * z), z], np.float32)
    return Shot(
        vertices + translation, joints + translation, translation, Camera(focal, SIZE / 2, SIZE / 2, SIZE, SIZE)
    )


def shots(rotations: np.ndarray, shapes: np.ndarray, rngs: list[np.random.Generator]) -> list[Shot]:
    """Pose and place bodies with rotations [N, 20, 3, 3] in camera axes and shapes [N, 10]."""
    posed = BODY.pose(torch.from_numpy(rotations), torch.from_numpy(shapes))
    return [place(v, j, rng) for v, j, rng in zip(posed.vertices.numpy(), posed.joints.numpy(), rngs)]


def bright(rng: np.random.Generator, low: float = 0.15, high: float = 0.95) -> np.ndarray:
    """Draw a colour [3] 0..255 of any hue."""
    return 255 * np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.05, 0.85), rng.uniform(low, high)))


@cache
def face_bones() -> tuple[list[str], np.ndarray]:
    """Return the name of the bone that moves each face, and which faces [F] are hair."""
    strongest = BODY.weights[BODY.faces].sum(1).argmax(1).numpy()
    centres = BODY.vertices[BODY.faces].mean(1).numpy()
    head = strongest == FREE.index("Neck1")
    top, low = centres[head].min(0), centres[head].max(0)
    height, back = (centres - top)[:, 1] / (low - top)[1], (centres - top)[:, 2] / (low - top)[2]
    return [FREE[k] for k in strongest], head & ((height < 0.22) | ((back > 0.55) & (height < 0.75)))


def clothes(rng: np.random.Generator) -> np.ndarray:
    """Draw the colours [F, 3] 0..255 of the body's faces: skin, hair, shirt, trousers or shorts, shoes."""
    skin = LIGHTEST + rng.random() * (DARKEST - LIGHTEST)
    shirt, trousers, shoes = bright(rng), bright(rng, high=0.8), bright(rng, high=0.6)
    long_sleeves, long_trousers = rng.random() < 0.5, rng.random() < 0.75
    worn = dict.fromkeys(("LowerBack", "Spine", "Spine1"), shirt) | {"Hips": trousers}
    for side in SIDES:
        worn |= {f"{side}Shoulder": shirt, f"{side}Arm": shirt, f"{side}UpLeg": trousers, f"{side}Foot": shoes}
        worn |= {f"{side}ForeArm": shirt if long_sleeves else skin, f"{side}Leg": trousers if long_trousers else skin}
    bones, hair = face_bones()
    colours = np.array([worn.get(bone, skin) for bone in bones])
    colours[hair] = HAIR[rng.integers(len(HAIR))]
    return colours


def normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Return unit normals [V, 3]: the area-weighted means of the adjacent faces' normals."""
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    sums = np.zeros_like(vertices)
    np.add.at(sums, faces.ravel(), np.repeat(np.cross(b - a, c - a), 3, axis=0))
    return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)


def painted(shot: Shot, raster: Raster, rng: np.random.Generator) -> Image.Image:
    """Paint the visible faces in the colours of clothes, lit from a random direction on the camera's side."""
    light = np.array([rng.uniform(-1, 1), rng.uniform(-1, 0.1), rng.uniform(-1, -0.2)])
    ambient, gain = rng.uniform(0.4, 0.7), rng.uniform(0.85, 1.15)
    cosine = normals(shot.vertices, FACES) @ light / np.linalg.norm(light)
    brightness = gain * (ambient + (1 - ambient) * np.maximum(cosine, 0))
    colours, pixels, drawn = clothes(rng), background(rng), raster.face >= 0
    face = raster.face[drawn]
    shade = (brightness[FACES[face]] * raster.corners[drawn]).sum(1)
    pixels[drawn] = np.clip(colours[face] * shade[:, None], 0, 255)
    return Image.fromarray(pixels)


def background(rng: np.random.Generator) -> np.ndarray:
    """Draw a gradient [SIZE, SIZE, 3] uint8 between two similar colours, in a random direction."""
    first, angle = bright(rng, 0.3), rng.uniform(0, 2 * np.pi)
    second = first + rng.normal(0, 30, 3)
    across = np.linspace(-0.7, 0.7, SIZE)
    part = np.clip(0.5 + across[None, :] * np.cos(angle) + across[:, None] * np.sin(angle), 0, 1)[..., None]
    return np.clip(first + part * (second - first), 0, 255).astype(np.uint8)


def outline(box: np.ndarray, joints: np.ndarray, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Draw the corners of an object in front of a random joint: a bar across the picture, or a rectangle."""
    side = float(max(box[2:]))
    centre = joints[rng.integers(len(joints))] + rng.normal(0, 0.05 * side, 2)
    if rng.random() < 0.4:
        half = np.array([SIZE * 1.5, rng.uniform(0.04, 0.09) * side])
        angle = rng.choice([0, np.pi / 2]) + rng.normal(0, 0.08)
    else:
        half, angle = rng.uniform(0.09, 0.23, 2) * side, rng.normal(0, 0.25)
    along = np.array([np.cos(angle), np.sin(angle)]) * half[0]
    across = np.array([-np.sin(angle), np.cos(angle)]) * half[1]
    return [tuple(centre + a * along + b * across) for a, b in ((1, 1), (1, -1), (-1, -1), (-1, 1))]


def occlude(image: Image.Image, picture_box: np.ndarray, joints: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw one or two flat objects on the image, in place. Returns where they are, [SIZE, SIZE] bool."""
    mask = Image.new("L", image.size)
    for _ in range(rng.integers(1, 3)):
        corners = outline(picture_box, joints, rng)
        ImageDraw.Draw(image).polygon(corners, fill=tuple(int(v) for v in bright(rng)))
        ImageDraw.Draw(mask).polygon(corners, fill=255)
    return np.asarray(mask) > 0


def joint_states(shot: Shot, joints: np.ndarray, raster: Raster, hidden: np.ndarray | None) -> np.ndarray:
    """Return the states [18] of joints [18, 2] px. hidden: where an object is in front, [SIZE, SIZE] bool."""
    x, y = np.clip(np.floor(joints).astype(int), 0, SIZE - 1).T
    inverse = raster.inverse_depth[y, x]
    surface = np.divide(1, inverse, out=np.full_like(inverse, np.inf), where=inverse > 0)
    limit = np.array([TRUNK_DEPTH if name in TRUNK else LIMB_DEPTH for name in JOINT_NAMES])
    states = np.where(shot.joints[:, 2] - surface > limit, SELF_OCCLUDED, VISIBLE)
    return states if hidden is None else np.where(hidden[y, x], HIDDEN, states)


def take(shot: Shot, occluded: bool, rng: np.random.Generator) -> Picture:
    """Render a shot, with one or two objects in front of the body if `occluded`."""
    raster = rasterise(shot.vertices, FACES, shot.camera)
    image = painted(shot, raster, rng)
    points, outer = shot.camera.project(shot.joints), shot.camera.project(shot.vertices)
    box = np.r_[outer.min(0), np.ptp(outer, axis=0)]
    hidden = occlude(image, box, points, rng) if occluded else None
    return Picture(image, points, joint_states(shot, points, raster, hidden), box)
