"""Render meshes through the request's camera, or without one, through a camera that frames the body."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from prefkit.mesh.camera import Camera
from prefkit.mesh.payload import METRES, Mesh

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 256  # px; default for the longer side of a picture


def picture_of(mesh: Mesh, extra: Mapping[str, Any], side: int = SIDE) -> Image | None:
    """Return a picture of a mesh, RGB, at most `side` px wide and high; None if its units are not metres.

    Draws the surface if its vertices are stored or follow from a pose of the free body; otherwise, draws the joints.
    extra: the request's columns, including `camera` if it has one. Raises ValueError for an invalid camera.
    """
    from prefkit.mesh.render import default_camera, in_front, render, render_joints

    if mesh.units != METRES:
        return None
    camera, surface = Camera.of(extra), _surface(mesh)
    points = mesh.joints3d if surface is None else surface[0]
    if camera is not None:
        camera = _smaller(camera, side / max(camera.width, camera.height, side))
    else:
        points = in_front(points)
        camera = default_camera(points, side)
    if surface is None:
        return render_joints(points, camera, mesh.joint_names)
    return render(points, surface[1], camera)


def picture_of_payload(payload: bytes | None, extra: Mapping[str, Any], side: int = SIDE) -> Image | None:
    """Return the picture of the mesh in a candidate's payload, or None if it holds no mesh that can be drawn."""
    try:
        return None if payload is None else picture_of(Mesh.unpack(payload), extra, side)
    except ValueError:
        return None


def _surface(mesh: Mesh) -> tuple[np.ndarray, np.ndarray] | None:
    """Return a mesh's vertices and faces, stored or computed from a pose of the free body; else None."""
    faces = mesh.triangles()
    if faces is not None and mesh.vertices is not None:
        return mesh.vertices, faces
    if mesh.vertices is not None or mesh.body_model != "free" or mesh.rotations is None or len(mesh.rotations) != 20:
        return None
    import torch

    from prefkit.mesh.body import load_body
    from prefkit.mesh.truth import posed

    betas = None if mesh.betas is None else torch.from_numpy(mesh.betas)
    vertices, root = posed(torch.from_numpy(mesh.rotations), mesh.pose_repr, betas)
    move = torch.from_numpy(mesh.joints3d[list(_hips(mesh))]).mean(0) - root
    return (vertices + move).numpy(), load_body().faces.numpy()


def _hips(mesh: Mesh) -> tuple[int, ...]:
    from prefkit.mesh.observed import names_of, root_of

    return root_of(names_of(mesh.joint_names, len(mesh.joints3d)))


def _smaller(camera: Camera, factor: float) -> Camera:
    width, height = (max(1, round(length * factor)) for length in (camera.width, camera.height))
    focal, cx, cy = (value * factor for value in (camera.focal, camera.cx, camera.cy))
    return replace(camera, focal=focal, cx=cx, cy=cy, width=width, height=height)
