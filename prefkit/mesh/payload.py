"""The payload of a mesh candidate: joints, vertices, pose and shape of one human body in a safetensors blob.

Units and axes: metres in the camera frame, x to the right, y down, z away from the camera. Tensors in the blob:
joints3d [J, 3] (required), vertices [V, 3], faces [F, 3] int32, pose (rotations [K, ...] in the representation
`pose_repr`), betas [S], translation [3]; all float32 except faces. The blob's metadata has one entry, MARK, a JSON
object with body_model, joint_names, pose_repr and units, so that equal meshes have equal bytes.

The units are METRES, or CROP for the joints (u, v, d) of ADHMR's pair files: u and v in pixels of the network's square
crop of the picture, d the depth behind the pelvis in ADHMR's unit (2000 is the depth of its box). Errors in millimetres
cannot be computed from CROP joints.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prefkit.paths import shown

MARK = "prefkit.mesh"
METRES, CROP = "metres", "crop"
MAX_ROWS = 2_000_000  # of vertices, faces or joints
POSE_ROW = {"axis_angle": (3,), "6d": (6,), "quaternion": (4,), "matrix": (3, 3)}
SHAPES = {"vertices": "[V, 3]", "joints3d": "[J, 3]", "faces": "[F, 3]", "betas": "[S]", "translation": "[3]"}
TENSORS = (*SHAPES, "pose")


@dataclass(frozen=True, eq=False)
class Mesh:
    """A human body. All fields but `joints3d` are optional; the module docstring states shapes and units.

    rotations: each joint's rotation relative to its parent, in the representation `pose_repr`: axis_angle [K, 3] in
    radians, 6d [K, 6] (the matrix's first two columns), quaternion [K, 4] (w, x, y, z) or matrix [K, 3, 3].
    body_model: "free" for the body that prefkit ships, or any other name; "" if unknown. joint_names: one name for each
    joint, or empty. units: METRES or CROP.
    """

    joints3d: np.ndarray
    vertices: np.ndarray | None = None
    faces: np.ndarray | None = None
    rotations: np.ndarray | None = None
    pose_repr: str = "6d"
    betas: np.ndarray | None = None
    translation: np.ndarray | None = None
    body_model: str = ""
    joint_names: Sequence[str] = ()
    units: str = METRES

    def pack(self) -> bytes:
        """Return the mesh as a payload. Raises ValueError if the mesh is invalid."""
        from safetensors.numpy import save

        tensors = checked(self)
        facts = {"body_model": self.body_model, "joint_names": list(self.joint_names), "units": self.units}
        if "pose" in tensors:
            facts["pose_repr"] = self.pose_repr
        return save(tensors, {MARK: json.dumps(facts, sort_keys=True)})

    @classmethod
    def unpack(cls, data: bytes) -> Mesh:
        """Return the mesh in a payload. Raises ValueError with the reason if the payload does not hold a valid mesh."""
        from safetensors.numpy import load

        header = _header(data)
        names = [name for name in header if name != "__metadata__"]
        if "joints3d" not in names:
            held = ", ".join(sorted(names)[:6]) or "none"
            raise ValueError(f"the payload is not a mesh: joints3d is missing (its tensors: {shown(held)})")
        for name in set(names) & set(TENSORS):
            _check_rows(name, header[name].get("shape") or [0])
        facts = _facts(header.get("__metadata__"))
        try:
            tensors = {name: array for name, array in load(data).items() if name in TENSORS}
        except Exception as error:  # the library's own error type, and KeyError for an unknown dtype
            raise ValueError(f"the payload is damaged: {shown(str(error))}") from error
        return _mesh(checked(_mesh(tensors, facts)), facts)

    def triangles(self) -> np.ndarray | None:
        """Return the faces [F, 3] int32: the mesh's own, else the free body's if it has as many vertices, else None."""
        if self.faces is not None or self.vertices is None:
            return self.faces
        from prefkit.mesh.body import load_body

        body = load_body()
        faces = np.asarray(body.faces, np.int32)
        return faces if len(self.vertices) == int(faces.max()) + 1 else None


def _mesh(tensors: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> Mesh:
    fields: dict[str, Any] = {"rotations" if name == "pose" else name: array for name, array in tensors.items()}
    return Mesh(**fields, **facts)


def checked(mesh: Mesh) -> dict[str, np.ndarray]:
    """Return the mesh's arrays by tensor name: float32 (faces int32) and contiguous. Raises ValueError if one is invalid."""
    arrays = {name: getattr(mesh, name) for name in SHAPES} | {"pose": mesh.rotations}
    arrays = {name: np.asarray(array) for name, array in arrays.items() if array is not None}
    for name, array in arrays.items():
        _check_rows(name, array.shape)
        _check_shape(name, array, mesh.pose_repr)
    if mesh.units not in (METRES, CROP):
        raise ValueError(f"the units {shown(mesh.units)!r} are unknown; they must be {METRES} or {CROP}")
    if len(mesh.joint_names) not in (0, len(arrays["joints3d"])):
        raise ValueError(f"there are {len(arrays['joints3d'])} joints, but {len(mesh.joint_names)} joint names")
    result = {name: _finite(name, array) for name, array in arrays.items() if name != "faces"}
    if "faces" in arrays:
        result["faces"] = _faces(arrays["faces"], arrays.get("vertices"))
    return result


def _check_rows(name: str, shape: Any) -> None:
    if len(shape) and shape[0] > MAX_ROWS:
        raise ValueError(f"{name} has {shape[0]:,} rows; at most {MAX_ROWS:,} are allowed")


def _check_shape(name: str, array: np.ndarray, pose_repr: str) -> None:
    """Raise ValueError for an array whose shape or type the field `name` cannot have."""
    if name == "pose":
        if pose_repr not in POSE_ROW:
            raise ValueError(f"pose_repr {shown(pose_repr)!r} is unknown; it must be one of {', '.join(POSE_ROW)}")
        right, wanted = array.shape[1:] == POSE_ROW[pose_repr], f"{['K', *POSE_ROW[pose_repr]]} for {pose_repr}"
    else:
        wanted = SHAPES[name]
        rank = wanted.count(",") + 1
        right = array.ndim == rank and (name == "betas" or array.shape[-1] == 3)
    if not right or not array.size:
        raise ValueError(f"{name} has the shape {list(array.shape)}; it must be {wanted.replace(chr(39), '')}")
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name} holds {array.dtype}; it must hold numbers")


