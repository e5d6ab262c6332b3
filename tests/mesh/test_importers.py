"""`prefkit import` of meshes: every layout becomes candidates with payloads, and every unusable file one clear error."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from prefkit import registry
from prefkit.cli.main import run as cli
from prefkit.mesh.payload import CROP, Mesh
from prefkit.store import Store

ROOT = Path(__file__).parents[2]
RNG = np.random.default_rng(0)
V, J = 6890, 14
FACES = np.stack([np.arange(V - 2), np.arange(1, V - 1), np.arange(2, V)], 1)


@pytest.fixture(autouse=True)
def list_plugins_once(monkeypatch):
    """Each command parses the source of every importer many times, which takes longer than these imports."""
    monkeypatch.setattr(registry, "builtin", PLUGINS)


PLUGINS = functools.cache(registry.builtin)


def regressor(folder: Path) -> tuple[Path, np.ndarray]:
    """A made-up joint regressor: each joint is the mean of its own 20 vertices."""
    matrix = np.zeros((J, V), np.float32)
    for joint in range(J):
        matrix[joint, joint * 400 : joint * 400 + 20] = 1 / 20
    np.save(folder / "regressor.npy", matrix)
    return folder / "regressor.npy", matrix


def body(seed: int = 0, count: int = V) -> np.ndarray:
    return np.random.default_rng(seed).normal([0, 0, 4], 0.3, (count, 3)).astype(np.float32)


def imported(source: Path, run: Path, *flags: object) -> tuple[int, list, dict]:
    """Import through the real verb; return the exit code, the candidates and the state of the import."""
    code = cli(["import", str(source), str(run), *map(str, flags)])
    path = run / ".imports" / "mesh.json"
    state = json.loads(path.read_text()) if path.exists() else {}
    return code, list(Store(run).iter_candidates()) if path.exists() else [], state


def meshes(candidates: list) -> list[Mesh]:
    return [Mesh.unpack(c.payload) for c in candidates]


def write_ply(path: Path, vertices, polygons=(), order: str = "<", head: str | None = None) -> Path:
    """A PLY file with further properties, as other programs write them."""
    kinds = {"": "ascii", "<": "binary_little_endian", ">": "binary_big_endian"}
    lines = ["ply", f"format {kinds[order]} 1.0", "comment made up", f"element vertex {len(vertices)}"]
    lines += ["property double quality", *(f"property float {axis}" for axis in "xyz")]
    lines += [f"element face {len(polygons)}", "property list uchar int vertex_indices", "property uchar flag"]
    data = head or "\n".join([*lines, "end_header", ""])
    rows = [[0.5, *map(float, v)] for v in vertices], [[len(p), *map(int, p), 7] for p in polygons]
    if order:
        body = b"".join(struct.pack(f"{order}d3f", *row) for row in rows[0])
        body += b"".join(struct.pack(f"{order}B{row[0]}iB", *row) for row in rows[1])
    else:
        body = "".join(" ".join(map(str, row)) + "\n" for part in rows for row in part).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() + body)
    return path


def write_obj(path: Path, vertices, faces=()) -> Path:
    lines = ["# made up", "mtllib none", *(f"v {x} {y} {z}" for x, y, z in vertices)]
    lines += ["f " + " ".join(f"{c + 1}/1/1" if i else str(c - len(vertices)) for i, c in enumerate(f)) for f in faces]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


# ---- folders of obj and ply


@pytest.mark.parametrize("order", ["", "<", ">"])
@pytest.mark.parametrize("polygons", [[(0, 1, 2), (2, 3, 4)], [(0, 1, 2, 3), (4, 5, 6)]], ids=["triangles", "mixed"])
def test_every_kind_of_ply_is_read(tmp_path, order, polygons):
    from prefkit.mesh.obj_ply import read_surface

    points = body(1, 8)
    vertices, faces = read_surface(write_ply(tmp_path / "a.ply", points, polygons, order))
    assert np.allclose(vertices, points) and vertices.dtype == np.float32
    wanted = [(0, 1, 2), (2, 3, 4)] if len(polygons[0]) == 3 else [(0, 1, 2), (0, 2, 3), (4, 5, 6)]
    assert faces.tolist() == [list(face) for face in wanted]
    assert read_surface(write_ply(tmp_path / "b.ply", points, order=order))[1] is None


def test_obj_and_ply_become_candidates_in_order(tmp_path):
    path, matrix = regressor(tmp_path)
    source = tmp_path / "out"
    for k in (10, 2, 0):
        write_ply(source / "walk" / f"{k}.ply", body(k), FACES)
    write_obj(source / "run" / "0.obj", body(5), FACES[:50])
    (source / "run" / "notes.txt").write_text("x")
    code, candidates, state = imported(source, tmp_path / "run", "--joint-regressor", path, "--body-model", "made-up")
    assert code == 0 and state["counts"]["candidates"] == 4 and state["counts"]["requests"] == 2
    walk = [c for c in candidates if c.prompt == "walk"]
    assert [(c.index, c.extra["hypothesis"]) for c in walk] == [(0, 0), (1, 2), (2, 10)]
    for candidate, mesh in zip(walk, meshes(walk)):
        points = body(candidate.extra["hypothesis"])
        assert (mesh.vertices == points).all() and (mesh.faces == FACES).all() and mesh.body_model == "made-up"
        assert np.allclose(mesh.joints3d, matrix @ points, atol=1e-5)
        assert candidate.image is None and candidate.path is None
        assert candidate.id == candidate.sha256 == hashlib.sha256(candidate.payload).hexdigest()
    (run,) = (c for c in candidates if c.prompt == "run")
    assert np.allclose(Mesh.unpack(run.payload).vertices, body(5), atol=1e-6)
    assert (Mesh.unpack(run.payload).faces == FACES[:50]).all()


def test_a_second_import_adds_nothing_and_fixed_files_are_retried(tmp_path):
    path, _ = regressor(tmp_path)
    for k in range(3):
        write_ply(tmp_path / "out" / "a" / f"{k}.ply", body(k))
    whole = (tmp_path / "out" / "a" / "1.ply").read_bytes()
    (tmp_path / "out" / "a" / "1.ply").write_bytes(whole[:-9])
    code, candidates, state = imported(tmp_path / "out", tmp_path / "run", "--joint-regressor", path)
    assert code == 3 and len(candidates) == 2 and list(state["failed"]) == ["1"]
    (tmp_path / "out" / "a" / "1.ply").write_bytes(whole)
    code, candidates, state = imported(tmp_path / "out", tmp_path / "run", "--joint-regressor", path)
    assert code == 0 and not state["failed"] and len(candidates) == 3
    assert len(imported(tmp_path / "out", tmp_path / "run", "--joint-regressor", path)[1]) == 3


# ---- npz of arrays


def test_a_6890_vertex_npz_with_a_made_up_regressor(tmp_path):
    path, matrix = regressor(tmp_path)
    points, pose = np.stack([body(i) for i in range(3)]), RNG.normal(size=(3, 24 * 3))
    arrays = {"vertices": points, "faces": FACES, "pose": pose, "pose_repr": "axis_angle", "betas": np.ones((3, 10))}
    np.savez_compressed(tmp_path / "p17.npz", **arrays, transl=np.ones((3, 3)))
    names = ",".join(f"j{i}" for i in range(J))
    code, candidates, _ = imported(
        tmp_path / "p17.npz", tmp_path / "run", "--joint-regressor", path, "--joint-names", names
    )
    assert code == 0 and {c.prompt for c in candidates} == {"p17"} and [c.index for c in candidates] == [0, 1, 2]
    for i, mesh in enumerate(meshes(candidates)):
        assert np.allclose(mesh.joints3d, matrix @ points[i], atol=1e-5) and mesh.joint_names == tuple(names.split(","))
        assert mesh.rotations.shape == (24, 3) and np.allclose(mesh.rotations.ravel(), pose[i])
        assert mesh.pose_repr == "axis_angle" and mesh.betas.shape == (10,) and mesh.translation.tolist() == [1, 1, 1]


def test_joints_alone_in_any_memory_order_and_scale(tmp_path):
    joints = np.asfortranarray(RNG.normal(size=(4, 18, 3)) * 300)
    (tmp_path / "s").mkdir()
    np.savez(tmp_path / "s" / "a.npz", joints3d=joints)
    code, candidates, _ = imported(tmp_path / "s", tmp_path / "run", "--scale", "0.001", "--joint-names", "free18")
    assert code == 0 and np.allclose([m.joints3d for m in meshes(candidates)], joints / 1000)
    assert meshes(candidates)[0].joint_names[0] == "Hips"


def test_renders_are_images_of_their_own(tmp_path):
    (tmp_path / "s").mkdir()
    np.savez(
        tmp_path / "s" / "a.npz",
        joints3d=RNG.normal(size=(2, 18, 3)) / 3,
        vertices=np.stack([body(0), body(1)]),
        faces=FACES,
    )
    np.savez(tmp_path / "s" / "b.npz", joints3d=np.repeat(RNG.normal(size=(1, 18, 3)) / 3, 2, 0), betas=np.eye(2))
    code, candidates, _ = imported(tmp_path / "s", tmp_path / "run", "--render", "true")
    assert code == 0 and all(c.pil().size == (256, 256) for c in candidates)
    a, b = ([c for c in candidates if c.prompt == name] for name in "ab")
    assert all(c.sha256 == hashlib.sha256(c.image).hexdigest() for c in candidates)
    assert len({c.sha256 for c in a}) == 2
    assert len(b) == len({c.id for c in b}) == 2 and len({c.sha256 for c in b}) == 1  # look alike, differ in shape


def test_requests_of_a_table_with_their_keypoints(tmp_path):
    camera = {"focal": 1000.0, "principal": [320, 240], "size": [640, 480]}
    rows = [
        {"prompt": "a person walks", "request_id": "a", "keypoints2d": [[1, 2, 0.5]] * 18, "camera": camera},
        {"prompt": "b", "split": "test"},
    ]
    (tmp_path / "requests.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "s").mkdir()
    for name in "abc":
        np.savez(tmp_path / "s" / f"{name}.npz", joints3d=body(ord(name), 18)[None])
    code, candidates, state = imported(
        tmp_path / "s", tmp_path / "run", "--requests", tmp_path / "requests.jsonl", "--render", "true"
    )
    assert code == 3 and "the request 'c' is not in" in state["failed"]["2"]
    requests = {r.request_id: r for r in Store(tmp_path / "run").requests()}
    assert requests["a"].prompt == "a person walks" and requests["a"].extra["keypoints2d"][0] == [1, 2, 0.5]
    assert {c.request_id for c in candidates} == requests.keys() and {
        r.split for r in requests.values() if r.prompt == "b"
    } == {"test"}
    assert {c.pil().size for c in candidates} == {(256, 192), (256, 256)}  # through the camera, but small


# ---- SPIN, ProHMR, HumanData


def test_spin(tmp_path):
    joints, flat = RNG.normal(size=(2, 24, 4)), RNG.uniform(0, 99, (2, 24, 3))
    joints[0, 3:, 3], joints[0, :3, 3] = 1, 0
    flat[..., 2], flat[0, :3, 2] = 0.7, (2, 1.04, np.nan)  # COCO's "visible", rounding above 1, none
    arrays = {
        "imgname": ["a/1.jpg", "a/2.jpg"],
        "center": [[50, 60], [7, 8]],
        "scale": [0.5, 1],
        "S": joints,
        "part": flat,
    }
    np.savez(tmp_path / "h36m.npz", **arrays, pose=np.ones((2, 72)), shape=np.ones((2, 10)), has_smpl=[1, 0])
    code, candidates, _ = imported(tmp_path / "h36m.npz", tmp_path / "run", "--pictures", tmp_path)
    assert code == 0 and [c.prompt for c in candidates] == ["a/1.jpg", "a/2.jpg"]
    extra = {r.prompt: r.extra for r in Store(tmp_path / "run").requests()}["a/1.jpg"]
    assert extra["bbox"] == [0, 10, 100, 100] and extra["picture"] == str(tmp_path.resolve() / "a/1.jpg")
    assert extra["visible"] == [0] * 3 + [1] * 21 and np.allclose(
        np.array(extra["keypoints2d"])[:, :2], flat[0, :, :2], atol=1e-3
    )
    assert [c for _, _, c in extra["keypoints2d"]] == [1, 1, 0] + [0.7] * 21
    first, second = meshes(candidates)
    assert np.allclose(first.joints3d, joints[0, :, :3]) and first.rotations.shape == (24, 3)
    assert second.rotations is None and second.betas is None  # has_smpl is 0


def human_data(folder: Path) -> tuple[Path, dict]:
    """A HumanData file as its library writes it: dictionaries, so that it needs pickle."""
    mask = np.zeros(190)
    mask[[0, 5, 7]] = 1
    smpl = {
        "global_orient": RNG.normal(size=(2, 3)),
        "body_pose": RNG.normal(size=(2, 23, 3)),
        "betas": np.ones((2, 10)),
    }
    data = {
        "image_path": ["x.png", "y.png"],
        "bbox_xywh": [[1, 2, 3, 4, 1]] * 2,
        "keypoints3d_smpl": RNG.normal(size=(2, 3, 4)),  # compressed: only the marked ones
        "keypoints3d_smpl_mask": mask,
        "keypoints2d_smpl": RNG.uniform(size=(2, 3, 3)),
        "keypoints2d_smpl_mask": mask,
        "smpl": smpl,
        "meta": {
            "focal_length": [[500, 500]] * 2,
            "principal_point": [[9, 8]] * 2,
            "width": [20, 20],
            "height": [16, 16],
        },
        "misc": {"odd": [1, [2, 3]], "none": None},
    }
    np.savez_compressed(folder / "humandata.npz", **data)
    return folder / "humandata.npz", data


def test_human_data_is_refused_with_the_converter_and_read_after_it(tmp_path, capfd):
    path, data = human_data(tmp_path)
    code, candidates, _ = imported(path, tmp_path / "run")
    error = capfd.readouterr().err
    assert code == 2 and not candidates and "meta and smpl can only be read by unpickling" in error
    assert "python pipelines/mesh/unpickle.py FILE OUT.npz" in error
    command = [sys.executable, str(ROOT / "pipelines/mesh/unpickle.py"), str(path), str(tmp_path / "plain.npz")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "left out" in done.stderr and "misc.odd" in done.stderr
    code, candidates, _ = imported(tmp_path / "plain.npz", tmp_path / "run")
    assert code == 0 and len(candidates) == 2
    mesh = meshes(candidates)[0]
    assert np.allclose(mesh.joints3d, data["keypoints3d_smpl"][0, :, :3]) and mesh.body_model == "smpl"
    assert list(mesh.joint_names) == ["keypoints3d_smpl_0", "keypoints3d_smpl_5", "keypoints3d_smpl_7"]
    assert np.allclose(mesh.rotations[0], data["smpl"]["global_orient"][0]) and mesh.rotations.shape == (24, 3)
    extra = Store(tmp_path / "run").requests()[0].extra
    assert extra["camera"] == {"focal": 500, "principal": [9, 8], "size": [20, 16]} and extra["bbox"] == [1, 2, 3, 4]
    assert np.allclose(extra["keypoints2d"], data["keypoints2d_smpl"][0], atol=1e-3)


def test_human_data_with_unmarked_keypoints(tmp_path):
    points = RNG.normal(size=(1, 6, 4))
    np.savez(tmp_path / "a.npz", image_path=["x.png"], keypoints3d=points, keypoints3d_mask=[0, 1, 1, 0, 0, 1])
    code, (candidate,), _ = imported(tmp_path / "a.npz", tmp_path / "run")
    assert code == 0 and np.allclose(Mesh.unpack(candidate.payload).joints3d, points[0, [1, 2, 5], :3])


def test_the_converter_reads_pickles_of_python_2_and_names_what_it_cannot(tmp_path):
    import pickle

    path, out = tmp_path / "3dpw.pkl", tmp_path / "out.npz"
    path.write_bytes(pickle.dumps({"poses": np.ones((3, 72)), "sequence": "walk"}, 2))
    script = str(ROOT / "pipelines/mesh/unpickle.py")
    assert subprocess.run([sys.executable, script, str(path), str(out)]).returncode == 0
    with np.load(out, allow_pickle=False) as file:
        assert file["poses"].shape == (3, 72) and file["sequence"] == "walk"
    path.write_bytes(b"cchumpy.ch\nCh\n.")
    done = subprocess.run([sys.executable, script, str(path), str(out)], capture_output=True, text=True)
    assert done.returncode == 1 and "with the library that wrote it" in done.stderr and "chumpy.ch.Ch" in done.stderr


# ---- ADHMR's pairs


def pair(image: str = "a.jpg", seed: int = 0, joints: int = 29) -> dict:
    rng = np.random.default_rng(seed)
    arrays = {f"{side}_joints": rng.uniform(0, 256, (joints, 3)).tolist() for side in "wl"}
    arrays |= {f"{side}_twist": rng.normal(size=(23, 2)).tolist() for side in "wl"}
    return {
        "img_path": image,
        "img_idx": 3,
        "trans": np.ones((2, 3)).tolist(),
        "trans_inv": np.eye(3)[:2].tolist(),
    } | arrays


def test_adhmr_pairs_become_comparisons_and_pairs(tmp_path):
    records = [pair(), pair(seed=1), pair("b.jpg", 2)]
    records[1]["w_joints"], records[1]["w_twist"] = records[0]["w_joints"], records[0]["w_twist"]  # the winner twice
    (tmp_path / "pairs.json").write_text(json.dumps(records))
    code, candidates, state = imported(tmp_path / "pairs.json", tmp_path / "run", "--pairs", "--test-share", 0)
    assert code == 0 and state["counts"]["comparisons"] == 3 and state["counts"]["known"] == 1
    rows = Store(tmp_path / "run").comparisons("mesh").frame()
    by_id = {c.id: c for c in candidates}
    assert set(rows.outcome) == {"a"} and set(rows.judge) == {"adhmr"} and {*rows.id_a, *rows.id_b} == by_id.keys()
    win, lose = (Mesh.unpack(by_id[rows.iloc[0][side]].payload) for side in ("id_a", "id_b"))
    assert np.allclose(win.joints3d, records[0]["w_joints"]) and np.allclose(lose.joints3d, records[0]["l_joints"])
    assert win.units == CROP and by_id[rows.iloc[0].id_a].extra["twist"] == records[0]["w_twist"]
    assert by_id[rows.iloc[0].id_a].extra["trans_inv"] == [[1, 0, 0], [0, 1, 0]]
    table = pq.read_table(next((tmp_path / "run" / "pairs" / "mesh").rglob("*.parquet")))
    assert table.num_rows == 3 and table["jpg_0"].null_count == 3


def test_an_invalid_pair_is_one_error(tmp_path):
    broken = [pair(seed=i) for i in range(5)]
    del broken[0]["w_twist"]
    broken[1]["l_joints"] = [[1, 2], [3]]
    broken[2]["l_twist"] = [[1, 2, 3]] * 23
    broken[3]["w_joints"][4][1] = None
    (tmp_path / "pairs.json").write_text(json.dumps([*broken, 7]))
    code, candidates, state = imported(tmp_path / "pairs.json", tmp_path / "run")
    assert code == 3 and len(candidates) == 2 and state["counts"]["comparisons"] == 1
    reasons = [
        "'w_twist' is missing",
        "l_joints is not an array",
        "must be [K, 2]",
        "joints3d has NaN or infinity",
        "row 6",
    ]
    assert [key for key, reason in zip("01235", reasons) if reason in state["failed"][key]] == list("01235")


def test_a_truncated_pair_file_is_a_usage_error_and_leaves_nothing(tmp_path, capfd):
    text = json.dumps([pair(), pair("b.jpg", 1)])
    (tmp_path / "pairs.json").write_text(text[:-500])
    code, candidates, state = imported(tmp_path / "pairs.json", tmp_path / "run")
    assert code == 2 and not candidates and "pairs.json: row 2: not valid JSON" in capfd.readouterr().err
    (tmp_path / "pairs.json").write_text(text)
    code, candidates, state = imported(tmp_path / "pairs.json", tmp_path / "run")
    assert code == 0 and len(candidates) == 4 and state["counts"]["comparisons"] == 2


# ---- what cannot be used


def test_each_unusable_file_is_one_error_and_the_others_are_imported(tmp_path):
    path, _ = regressor(tmp_path)
    source = tmp_path / "s"
    header = (
        "ply\nformat binary_little_endian 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
    )
    header += "element face 10000000\nproperty list uchar int vertex_indices\nend_header\n"
    nan = body(1)
    nan[77] = np.nan
    write_ply(source / "a" / "0.ply", body(0), FACES[:9])
    (source / "a" / "1.ply").write_bytes(b"\x89PNG\r\n\x1a\n" * 20)
    write_ply(source / "a" / "2.ply", nan)
    write_ply(source / "a" / "3.ply", body(2, 100))
    write_ply(source / "a" / "4.ply", body(2, 3), head=header)
    write_obj(source / "a" / "5.obj", body(3), [(0, 1, V)])
    (source / "a" / "6.obj").write_text("hello\n")
    (source / "a" / "7.obj").write_text("v 1 2\n")
    (source / "a" / "8.ply").write_bytes(write_ply(tmp_path / "t.ply", body(4), FACES).read_bytes()[:-50_000])
    (source / "a" / "9.ply").write_bytes(b"")
    np.savez(source / "b.npz", vertices=np.stack([body(7), nan, body(8)]))
    np.savez(source / "c.npz", joints3d=np.ones((3, 14, 3)), betas=np.ones((2, 10)))
    (source / "d.npz").write_bytes((source / "b.npz").read_bytes()[:9000])
    np.savez(source / "e.npz", poses=np.ones((3, 72)))
    np.savez(source / "f.npz", joints3d=np.ones((3, 14, 3)), pose=np.ones((3, 72)))
    np.savez(source / "h.npz", vertices=np.array([{}], object))
    np.savez(source / "i.npz", joints3d=np.ones((1, 14, 3)) * [[[1000, 0, 0]]] * np.arange(14)[:, None])
    code, candidates, state = imported(source, tmp_path / "run", "--as", "mesh", "--joint-regressor", path)
    reasons = {
        "1.ply": "does not start with the line `ply`",
        "2.ply": "vertices has NaN or infinity in 1 of 6890 rows, first in row 77",
        "3.ply": "there are 100 vertices, but --joint-regressor is made for 6,890",
        "4.ply": "the file has 10,000,000 faces; at most 2,000,000 are allowed",
        "5.obj": "the faces refer to vertices 0 to 6890, but the mesh has 6890 vertices",
        "6.obj": "it has no line that starts with v",
        "7.obj": "line 1 is not a valid OBJ line: v 1 2",
        "8.ply": "truncated: it ends before the 6,888 rows of face",
        "9.ply": "does not start with the line `ply`",
        "b.npz row 1": "vertices has NaN or infinity",
        "c.npz": "differ in their number of rows: joints3d 3, betas 2",
        "d.npz": "not an .npz file, or is truncated",
        "e.npz": "neither joints3d nor vertices [M, ..., 3], only poses",
        "f.npz": "no valid pose_repr, which must be one of axis_angle, 6d",
        "h.npz": "pipelines/mesh/unpickle.py",
        "i.npz row 0": "are 13,000 m apart; if the file is in millimetres, give --scale 0.001",
    }
    failed = list(state["failed"].values())
    assert code == 3 and len(failed) == len(reasons)
    for name, reason in reasons.items():
        assert any(f"{name}: " in text and reason in text for text in failed), (name, failed)
    assert len(candidates) == 3 and {c.prompt for c in candidates} == {"a", "b"}


def test_joint_counts_must_match_the_names(tmp_path):
    np.savez(tmp_path / "a.npz", joints3d=np.ones((1, 17, 3)) * np.arange(17)[:, None] / 9)
    code, candidates, state = imported(tmp_path / "a.npz", tmp_path / "run", "--joint-names", "free18")
    assert code == 3 and not candidates and "there are 17 joints, but 18 joint names" in state["failed"]["0"]


def test_claims_in_an_npz_header_are_checked_before_reading(tmp_path):
    def claimed(name: str, shape: tuple, dtype: str = "<f4", data: bytes = b"") -> Path:
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("joints3d.npy", buffer.getvalue() + data)
        return tmp_path / name

    def error(path: Path) -> str:
        from prefkit.hub.importing.mesh_layouts import read_bodies

        (found,) = read_bodies(path, tmp_path)
        return str(found.error)

    assert "truncated: its header states" in error(claimed("a.npz", (10**12, 14, 3)))
    assert "zip bomb" in error(claimed("b.npz", (1, 25_000_000), data=bytes(100_000_000)))
    many = np.zeros((1, 2_000_001, 3), np.float32)
    np.savez(tmp_path / "c.npz", vertices=many)
    assert "vertices has 2,000,001 rows per hypothesis; at most 2,000,000" in error(tmp_path / "c.npz")


@pytest.mark.parametrize(
    "flags, reason",
    [
        (["--joint-regressor", "s/a.npz"], "must hold one matrix|not a .npy file"),
        (["--joint-regressor", "none.npy"], "none.npy"),
        (["--scale", "0"], "larger than 0"),
        (["--requests", "bad.jsonl"], "no text in the column `prompt`"),
    ],
)
def test_unusable_options_are_usage_errors(tmp_path, monkeypatch, capfd, flags, reason):
    import re

    monkeypatch.chdir(tmp_path)
    Path("s").mkdir()
    np.savez("s/a.npz", joints3d=np.ones((1, 18, 3)))
    Path("bad.jsonl").write_text('{"name": "x"}\n')
    assert cli(["import", "s", "run", *flags]) == 2
    assert re.search(reason, capfd.readouterr().err)
