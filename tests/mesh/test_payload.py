"""A mesh survives its payload unchanged; whatever is not a valid mesh is refused with the reason."""

import json
import struct

import numpy as np
import pytest
import safetensors.numpy

from prefkit.mesh import payload
from prefkit.mesh.payload import MARK, Mesh

RNG = np.random.default_rng(0)
FLOATS = {"joints3d": (4, 3), "vertices": (9, 3), "betas": (10,), "translation": (3,)}


def a_mesh(**changes):
    arrays = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in FLOATS.items()}
    mesh = {
        **arrays,
        "faces": np.array([[0, 1, 2], [2, 3, 8]], np.int32),
        "rotations": RNG.normal(size=(5, 6)).astype(np.float32),
        "body_model": "mine",
        "joint_names": ("a", "b", "c", "ü"),
    }
    return Mesh(**mesh | changes)


def a_blob(facts=None, **tensors):
    return safetensors.numpy.save(tensors, {MARK: json.dumps(facts)} if facts is not None else None)


def test_a_mesh_comes_back_unchanged():
    mesh = a_mesh()
    back = Mesh.unpack(mesh.pack())
    for name in (*FLOATS, "faces", "rotations"):
        assert (getattr(back, name) == getattr(mesh, name)).all() and getattr(back, name).dtype in (
            np.float32,
            np.int32,
        )
    assert (back.body_model, back.joint_names, back.pose_repr) == ("mine", ("a", "b", "c", "ü"), "6d")


def test_equal_meshes_have_equal_bytes():
    mesh = a_mesh()
    assert len({Mesh.unpack(mesh.pack()).pack() for _ in range(20)} | {mesh.pack()}) == 1


@pytest.mark.parametrize("kind, row", payload.POSE_ROW.items())
def test_each_pose_representation_is_kept(kind, row):
    rotations = RNG.normal(size=(5, *row))
    back = Mesh.unpack(a_mesh(rotations=rotations, pose_repr=kind).pack())
    assert back.pose_repr == kind and back.rotations.shape == (5, *row)


def test_joints_alone_are_enough_and_become_float32():
    back = Mesh.unpack(Mesh(RNG.normal(size=(18, 3))[::-1]).pack())
    assert back.joints3d.dtype == np.float32 and back.vertices is None and back.rotations is None
    assert Mesh.unpack(a_blob(joints3d=np.ones((2, 3), np.float16))).joints3d.dtype == np.float32


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"joints3d": np.ones((4, 2))}, r"joints3d has the shape \[4, 2\]; it must be \[J, 3\]"),
        ({"joints3d": np.ones((0, 3))}, r"joints3d has the shape \[0, 3\]"),
        ({"vertices": np.ones((9, 3, 1))}, r"vertices has the shape \[9, 3, 1\]"),
        ({"joints3d": np.full((4, 3), np.nan)}, "joints3d has NaN or infinity in 4 of 4 rows, first in row 0"),
        ({"vertices": np.full((9, 3), 1e39)}, "vertices has NaN or infinity"),
        ({"betas": np.array([0, np.inf])}, "betas has NaN or infinity in 1 of 2 rows, first in row 1"),
        ({"translation": np.ones(4)}, r"translation has the shape \[4\]; it must be \[3\]"),
        ({"faces": np.array([[0, 1, 9]])}, "refer to vertices 0 to 9, but the mesh has 9 vertices"),
        ({"faces": np.array([[-1, 1, 2]])}, "refer to vertices -1 to 2"),
        ({"faces": np.array([[0.0, 1, 2]])}, "faces holds float64; it must hold integers"),
        ({"vertices": None}, "faces, but no vertices"),
        ({"pose_repr": "euler"}, "pose_repr 'euler' is unknown; it must be one of axis_angle, 6d, quaternion, matrix"),
        ({"pose_repr": "axis_angle"}, r"pose has the shape \[5, 6\]; it must be \[K, 3\] for axis_angle"),
        ({"units": "feet"}, "the units 'feet' are unknown; they must be metres or crop"),
        ({"joint_names": ("a",)}, "there are 4 joints, but 1 joint names"),
        ({"vertices": np.array([["x"] * 3])}, "vertices holds <U1; it must hold numbers"),
    ],
)
def test_an_invalid_mesh_is_neither_packed_nor_unpacked(changes, reason):
    with pytest.raises(ValueError, match=reason):
        a_mesh(**changes).pack()


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "not a safetensors file"),
        (b"\x89PNG\r\n\x1a\n" * 9, "not a safetensors file"),
        (struct.pack("<Q", 2) + b"[]", "not a safetensors file"),
        (struct.pack("<Q", 1 << 40) + b"{}", "truncated"),
        (a_blob(latents=np.zeros((1, 4), np.float32)), "joints3d is missing .its tensors: latents"),
        (a_blob(joints3d=np.zeros((2, 3), np.float32))[:-3], "the payload is damaged"),
        (a_blob({"joint_names": "ab"}, joints3d=np.zeros((2, 3), np.float32)), "must hold text: body_model"),
        (a_blob([1], joints3d=np.zeros((2, 3), np.float32)), "is not a JSON object"),
        (a_blob(joints3d=np.zeros((2, 3), bool)), "joints3d holds bool; it must hold numbers"),
    ],
)
def test_what_is_no_mesh_is_refused_with_the_reason(data, reason):
    with pytest.raises(ValueError, match=reason):
        Mesh.unpack(data)


def test_too_many_faces_are_refused_from_the_header(monkeypatch):
    blob = a_mesh(vertices=np.zeros((12, 3))).pack()
    monkeypatch.setattr(payload, "MAX_ROWS", 10)
    monkeypatch.setattr(safetensors.numpy, "load", lambda data: pytest.fail("the blob was read"))
    with pytest.raises(ValueError, match="vertices has 12 rows; at most 10 are allowed"):
        Mesh.unpack(blob)
