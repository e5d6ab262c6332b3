"""Draw meshes and skeletons without a display: a numpy z-buffer with smooth shading, and Pillow for stick figures.

All points are in the camera frame (metres; x right, y down, z forward). A pixel belongs to a triangle if its centre
is in the triangle or on its edge; both sides of a triangle are drawn, so meshes may be open or wound either way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from prefkit.mesh.camera import NEAR, Camera

if TYPE_CHECKING:
    from PIL.Image import Image

#: default colour of a mesh, and colours of a skeleton's left, right and middle bones
SKIN, LEFT, RIGHT, MIDDLE = (188, 164, 148), (214, 96, 77), (67, 120, 188), (110, 110, 110)
BACKGROUND = (245, 245, 245)
#: direction to the light in the camera frame (up, left, towards the camera), and the brightness without direct light
LIGHT, AMBIENT = np.array([-0.4, -0.6, -0.69]), 0.45
#: bones of a skeleton by the names of their two joints; a bone is drawn if both joints exist
BONES = (
    ("Hips", "LeftUpLeg"), ("LeftUpLeg", "LeftLeg"), ("LeftLeg", "LeftFoot"), ("LeftFoot", "LeftToeBase"),
    ("Hips", "RightUpLeg"), ("RightUpLeg", "RightLeg"), ("RightLeg", "RightFoot"), ("RightFoot", "RightToeBase"),
    ("Hips", "Spine1"), ("Spine1", "Neck"), ("Neck", "Head"), ("Neck", "LeftArm"), ("LeftArm", "LeftForeArm"),
    ("LeftForeArm", "LeftHand"), ("Neck", "RightArm"), ("RightArm", "RightForeArm"), ("RightForeArm", "RightHand"),
)  # fmt: skip
CHUNK = 2_000_000  # pixels tested at once, which limits memory use (about 100 bytes a pixel)
EDGE = 1e-5  # tolerance for barycentric weights below 0, so that rounding leaves no gaps between triangles
DISTANCE = 4.0  # metres: depth of the nearest point of a mesh that had to be moved in front of the camera


class Raster(NamedTuple):
    """The visible surface per pixel. face: [H, W] index, -1 for none; inverse_depth: [H, W] 1/m, 0 for none;
    corners: [H, W, 3] barycentric weights of the face's corners (in pixel space)."""

    face: np.ndarray
    inverse_depth: np.ndarray
    corners: np.ndarray


def render(
    vertices: np.ndarray,
    faces: np.ndarray,
    camera: Camera | None = None,
    colours: np.ndarray | None = None,
    background: tuple[int, int, int] | np.ndarray = BACKGROUND,
) -> Image:
    """Return a shaded RGB picture of a mesh, of the camera's size.

    vertices: [V, 3]; faces: [F, 3] indices; camera: None for one that frames the mesh. colours: [F, 3], 0 to 255.
    background: one colour, or an array [H, W, 3]. Faces with a corner nearer than 1 cm to the camera are not drawn.
    """
    from PIL import Image as pil

    vertices, faces = np.asarray(vertices, np.float32), np.asarray(faces)
    if camera is None:
        vertices = in_front(vertices)
        camera = default_camera(vertices)
    pixels = np.empty((camera.height, camera.width, 3), np.uint8)
    pixels[:] = background
    raster = rasterise(vertices, faces, camera)
    drawn = raster.face >= 0
    face = raster.face[drawn]
    light = (_brightness(vertices, faces)[faces[face]] * raster.corners[drawn]).sum(1)
    base = np.asarray(SKIN if colours is None else np.asarray(colours)[face], np.float32)
    pixels[drawn] = np.clip(base * light[:, None], 0, 255)
    return pil.fromarray(pixels)


def depth(vertices: np.ndarray, faces: np.ndarray, camera: Camera) -> np.ndarray:
    """Return the depth of the nearest surface per pixel, [H, W] float32 metres; inf for no surface."""
    inverse = rasterise(np.asarray(vertices, np.float32), np.asarray(faces), camera).inverse_depth
    return np.divide(1, inverse, out=np.full_like(inverse, np.inf), where=inverse > 0)


