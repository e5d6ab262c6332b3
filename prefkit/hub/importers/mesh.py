"""Human meshes: <request>/<k>.ply or .obj, <request>.npz of arrays [M, ...], SPIN and HumanData .npz, ADHMR's pairs.

prefkit/hub/importing/mesh_layouts.py lists the keys of each layout. A candidate's payload is the mesh
(prefkit/mesh/payload.py); it has an image only with --render true.

prefkit neither contains nor reads SMPL. Pose the bodies with your own copy of SMPL and export the result, for the M
hypotheses of one picture, with

    np.savez("IMAGE_NAME.npz", vertices=vertices, faces=faces, pose=pose, pose_repr="axis_angle", betas=betas)

where vertices [M, 6890, 3] are in metres in the camera frame (x right, y down, z away from the camera). Then give the
matrix [J, 6890] of your evaluation protocol with --joint-regressor, or export joints3d [M, J, 3] instead.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.errors import UsageError
from prefkit.hub.importing.cells import FAULTS, reason
from prefkit.hub.importing.readers import columns_of
from prefkit.hub.importing.records import Asked, Item, Picture, Workplace
from prefkit.hub.importing.walk import files_under, kind_of
from prefkit.paths import nfc, shown
from prefkit.tables import id_text, read, user_path
from prefkit.types import Comparison

if TYPE_CHECKING:
    import numpy as np

    from prefkit.hub.importing.mesh_layouts import Body, Found
    from prefkit.mesh.payload import Mesh

MESHES, PAIRS = (".ply", ".obj", ".npz"), (".json",)  # a .json next to meshes is not read: it may hold anything
MAX_EXTENT = 10.0  # metres between joints; a larger extent means that the units are not metres


@dataclass(frozen=True)
class MeshOptions:
    #: .npy file [J, V] that turns V vertices into J joints; needed for files without joints
    joint_regressor: str | None = None
    #: names of the joints: free18 (those of the body that prefkit ships), or NAME,NAME,...
    joint_names: str | None = None
    #: name of the body model, stored with each mesh (free: the body that prefkit ships)
    body_model: str = ""
    #: factor that converts the files' units to metres (0.001 for millimetres)
    scale: float = 1.0
    #: table of requests (prompt, request_id and further columns such as keypoints2d), looked up by request_id or
    #: prompt; null: a file's name becomes the prompt
    requests: str | None = None
    #: folder that the picture paths in SPIN, HumanData and ADHMR files are relative to
    pictures: str | None = None
    #: also store a picture of each mesh, for reports, votes and image scorers
    render: bool = False


@dataclass(frozen=True)
class MeshImporter:
    options: MeshOptions
    Options = MeshOptions

    @staticmethod
    def sniff(source: Path) -> str | None:
        if source.is_file():
            pairs = source.suffix.lower() == ".json" and {"w_joints", "l_joints"} <= columns_of(source)
            return "it has w_joints and l_joints" if pairs else _has(source)
        return next(filter(None, map(_has, source.rglob("*"))), None)

    def read(self, source: str, work: Workplace) -> Iterator[Item]:
        from prefkit.hub.importing.mesh_layouts import read_bodies

        path = user_path(source, "import")
        found = [path] if path.is_file() else files_under(path, work.leave_out)
        files = _with(found, MESHES) or _with(found, PAIRS)
        if not files:
            raise UsageError(f"import: {source} holds no file that ends in {', '.join(MESHES + PAIRS)}.")
        self.check()
        for other in set(found) - set(files):
            work.leave_out(kind_of(other), 1)
        for file in files:
            for bodies in read_bodies(file, path.parent if path.is_file() else path):
                if bodies.broken and path.is_file():
                    raise UsageError(f"import: {bodies.where}: {bodies.error}")
                yield self._item(bodies)

    def check(self) -> None:
        """Raise UsageError if a file that the options name cannot be used."""
        if not self.options.scale > 0:
            raise UsageError(f"import: --scale is {self.options.scale:g}; it must be larger than 0.")
        _ = self._regressor, self._names, self._requests

    def _item(self, found: Found) -> Item:
        if found.error is not None:
            return Item(found.where, error=found.error)
        try:
            asked = self._asked(found)
            pictures = tuple(self._picture(key, body, asked) for key, body in found.bodies.items())
        except (*FAULTS, UsageError) as error:
            return Item(found.where, error=reason(error))
        verdicts = (Comparison("w", "l", "a", "adhmr"),) if found.better else ()
        return Item(found.where, asked, pictures, verdicts)

    def _asked(self, found: Found) -> Asked:
        name = nfc(found.request)
        if self._requests is not None:
            if name not in self._requests:
                raise ValueError(f"the request {shown(name)!r} is not in {self.options.requests}")
            return self._requests[name]
        extra = dict(found.extra)
        if self.options.pictures and "picture" in extra:
            extra["picture"] = str(Path(self.options.pictures).expanduser().resolve() / extra["picture"])
        return Asked(name, extra=extra)

    def _picture(self, key: str, body: Body, asked: Asked) -> Picture:
        mesh = self._mesh(body.fields)
        payload = mesh.pack()
        image = _rendered(mesh, asked.extra) if self.options.render else None
        return Picture(key, image, extra=body.extra, payload=payload)

    def _mesh(self, fields: Mapping[str, Any]) -> Mesh:
        """Return the mesh made of a file's fields and the options. Raises ValueError if these do not fit together."""
        import numpy as np

        from prefkit.mesh.payload import CROP, POSE_ROW, Mesh

        known = {name: value for name, value in fields.items() if value is not None}
        if "rotations" in known and known.get("pose_repr") in POSE_ROW:
            known["rotations"] = np.reshape(known["rotations"], (-1, *POSE_ROW[known["pose_repr"]]))
        if self._regressor is not None and "vertices" in known:
            known["joints3d"] = self._regress(known["vertices"])
        if "joints3d" not in known:
            only = (
                "vertices; give --joint-regressor" if "vertices" in known else "a pose or shape of a body model that "
            )
            only += "" if "vertices" in known else "prefkit does not have; export joints or vertices with that model"
            raise ValueError(f"there are no joints, only {only}")
        if self._names:
            known["joint_names"] = self._names
        if self.options.body_model:
            known["body_model"] = self.options.body_model
        if known.get("units") == CROP:
            return Mesh(**known)
        for name in {"joints3d", "vertices", "translation"} & known.keys():
            known[name] = np.asarray(known[name], np.float64) * self.options.scale
        _check_units(known["joints3d"])
        return Mesh(**known)

    def _regress(self, vertices: np.ndarray) -> np.ndarray:
        import numpy as np

        assert self._regressor is not None
        wanted = self._regressor.shape[1]
        if vertices.ndim != 2 or len(vertices) != wanted:
            raise ValueError(f"there are {len(vertices):,} vertices, but --joint-regressor is made for {wanted:,}")
        with np.errstate(all="ignore"):  # vertices that are not finite are refused with the mesh
            return self._regressor @ vertices

    @cached_property
    def _regressor(self) -> np.ndarray | None:
        """Return the joint regressor [J, V] (float64), or None without one. Raises UsageError for an unusable file."""
        import numpy as np

        if self.options.joint_regressor is None:
            return None
        path, name = user_path(self.options.joint_regressor, "--joint-regressor"), "import: --joint-regressor"
        try:
            matrix = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UsageError(
                f"{name}: {path} is not a .npy file that loads without pickle: {shown(error)}. Use numpy.save."
            ) from error
        if not isinstance(matrix, np.ndarray) or matrix.ndim != 2 or matrix.dtype.kind not in "fiu":
            raise UsageError(f"{name}: {path} must hold one matrix [joints, vertices] of numbers.")
        if not np.isfinite(matrix).all():
            raise UsageError(f"{name}: {path} holds NaN or infinity.")
        return matrix.astype(np.float64)

    @cached_property
    def _names(self) -> tuple[str, ...]:
        given = self.options.joint_names
        if given == "free18":
            from prefkit.mesh.body import JOINT_NAMES

            return JOINT_NAMES
        return tuple(name.strip() for name in given.split(",")) if given else ()

    @cached_property
    def _requests(self) -> dict[str, Asked] | None:
        """Map each request_id (the prompt if a row has none) to its request. Raises UsageError for an invalid table."""
        if self.options.requests is None:
            return None
        path = user_path(self.options.requests, "--requests")
        requests: dict[str, Asked] = {}
        for row in read(path):
            values = {name: value for name, value in row.values.items() if value is not None and value != ""}
            prompt, given, split = (values.pop(name, None) for name in ("prompt", "request_id", "split"))
            if not isinstance(prompt, str):
                raise UsageError(f"{row.where}: no text in the column `prompt`, which --requests needs.")
            key = prompt if given is None else id_text(given)
            asked = Asked(prompt, None if split is None else str(split), values, None if given is None else key)
            if requests.setdefault(nfc(key), asked) != asked:
                raise UsageError(f"{row.where}: {shown(key)!r} names two different requests. Give each a request_id.")
        return requests


def _has(path: Path) -> str | None:
    suffix = path.suffix.lower()
    return f"it has {suffix} files" if suffix in MESHES else None


def _with(files: list[Path], suffixes: tuple[str, ...]) -> list[Path]:
    return sorted((file for file in files if file.suffix.lower() in suffixes), key=_natural)


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Return a key that sorts 2.ply before 10.ply."""
    parts = re.split(r"(\d+)", path.as_posix())
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]


def _check_units(joints: np.ndarray) -> None:
    import numpy as np

    if (
        joints.ndim == 2
        and len(joints)
        and np.isfinite(joints).all()
        and (extent := np.ptp(joints, 0).max()) > MAX_EXTENT
    ):
        raise ValueError(f"the joints are {extent:,.0f} m apart; if the file is in millimetres, give --scale 0.001")


def _rendered(mesh: Mesh, extra: Mapping[str, Any]) -> bytes | None:
    """Return a PNG of a mesh seen through the request's camera, at most 256 px; None if the units are not metres."""
    from prefkit.mesh.picture import picture_of

    image, buffer = picture_of(mesh, extra), io.BytesIO()
    if image is None:
        return None
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


plugin = MeshImporter
