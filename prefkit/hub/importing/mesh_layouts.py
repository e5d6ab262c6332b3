"""Layouts of files that hold human bodies: .obj and .ply, .npz of arrays, SPIN's and HumanData's .npz, ADHMR's pairs.

| file | one `Found` per | keys that are read |
|---|---|---|
| `<request>/<k>.obj`, `.ply` | file | vertices, faces |
| `<request>.npz` | row, a hypothesis | joints3d [M, J, 3], vertices [M, V, 3], faces [F, 3], pose with pose_repr, betas, transl, joint_names, body_model |
| SPIN, ProHMR .npz | row, a picture | imgname, center, scale; S and part, or (body_/extra_)keypoints_3d and _2d; pose or body_pose, shape or betas, vertices |
| HumanData .npz | row, a picture | image_path, bbox_xywh, keypoints3d*, keypoints2d* with masks, smpl.*, smplx.*, meta.* (from dicts, flattened) |
| ADHMR .json | pair | img_path, w_joints, w_twist, l_joints, l_twist, trans, trans_inv |

Joints and vertices are in metres, in the camera frame, except ADHMR's joints (`CROP` in prefkit/mesh/payload.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from prefkit.errors import UsageError
from prefkit.hub.importing.arrays import Arrays
from prefkit.hub.importing.cells import FAULTS, reason
from prefkit.hub.importing.readers import json_rows
from prefkit.mesh.obj_ply import read_surface
from prefkit.mesh.payload import CROP, MAX_ROWS, POSE_ROW
from prefkit.paths import shown

SHARED = ("faces", "pose_repr", "joint_names", "body_model")
PER_ROW = {
    "joints3d": "joints3d",
    "vertices": "vertices",
    "pose": "rotations",
    "betas": "betas",
    "transl": "translation",
}
PER_ROW |= {"translation": "translation"}
#: columns of SPIN and ProHMR files: 3D keypoints, and 2D keypoints in the same order
SPIN_POINTS = (("S", "part"), ("body_keypoints_3d", "body_keypoints_2d"), ("extra_keypoints_3d", "extra_keypoints_2d"))
SPIN_FIELDS = {
    "pose": "rotations",
    "body_pose": "rotations",
    "shape": "betas",
    "betas": "betas",
    "vertices": "vertices",
}
BOX = 200  # side in pixels of a bounding box with SPIN's scale 1
PICKLED = (
    "{} can only be read by unpickling, which may run any code. If you trust the file, convert it with `python "
    "pipelines/mesh/unpickle.py FILE OUT.npz` and import OUT.npz"
)


@dataclass(frozen=True)
class Body:
    """The fields of a `Mesh`, and the columns `extra` stored with its candidate."""

    fields: Mapping[str, Any]
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """The bodies of one request in a file, by key, or the reason why they cannot be used.

    request: the request's name. extra: the request's columns, such as keypoints2d. better: True if body "w" is
    preferred to body "l". broken: True if the rest of the file cannot be read.
    """

    where: str
    request: str
    bodies: Mapping[str, Body] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    better: bool = False
    error: str | None = None
    broken: bool = False


def read_bodies(path: Path, folder: Path) -> Iterator[Found]:
    """Yield the requests in a file, named relative to `folder`. An unusable file yields one `Found` with the error."""
    readers = {".npz": _npz, ".json": _pairs}
    try:
        yield from readers.get(path.suffix.lower(), _surface)(path, folder)
    except (*FAULTS, UsageError) as error:  # a damaged JSON file raises UsageError
        text = reason(error).removeprefix(str(path)).strip()
        yield Found(str(path), "", error=text, broken=True)


def _surface(path: Path, folder: Path) -> Iterator[Found]:
    vertices, faces = read_surface(path)
    name = path.parent.relative_to(folder).as_posix()
    request = folder.resolve().name if name == "." else name
    yield Found(str(path), request, {"0": Body({"vertices": vertices, "faces": faces}, _hypothesis(path.stem))})


def _hypothesis(name: str) -> dict[str, Any]:
    return {"hypothesis": int(name) if name.isdecimal() else name}


def _npz(path: Path, folder: Path) -> Iterator[Found]:
    with Arrays(path) as arrays:
        build: Callable[[Arrays], Iterator[Found]]
        if "imgname" in arrays.columns:
            build = _spin
        elif "image_path" in arrays.columns:
            build = _human_data
        else:
            build = _hypotheses
        for found in build(arrays):
            name = found.request or path.relative_to(folder).with_suffix("").as_posix()
            yield Found(f"{path} {found.where}", name, found.bodies, found.extra, error=found.error)


def _rows(arrays: Arrays, names: list[str], build: Callable[[int, dict[str, Any]], Found]) -> Iterator[Found]:
    """Yield build(number, row) for each row of the named arrays; a refused row yields a `Found` with the error."""
    if wanted := sorted(set(arrays.pickled()) & set(names)):
        raise ValueError(PICKLED.format(" and ".join(wanted)))
    for number, row in enumerate(arrays.rows(names)):
        try:
            yield build(number, row)
        except FAULTS as error:
            yield Found(f"row {number}", "", error=reason(error))


def _hypotheses(arrays: Arrays) -> Iterator[Found]:
    names = [name for name in PER_ROW if name in arrays.columns]
    if unusable := sorted(set(arrays.pickled()) & {*PER_ROW, *SHARED} or set(arrays.pickled() if not names else [])):
        raise ValueError(PICKLED.format(" and ".join(unusable)))
    if not {"joints3d", "vertices"} & set(names):
        held = shown(", ".join(arrays.columns))
        raise ValueError(f"the file has neither joints3d nor vertices [M, ..., 3], only {held}")
    for name in names:
        if len(shape := arrays.columns[name].shape) > 1 and shape[1] > MAX_ROWS:
            raise ValueError(f"{name} has {shape[1]:,} rows per hypothesis; at most {MAX_ROWS:,} are allowed")
    shared: dict[str, Any] = {name: arrays.whole(name) for name in SHARED if name in arrays.columns}
    shared |= {name: str(shared[name]) for name in ("pose_repr", "body_model") if name in shared}
    if "joint_names" in shared:
        shared["joint_names"] = [str(name) for name in np.ravel(shared["joint_names"])]
    if "pose" in names and shared.get("pose_repr") not in POSE_ROW:
        raise ValueError(f"the file has a pose, but no valid pose_repr, which must be one of {', '.join(POSE_ROW)}")

    def build(number: int, row: dict[str, Any]) -> Found:
        fields = shared | {PER_ROW[name]: value for name, value in row.items()}
        return Found(f"row {number}", "", {"0": Body(fields, {"hypothesis": number})})

    yield from _rows(arrays, names, build)


def _spin(arrays: Arrays) -> Iterator[Found]:
    points = next((pair for pair in SPIN_POINTS if pair[0] in arrays.columns), (None, None))
    optional = ("center", "scale", *SPIN_FIELDS, "has_smpl", "has_body_pose", "has_betas", *filter(None, points))
    names = ["imgname", *dict.fromkeys(name for name in optional if name in arrays.columns)]

    def build(number: int, row: dict[str, Any]) -> Found:
        fields = {SPIN_FIELDS[name]: value for name, value in row.items() if name in SPIN_FIELDS}
        for flag, unknown in (("has_smpl", "rotations betas"), ("has_body_pose", "rotations"), ("has_betas", "betas")):
            if flag in row and not row[flag]:
                fields = {name: value for name, value in fields.items() if name not in unknown}
        extra: dict[str, Any] = {"picture": str(row["imgname"])}
        if "center" in row and "scale" in row:
            size = np.broadcast_to(np.ravel(row["scale"]) * BOX, 2)
            extra["bbox"] = _numbers(np.concatenate([np.ravel(row["center"]) - size / 2, size]))
        joints = row.get(str(points[0]))
        extra |= _keypoints(joints, row.get(str(points[1])))
        fields |= {} if joints is None else {"joints3d": joints[:, :3]}
        return Found(f"row {number}", extra["picture"], {"0": Body(fields | {"pose_repr": "axis_angle"})}, extra)

    yield from _rows(arrays, names, build)


def _human_data(arrays: Arrays) -> Iterator[Found]:
    columns = arrays.columns
    model = next((m for m in ("smpl", "smplx") if any(name.split(".")[0] == m for name in columns)), "")
    points = next((name for name in columns if name.startswith("keypoints3d") and len(columns[name].shape) == 3), "")
    flat = points.replace("3d", "2d", 1) if points else ""
    chosen = {name: _chosen(arrays, name) for name in (points, flat) if name in columns}
    meta = [f"meta.{name}" for name in ("focal_length", "principal_point", "width", "height")]
    body = [f"{model}.{name}" for name in ("global_orient", "body_pose", "betas", "transl")]
    dicts = {"smpl", "smplx", "smplh", "meta"} & columns.keys()
    names = ["image_path", *(name for name in ("bbox_xywh", *chosen, *body, *meta, *dicts) if name in columns)]

    def build(number: int, row: dict[str, Any]) -> Found:
        extra: dict[str, Any] = {"picture": str(row["image_path"])}
        if "bbox_xywh" in row:
            extra["bbox"] = _numbers(row["bbox_xywh"][:4])
        extra |= _camera(*(row.get(name) for name in meta))
        kept = {name: row[name][places] for name, (places, _) in chosen.items()}
        joints = kept.get(points)
        same = flat in chosen and list(chosen[flat][1]) == list(chosen[points][1])
        extra |= _keypoints(joints, kept[flat] if same else None)
        orient, pose, betas, transl = (row.get(name) for name in body)
        fields: dict[str, Any] = {"body_model": model, "betas": betas, "translation": transl}
        if orient is not None and pose is not None:
            rotations = np.concatenate([np.ravel(orient), np.ravel(pose)]).reshape(-1, 3)
            fields |= {"rotations": rotations, "pose_repr": "axis_angle"}
        if joints is not None:
            fields |= {"joints3d": joints[:, :3], "joint_names": [f"{points}_{i}" for i in chosen[points][1]]}
        return Found(f"row {number}", extra["picture"], {"0": Body(fields)}, extra)

    yield from _rows(arrays, names, build)


def _chosen(arrays: Arrays, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (array positions, HumanData numbers) of the keypoints that HumanData's mask marks.

    In a compressed file, the array holds only the marked keypoints.
    """
    count, mask = arrays.columns[name].shape[1], f"{name}_mask"
    numbers = np.flatnonzero(arrays.whole(mask)) if mask in arrays.columns else np.arange(count)
    compressed = len(numbers) == count or (len(numbers) and numbers[-1] >= count)
    return (np.arange(count) if compressed else numbers), numbers