def rasterise(vertices: np.ndarray, faces: np.ndarray, camera: Camera) -> Raster:
    """Return the nearest face of every pixel. vertices: [V, 3] metres; faces: [F, 3]."""
    shape = (camera.height, camera.width)
    raster = Raster(np.full(shape, -1, np.int64), np.zeros(shape, np.float32), np.zeros((*shape, 3), np.float32))
    points = camera.project(vertices)
    inverse = (1 / np.maximum(vertices[:, 2], NEAR)).astype(np.float32)
    index = np.flatnonzero((vertices[:, 2] > NEAR)[faces].all(1))
    corners = points[faces[index]]
    low, size = _boxes(corners, camera)
    some = size.prod(1) > 0
    index, corners, low, size = index[some], corners[some], low[some], size[some]
    for part in _chunks(size.prod(1)):
        _draw(raster, index[part], corners[part], inverse[faces[index[part]]], low[part], size[part])
    return raster


def _boxes(corners: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Return the first pixel (x, y) and the size in pixels of each triangle's bounding box within the picture."""
    last = np.array([camera.width, camera.height]) - 1
    # pixel i has its centre at i + 0.5
    low = np.ceil(np.clip(corners.min(1) - 0.5, 0, last + 1)).astype(np.int64)
    high = np.floor(np.clip(corners.max(1) - 0.5, -1, last)).astype(np.int64)
    return low, np.maximum(high - low + 1, 0)


def _chunks(areas: np.ndarray) -> Iterator[slice]:
    """Yield slices of triangles whose boxes hold at most CHUNK pixels together; a larger triangle gets its own."""
    ends, start = areas.cumsum(), 0
    while start < len(areas):
        before = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, before + CHUNK, side="right")), start + 1)
        yield slice(start, stop)
        start = stop


def _draw(
    raster: Raster, index: np.ndarray, corners: np.ndarray, inverse: np.ndarray, low: np.ndarray, size: np.ndarray
) -> None:
    """Draw triangles (index: [T]; corners: [T, 3, 2] px; inverse depths: [T, 3]) where they are nearest."""
    areas = size.prod(1)
    triangle = np.repeat(np.arange(len(index)), areas)
    within = np.arange(len(triangle)) - (areas.cumsum() - areas)[triangle]
    width = size[triangle, 0]
    row = within // width
    column = within - row * width
    inside, weights = _inside(_planes(corners, low), triangle, column.astype(np.float32), row.astype(np.float32))
    triangle = triangle[inside]
    x, y = low[triangle, 0] + column[inside], low[triangle, 1] + row[inside]
    near = (weights * inverse[triangle]).sum(1)
    order = np.argsort(near, kind="stable")  # the nearest triangle comes last, so it overwrites the others
    order = order[near[order] > raster.inverse_depth[y[order], x[order]]]
    x, y = x[order], y[order]
    raster.inverse_depth[y, x] = near[order]
    raster.face[y, x] = index[triangle[order]]
    raster.corners[y, x] = weights[order]


