"""The renderer, against a loop over all pixels and triangles, and against geometry that is known."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from prefkit.mesh import render as module
from prefkit.mesh.body import FREE, JOINT_NAMES, load_body
from prefkit.mesh.camera import Camera
from prefkit.mesh.render import BACKGROUND, default_camera, depth, in_front, rasterise, render, render_joints

CAMERA = Camera(40.0, 20.0, 15.0, 40, 30)


def soup(count=12, seed=0):
    """Return random triangles that overlap, cut each other and leave the picture: vertices [3F, 3], faces [F, 3]."""
    rng = np.random.default_rng(seed)
    vertices = rng.uniform((-2, -2, 2), (2, 2, 5), (3 * count, 3)).astype(np.float32)
    return vertices, np.arange(3 * count).reshape(-1, 3)


def sides(corners, point):
    """Return the signed areas of the three triangles between a point and the edges of a triangle."""
    return [np.linalg.det([b - a, point - a]) for a, b in zip(corners, np.roll(corners, -1, 0), strict=True)]


def brute_force(vertices, faces, camera):
    """Return (face, inverse depth) per pixel, by asking every triangle whether it holds the pixel's centre."""
    face, nearest = np.full((camera.height, camera.width), -1), np.zeros((camera.height, camera.width))
    points = camera.project(vertices.astype(np.float64))
    for y, x in np.ndindex(face.shape):
        for index, corner in enumerate(faces):
            parts = np.roll(sides(points[corner], np.array([x + 0.5, y + 0.5])), -1)
            if min(parts) >= 0 or max(parts) <= 0:
                inverse = parts @ (1 / vertices[corner, 2]) / parts.sum()
                if inverse > nearest[y, x]:
                    face[y, x], nearest[y, x] = index, inverse
    return face, nearest


@pytest.fixture(scope="module")
def scene():
    vertices, faces = soup()
    return vertices, faces, brute_force(vertices, faces, CAMERA)


def person():
    rotations, place = torch.eye(3).expand(1, len(FREE), 3, 3), torch.tensor([[0.0, 0.0, 4.0]])
    posed = load_body().pose(rotations, None, place)
    return posed.vertices[0].numpy(), load_body().faces.numpy(), posed.joints[0].numpy()


def test_coverage_order_and_depth_equal_brute_force(scene):
    vertices, faces, (face, inverse) = scene
    raster = rasterise(vertices, faces, CAMERA)
    assert 500 < (face >= 0).sum() < face.size and len(np.unique(face)) > 8
    np.testing.assert_array_equal(raster.face, face)
    np.testing.assert_allclose(raster.inverse_depth, inverse, rtol=1e-4)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(depth(vertices, faces, CAMERA), 1 / inverse, rtol=1e-4)


def test_the_order_of_the_triangles_their_winding_and_the_chunks_change_nothing(scene, monkeypatch):
    vertices, faces, (face, _) = scene
    np.testing.assert_array_equal(
        rasterise(vertices, faces[::-1, ::-1], CAMERA).face, np.where(face < 0, -1, 11 - face)
    )
    monkeypatch.setattr(module, "CHUNK", 300)  # smaller than some boxes
    np.testing.assert_array_equal(rasterise(vertices, faces, CAMERA).face, face)


def test_the_nearer_of_two_triangles_hides_the_other():
    square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], np.float32)
    vertices = np.concatenate([np.c_[square, np.full(4, z)] for z in (4.0, 3.0)]).astype(np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3], [4, 5, 6]])  # the last covers half of the square, nearer
    colours = np.array([[200, 0, 0], [200, 0, 0], [0, 0, 200]])
    for order in ([0, 1, 2], [2, 1, 0]):
        pixels = np.asarray(render(vertices, faces[order], CAMERA, colours[order])).astype(int)
        assert pixels[12, 23].argmax() == 2 and pixels[18, 16].argmax() == 0  # above and below the diagonal
        assert tuple(pixels[0, 0]) == BACKGROUND


def test_shared_edges_leave_no_gaps():
    camera, rng = Camera(1.0, 0.0, 0.0, 64, 64), np.random.default_rng(0)  # at a depth of 1 m, metres are pixels
    start, end = np.array([0.5, 0.5]), np.array([60.5, 20.5])  # passes through the centre of every third pixel
    x, y = np.arange(0, 60, 3), np.arange(20)
    for _ in range(200):
        sides = rng.uniform((-60, 50), (0, 60)), rng.uniform((50, -60), (60, 0))
        vertices = np.c_[np.stack([start, end, *sides]), np.ones(4)].astype(np.float32)
        raster = rasterise(vertices, np.array([[0, 1, 2], [1, 0, 3]]), camera)
        assert (raster.face[y, x] >= 0).all()