def _finite(name: str, array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, np.float32)
    bad = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(1))
    if len(bad):
        raise ValueError(f"{name} has NaN or infinity in {len(bad)} of {len(array)} rows, first in row {bad[0]}")
    return array


def _faces(faces: np.ndarray, vertices: np.ndarray | None) -> np.ndarray:
    if vertices is None:
        raise ValueError("the mesh has faces, but no vertices")
    if faces.dtype.kind == "f":
        raise ValueError(f"faces holds {faces.dtype}; it must hold integers")
    low, high = int(faces.min()), int(faces.max())
    if low < 0 or high >= len(vertices):
        raise ValueError(f"the faces refer to vertices {low} to {high}, but the mesh has {len(vertices)} vertices")
    return np.ascontiguousarray(faces, np.int32)


def _header(data: bytes) -> dict[str, Any]:
    """Return the JSON header of a safetensors blob. Raises ValueError if there is none."""
    try:
        (length,) = struct.unpack_from("<Q", data)
        header = json.loads(data[8 : 8 + length]) if length <= len(data) - 8 else None
    except (struct.error, ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or not all(isinstance(value, dict) for value in header.values()):
        raise ValueError("the payload is not a mesh: it is not a safetensors file, or it is truncated")
    return header


def _facts(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the mesh fields in the blob's metadata. Raises ValueError if their types are wrong."""
    facts: dict[str, Any] = {"body_model": "", "pose_repr": "6d", "units": METRES, "joint_names": []}
    try:
        given = json.loads((metadata or {}).get(MARK, "{}"))
        facts |= {name: value for name, value in given.items() if name in facts}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"the payload's metadata {MARK} is not a JSON object") from error
    names = facts.pop("joint_names")
    if not isinstance(names, list) or not all(isinstance(text, str) for text in (*names, *facts.values())):
        raise ValueError(f"the payload's metadata {MARK} must hold text: body_model, joint_names, pose_repr and units")
    return facts | {"joint_names": tuple(names)}