def _planes(corners: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Return the barycentric weights of the second and the third corner as linear functions of the pixel: [6, T].

    Per weight: the value at pixel `low`, the change per column and per row. NaN or inf for a triangle without area.
    """
    (ax, ay), (bx, by), (cx, cy) = corners.transpose(1, 2, 0).astype(np.float64)
    right, down = low[:, 0] + 0.5 - ax, low[:, 1] + 0.5 - ay
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 1 / ((bx - ax) * (cy - ay) - (by - ay) * (cx - ax))
        slopes = ((cy - ay) * scale, (ax - cx) * scale), ((ay - by) * scale, (bx - ax) * scale)
        return np.stack([part for u, v in slopes for part in (u * right + v * down, u, v)]).astype(np.float32)


def _inside(
    planes: np.ndarray, triangle: np.ndarray, column: np.ndarray, row: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the pixels inside their triangles, and the corner weights [*, 3] at these pixels."""
    with np.errstate(invalid="ignore"):
        second, third = (
            planes[i][triangle] + planes[i + 1][triangle] * column + planes[i + 2][triangle] * row for i in (0, 3)
        )
        first = 1 - second - third
        inside = np.flatnonzero((second >= -EDGE) & (third >= -EDGE) & (first >= -EDGE))
    return inside, np.stack([first[inside], second[inside], third[inside]], 1)


def _brightness(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Return the shading factors [V] of the colours, from vertex normals that are turned towards the camera."""
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    normal = np.cross(b - a, c - a)  # its length is twice the area, so large faces count more
    sums = [np.bincount(faces.ravel(), np.repeat(normal[:, axis], 3), len(vertices)) for axis in range(3)]
    normals = np.stack(sums, 1)
    normals = normals * -np.sign((normals * vertices).sum(1, keepdims=True))
    cosine = normals @ LIGHT / np.maximum(np.linalg.norm(normals, axis=1) * np.linalg.norm(LIGHT), 1e-20)
    return (AMBIENT + (1.1 - AMBIENT) * np.maximum(cosine, 0)).astype(np.float32)


def render_joints(
    joints: np.ndarray,
    camera: Camera | None = None,
    names: Sequence[str] = (),
    background: tuple[int, int, int] = BACKGROUND,
) -> Image:
    """Return a picture of a skeleton: left limbs red, right limbs blue, farther parts drawn first.

    joints: [J, 3]; camera: None for one that frames the joints. names: [J]. A bone in BONES is drawn if both of
    its joints exist; joints without a bone are drawn as dots. Joints nearer than 1 cm to the camera are not drawn.
    """
    from PIL import Image as pil
    from PIL import ImageDraw

    joints = np.asarray(joints, np.float32)
    if camera is None:
        joints = in_front(joints)
        camera = default_camera(joints)
    image = pil.new("RGB", (camera.width, camera.height), background)
    canvas, points = ImageDraw.Draw(image), camera.project(joints)
    for part in sorted(_parts(joints, names), key=lambda part: -float(joints[list(part), 2].mean())):
        shade = _shade(joints, part)
        colour = tuple(int(level * shade) for level in _colour([names[i] for i in part] if names else []))
        radius = max(1.0, 0.03 * camera.focal / float(joints[list(part), 2].mean()))
        ends = [tuple(map(float, points[i])) for i in part]
        if len(ends) == 2:
            canvas.line(ends, fill=colour, width=round(1.4 * radius))
        for x, y in ends:
            canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return image


def _parts(joints: np.ndarray, names: Sequence[str]) -> list[tuple[int, ...]]:
    """Return what to draw, bones and joints without a bone, as tuples of indices of joints in front of the camera."""
    place = {name: index for index, name in enumerate(names) if joints[index, 2] > NEAR}
    bones = [(place[a], place[b]) for a, b in BONES if a in place and b in place]
    linked = {index for bone in bones for index in bone}
    return [*bones, *((i,) for i in range(len(joints)) if i not in linked and joints[i, 2] > NEAR)]


def _shade(joints: np.ndarray, part: tuple[int, ...]) -> float:
    """Return the brightness of a bone or joint (`part`): 1.1 at the nearest joint, 0.7 at the farthest."""
    depths = joints[:, 2]
    span = max(float(depths.max() - depths.min()), 1e-6)
    return 1.1 - 0.4 * float(depths[list(part)].mean() - depths.min()) / span


def _colour(names: Sequence[str]) -> tuple[int, int, int]:
    for side, colour in (("left", LEFT), ("right", RIGHT)):
        if any(name.lower().startswith(side) for name in names):
            return colour
    return MIDDLE


def in_front(points: np.ndarray) -> np.ndarray:
    """Return the points [N, 3] unchanged if all are beyond 0.5 m, else moved along z so that the nearest is at 4 m."""
    if not len(points) or points[:, 2].min() > 0.5:
        return points
    return points + np.array([0, 0, DISTANCE - points[:, 2].min()], points.dtype)


def default_camera(points: np.ndarray, size: int = 256, margin: float = 0.1) -> Camera:
    """Return a square camera in which the points [N, 3] fill the picture except for a margin (a fraction of its side).

    The camera stands at the origin and looks along z; the principal point is shifted to centre the points. Points
    behind the camera are ignored; if none is in front, the focal length equals the picture's side.
    """
    seen = np.asarray(points, np.float64)
    seen = seen[seen[:, 2] > NEAR]
    if not len(seen):
        return Camera(float(size), size / 2, size / 2, size, size)
    flat = seen[:, :2] / seen[:, 2:]
    low, high = flat.min(0), flat.max(0)
    focal = size * (1 - 2 * margin) / max(float((high - low).max()), 1e-3)
    cx, cy = size / 2 - focal * (low + high) / 2
    return Camera(float(focal), float(cx), float(cy), size, size)