def _camera(focal: Any, principal: Any, width: Any, height: Any) -> dict[str, Any]:
    if focal is None or principal is None or width is None or height is None:
        return {}
    size = [int(width), int(height)]
    return {"camera": {"focal": float(np.mean(focal)), "principal": _numbers(np.ravel(principal)), "size": size}}


def _keypoints(joints: Any, flat: Any) -> dict[str, Any]:
    """Return the request's columns keypoints2d (in the candidate's own joint order), keypoint_names and visible.

    Confidences above 1 (COCO's visibility 2, rounding errors) become 1, and missing ones become 0.
    """
    extra: dict[str, Any] = {}
    if flat is not None:
        ones = np.ones((len(flat), 1)) if flat.shape[1] == 2 else np.nan_to_num(flat[:, 2:3]).clip(0, 1)
        extra |= {"keypoints2d": [_numbers(p) for p in np.hstack([flat[:, :2], ones])], "keypoint_names": "joints"}
    if joints is not None and joints.shape[1] == 4:
        extra["visible"] = [int(value > 0) for value in joints[:, 3]]
    return extra


def _numbers(values: Any) -> list[float]:
    return [round(float(value), 3) for value in values]


def _pairs(path: Path, folder: Path) -> Iterator[Found]:
    for row in json_rows(path, None):
        try:
            yield _pair(row.where, row.values)
        except FAULTS as error:
            yield Found(row.where, "", error=reason(error))


def _array(record: Mapping[str, Any], name: str) -> np.ndarray:
    try:
        return np.asarray(record[name], np.float64)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} is not an array of numbers") from error


def _pair(where: str, record: Mapping[str, Any]) -> Found:
    crop = {name: _array(record, name).tolist() for name in ("trans", "trans_inv")}
    bodies = {}
    for side in "wl":
        joints, twist = (_array(record, f"{side}_{name}") for name in ("joints", "twist"))
        if twist.ndim != 2 or twist.shape[1] != 2:
            raise ValueError(f"{side}_twist has the shape {list(twist.shape)}; it must be [K, 2]: cosine and sine")
        bodies[side] = Body({"joints3d": joints, "units": CROP}, {"twist": twist.tolist(), **crop})
    picture = record["img_path"]
    if not isinstance(picture, str):
        raise ValueError("img_path must be text")
    return Found(where, picture, bodies, {"picture": picture}, better=True)