def test_a_person_is_drawn_where_the_joints_are_in_at_most_25_ms():
    vertices, faces, joints = person()
    camera = default_camera(vertices)
    surface = depth(vertices, faces, camera)
    x, y = camera.project(joints).astype(int).T
    inside = joints[:, 2] - surface[y, x]
    assert inside.min() > 0 and inside.max() < 0.2  # each joint lies less than 20 cm below the skin
    rows, columns = np.nonzero(np.isfinite(surface))
    assert rows.max() - rows.min() == pytest.approx(0.8 * 256, abs=2)
    assert abs(rows.max() + rows.min() - 255) <= 2 and abs(columns.max() + columns.min() - 255) <= 2
    times = []
    for _ in range(20):
        start = time.process_time()
        render(vertices, faces, camera)
        times.append(time.process_time() - start)
    assert min(times) < 0.025  # about 5 ms; a loop over the triangles needs 120 ms


def test_the_light_comes_from_the_upper_left_and_background_and_colours_are_kept():
    vertices, faces, _ = person()
    camera = default_camera(vertices)
    background = np.random.default_rng(0).integers(0, 255, (256, 256, 3)).astype(np.uint8)
    pixels = np.asarray(render(vertices, faces, camera, np.full((len(faces), 3), (0, 120, 0)), background))
    drawn = np.isfinite(depth(vertices, faces, camera))
    np.testing.assert_array_equal(pixels[~drawn], background[~drawn])
    assert (pixels[drawn][:, [0, 2]] == 0).all() and pixels[drawn][:, 1].min() >= 0.45 * 120 - 1
    lit = pixels[..., 1] * drawn
    assert (
        lit[60:128, :128].sum() / drawn[60:128, :128].sum() > 1.1 * lit[60:128, 128:].sum() / drawn[60:128, 128:].sum()
    )


def test_meshes_that_cannot_be_seen_leave_the_background():
    vertices, faces = soup()
    for points, triangles in (
        (vertices * [1, 1, -1], faces),  # behind the camera
        (vertices + np.array([100, 0, 0]), faces),  # beside the picture
        (vertices[:3], np.zeros((5, 3), int)),  # without an area
        (vertices, faces[:0]),
        (np.zeros((0, 3)), faces[:0]),
    ):
        assert np.unique(np.asarray(render(points, triangles, CAMERA))).tolist() == [245]


def test_without_a_camera_the_mesh_is_moved_in_front_and_framed():
    vertices, faces, joints = person()
    rooted = vertices - joints[0]
    assert np.asarray(render(rooted, faces)).std() > 10 and np.asarray(render_joints(joints - joints[0])).std() > 5
    np.testing.assert_array_equal(in_front(vertices), vertices)
    moved = in_front(rooted)
    assert moved[:, 2].min() == pytest.approx(4, abs=1e-5)
    np.testing.assert_allclose(moved[:, 2] - rooted[:, 2], moved[0, 2] - rooted[0, 2], rtol=1e-6)
    points = default_camera(moved, size=100, margin=0.2).project(moved)
    assert (points.max(0) - points.min(0)).max() == pytest.approx(60, abs=0.01)
    assert (points.max(0) + points.min(0)) / 2 == pytest.approx([50, 50], abs=0.01)
    assert default_camera(-moved).focal == 256  # nothing to frame


def test_a_skeleton_is_drawn_with_near_bones_over_far_ones():
    joints = np.array([[-1, 0, 3], [1, 0, 3], [0, -1, 4], [0, 1, 4]], np.float32)
    names = ["LeftArm", "LeftForeArm", "RightArm", "RightForeArm"]  # two bones that cross in the picture's centre
    camera = Camera(100.0, 64.0, 64.0, 128, 128)
    first = np.asarray(render_joints(joints, camera, names)).astype(int)[64, 64]
    joints[:2, 2] = 5
    second = np.asarray(render_joints(joints, camera, names)).astype(int)[64, 64]
    assert first[0] > first[2] and second[2] > second[0]  # red, then blue
    behind = render_joints(joints * [1, 1, -1], camera, names)
    assert np.unique(np.asarray(behind)).tolist() == [245]


def test_joints_with_unknown_names_are_dots_and_known_ones_a_figure():
    _, _, joints = person()
    camera = default_camera(joints)
    dots, figure = (np.asarray(render_joints(joints, camera, names)) for names in ([], JOINT_NAMES))
    x, y = camera.project(joints).astype(int).T
    for pixels in (dots, figure):
        assert (pixels[y, x] != 245).any(1).all()
    assert (figure != 245).sum() > 1.5 * (dots != 245).sum()
