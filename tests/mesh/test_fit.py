"""`prefkit fit mesh`: losses and measures against plain loops, data and splits, a fit that ranks held-out requests."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from prefkit.errors import UsageError
from prefkit.fit.fitters.mesh import MeshFit, MeshFitter
from prefkit.fit.meshes.hypotheses import read_hypotheses, split
from prefkit.fit.meshes.measures import compared, within
from prefkit.fit.meshes.train import accuracy, listwise, pairwise
from prefkit.mesh.body import JOINT_NAMES, load_body
from prefkit.mesh.candidates import hypotheses
from prefkit.mesh.mirror import can_mirror, mirrored
from prefkit.mesh.payload import Mesh
from prefkit.mesh.ranking.features import Layout, features
from prefkit.mesh.ranking.threads import one_thread
from prefkit.mesh.rotations import from_matrix, to_matrix
from prefkit.score.core import make_scorer
from prefkit.store import Store
from prefkit.types import Request

CAMERA = {"focal": 500.0, "principal": [128.0, 128.0], "size": [256, 256]}
NOISE = (0.02, 0.08, 0.15, 0.25, 0.35)  # radians, of the five hypotheses
QUICK = MeshFit(width=64, steps=150, batch_size=32, validation_share=0.1, test_share=0.2)
NAN = math.nan


def run_of(folder, count=200, pose=True, seed=0, split_of=lambda n: "train"):
    """A run of `count` requests: a pose each, seen with 1 % noise, and five hypotheses with noise of known size."""
    rng = torch.Generator().manual_seed(seed)
    vectors = torch.randn(count, 1, 20, 3, generator=rng) * 0.3
    noise = torch.tensor(NOISE)[:, None, None] * torch.randn(count, 5, 20, 3, generator=rng)
    matrices = to_matrix(torch.cat([vectors, vectors + noise], 1).flatten(0, 1), "axis_angle")
    place = torch.tensor([[0.0, 0.0, 4.0]]).expand(len(matrices), 3)
    joints = load_body().joints_of(matrices, None, place).unflatten(0, (count, 6))
    rotations = from_matrix(matrices, "6d").unflatten(0, (count, 6))
    pixels = joints[:, 0, :, :2] / joints[:, 0, :, 2:] * 500 + 128
    pixels += torch.randn(pixels.shape, generator=rng)
    store, requests, rows = Store.create(folder), [], []
    for n in range(count):
        keypoints = torch.cat([pixels[n], torch.ones(18, 1)], 1).tolist()
        extra = {"keypoints2d": keypoints, "camera": CAMERA, "true_joints3d": joints[n, 0].tolist(), "clip": n // 4}
        requests.append(Request(f"r{n:03d}", f"person {n}", split_of(n), extra))
        for k in range(5):
            mesh = Mesh(joints[n, k + 1].numpy(), joint_names=JOINT_NAMES, body_model="free")
            mesh = replace(mesh, rotations=rotations[n, k + 1].numpy()) if pose else mesh
            rows.append(row(f"r{n:03d}", k, mesh.pack()))
    store.write_requests(requests)
    store.candidates("base").append(rows)
    return store


def row(request, index, payload):
    empty = {"image": None, "path": None, "sha256": None, "extra": "{}", "error": None}
    return empty | {"id": f"{request}-{index}", "request_id": request, "index": index, "seed": 0, "payload": payload}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("meshes") / "run"
    run_of(folder)
    return folder


def read(folder, generators=(), score="mesh_error", pose=True, group=""):
    return read_hypotheses(str(folder), generators, score, pose, group)


def test_losses_are_those_of_plain_loops():
    rng = np.random.default_rng(0)
    scores, errors = rng.normal(size=(3, 4)), rng.uniform(50, 150, (3, 4, 2))
    errors[1, 2] = errors[1, 0]  # a tie
    errors[2, 3] = NAN  # a missing hypothesis
    pairs = lists = 0.0
    for s, e in zip(scores, errors):
        for k in range(2):
            there = [n for n in range(4) if not np.isnan(e[n, k])]
            for i, j in itertools.combinations(there, 2):
                if e[i, k] != e[j, k]:
                    better, worse = (i, j) if e[i, k] < e[j, k] else (j, i)
                    pairs += math.log1p(math.exp(-5 * (s[better] - s[worse]))) / 3
            if np.isnan(e[0, k]) or e[0, k] == e[2, k]:
                continue
            order = sorted(there, key=lambda n: e[n, k])
            for at in range(len(order)):
                rest = np.exp(5 * s[order[at:]]).sum()
                lists += (math.log(rest) - 5 * s[order[at]]) / 3
    tensors = torch.tensor(scores), torch.tensor(errors)
    assert float(pairwise(*tensors)) == pytest.approx(pairs, rel=1e-6)
    untied = torch.tensor(scores)[[0, 2]], torch.tensor(errors)[[0, 2]]
    assert float(listwise(*untied)) * 2 == pytest.approx(lists * 3, rel=1e-6)


def test_a_missing_hypothesis_has_no_gradient():
    errors = torch.tensor([[[80.0], [90.0], [NAN]]])
    for loss in (pairwise, listwise):
        scores = torch.tensor([[0.1, 0.3, 9.0]], requires_grad=True)
        loss(scores, errors).backward()
        assert scores.grad.isfinite().all() and scores.grad[0, 2] == 0 and scores.grad[0, 0] < 0 < scores.grad[0, 1]


def test_measures_are_those_of_plain_loops():
    errors = [np.array([[60.0, 9], [50, 9], [90, 9]]), np.array([[70.0, 5], [70, 6]]), np.array([[10.0, 1], [30, 2]])]
    scores = [np.array([2.0, 1, 0]), np.array([1.0, 0]), np.array([0.0, 0])]
    rows = within(scores, [e[:, 0] for e in errors])
    assert rows["srcc"][0] == pytest.approx(0.5) and np.isnan(rows["srcc"][1]) and rows["srcc"][2] == 0
    assert rows["pair_accuracy"][[0, 2]].tolist() == pytest.approx([2 / 3, 0.5])  # equal scores count as half
    assert rows["selected"].tolist() == [60, 70, 10] and rows["oracle"].tolist() == [50, 70, 10]
    found = compared(scores, [-e[:, 0] for e in errors], errors, ("mpjpe", "pa_mpjpe"))
    assert found["srcc_reprojection"]["mean"] == found["pair_accuracy_reprojection"]["mean"] == pytest.approx(1)
    assert found["selection_gain"]["mean"] == pytest.approx((200 / 3 - 60 + 0 + 10) / 3)
    assert found["selected_difference"]["mean"] == pytest.approx(10 / 3)
    assert found["pooled_plcc_mpjpe_reprojection"] == {"mean": pytest.approx(1), "n": 7}
    assert found["srcc_pa_mpjpe"]["mean"] == pytest.approx((1 + 0) / 2)
    plain = accuracy(torch.tensor([[2.0, 1, 0], [1, 0, 0]]), torch.tensor([[[60.0], [50], [90]], [[70], [80], [NAN]]]))
    assert plain == pytest.approx(3 / 4)


def test_the_fit_ranks_held_out_requests_and_repeats_bit_for_bit(run, tmp_path, cli):
    """Chance is a correlation of 0 and half of the pairs."""
    flags = [f"--{name}={getattr(QUICK, name)}" for name in ("width", "steps", "batch_size", "test_share")]
    threads = torch.get_num_threads()
    code, out, err = cli("fit", "mesh", "--run", run, *flags, "--out", tmp_path / "a", "--json")
    assert code == 0, err
    assert torch.get_num_threads() == threads
    spec = json.loads(out)
    found = spec["validation"]
    assert found["srcc"]["low"] > 0.7 and found["pair_accuracy"]["low"] > 0.8 and found["srcc"]["n"] == 40
    assert found["oracle"]["mean"] <= found["selected"]["mean"] < 0.6 * found["random"]["mean"]
    assert found["srcc_reprojection"]["low"] > 0.5 and spec["measures"] == ["mpjpe", "pa_mpjpe"]
    assert spec["counts"] | {"requests": 200, "hypotheses": 1000, "test": 40, "validation": 20} == spec["counts"]
    assert cli("fit", "mesh", "--run", run, *flags, "--out", tmp_path / "b")[0] == 0
    first, again = ((tmp_path / name / "weights.safetensors").read_bytes() for name in "ab")
    assert first == again
    code, _, err = cli("fit", "mesh", "--run", run, *flags, "--out", tmp_path / "a")
    assert code == 0 and "nothing to do" in err
    code, _, err = cli("fit", "mesh", "--run", run, *flags, "--out", tmp_path / "a", "--seed", 1)
    assert code == 1 and "settings.seed" in err
    table = cli("fit", "mesh", "--run", run, *flags, "--out", tmp_path / "a")[1]
    assert "srcc_reprojection" in table and "selection_gain" in table
    _scores_as_measured(run, tmp_path / "a", found)


def _scores_as_measured(run, folder, found):
    """The scorer gives the values that the fit measured: the same correlation on the same requests."""
    scorer = make_scorer("mesh", {"model": str(folder)})
    scorer.load("cpu", "float32")
    data = read(run)
    held = {data.groups[n] for n in split(data, QUICK.validation_share, QUICK.test_share, QUICK.seed)["test"]}
    batch = [c for c in Store(run).iter_candidates() if c.request_id in held]
    errors = np.array([-s.value for s in make_scorer("mesh_error", {}).score(batch)]).reshape(-1, 5)
    values = np.array([s.value for s in scorer.score(batch)]).reshape(-1, 5)
    assert within(list(values), list(errors))["srcc"].mean() == pytest.approx(found["srcc"]["mean"], abs=1e-6)


@pytest.mark.parametrize("change", [{"loss": "listwise"}, {"pose": True}])
def test_another_loss_and_the_pose_rank_too(run, tmp_path, change):
    spec = MeshFitter(replace(QUICK, run=str(run), out=str(tmp_path / "fit"), **change)).run()
    assert spec["validation"]["pair_accuracy"]["low"] > 0.8
    assert spec["features"]["rotations"] == (20 if "pose" in change else 0)


def test_mirror_images_are_those_of_the_mirrored_bodies(run):
    """The body of the mirrored rotations has the mirrored joints, so the features of both agree in all that is seen."""
    batch = [c for c in Store(run).iter_candidates() if c.request_id == "r003"]
    layout = Layout(tuple(JOINT_NAMES), 20)
    seen, meshes = hypotheses(batch, layout)
    picture, turned = mirrored(seen, meshes, layout)
    matrices = to_matrix(torch.stack([torch.from_numpy(mesh.rotations) for mesh in turned]), "6d")
    joints = load_body().joints_of(matrices, None, torch.tensor([[0.0, 0.0, 4.0]]).expand(5, 3))
    assert np.allclose(joints.numpy(), np.stack([mesh.joints3d for mesh in turned]), atol=0.02)  # nearly symmetric body
    assert torch.allclose(features(seen, meshes, layout)[1], features(picture, turned, layout)[1], atol=1e-5)
    again, back = mirrored(picture, turned, layout)
    assert torch.allclose(features(seen, meshes, layout)[0], features(again, back, layout)[0], atol=1e-4)
    assert not can_mirror(Layout(("a", "b"), 0)) and not can_mirror(Layout(("left_hip", "pelvis"), 0))
    assert can_mirror(Layout(("left_hip", "pelvis", "right_hip"), 0))
    assert not can_mirror(Layout(tuple(JOINT_NAMES), 24))


def test_meshes_without_pose_are_read_as_joints(tmp_path):
    data = read(run_of(tmp_path / "r", 4, pose=False).folder)
    assert data.layout.rotations == 0 and data.features.shape[:2] == (4, 5)


def test_errors_come_from_the_scores_if_they_are_there(run, tmp_path):
    store = run_of(tmp_path / "r", 6)
    assert read(store.folder).measures == ("mpjpe", "pa_mpjpe")  # computed
    values = [{"id": f"r{n:03d}-{k}", "value": float(-n - k), "aspects": None} for n in range(5) for k in range(5)]
    store.scores("mine").append([v | {"text": None, "error": None} for v in values])
    mine = read(store.folder, score="mine")
    assert mine.measures == ("error",) and mine.errors[2, :, 0].tolist() == [2, 3, 4, 5, 6]
    assert mine.left_out["no value in the scores mine"] == 5 and len(mine.groups) == 5
    aspects = json.dumps({"mpjpe": 80.0, "pa_mpjpe": 60.0, "mpjpe_visible": 1.0})
    rows = [{"id": f"r{n:03d}-{k}", "value": -80.0, "aspects": aspects} for n in range(6) for k in range(5)]
    store.scores("mesh_error").append([v | {"text": None, "error": None} for v in rows])
    assert read(store.folder).errors[0, 0].tolist() == [80, 60]
    with pytest.raises(UsageError, match="no scores 'other'"):
        read(store.folder, score="other")


def test_what_is_no_mesh_or_stands_alone_is_left_out_and_counted(tmp_path):
    store = run_of(tmp_path / "r", 5)
    mesh = Mesh(np.full((18, 3), [0, 0, 4], np.float32), joint_names=JOINT_NAMES)
    store.candidates("extra").append([row("r000", 8, b"rubbish"), row("r001", 9, mesh.pack())])
    (store.folder / "decisions.csv").write_text(
        "id,verdict,reason,by\n" + "".join(f"r002-{k},reject,,me\n" for k in range(4))
    )
    data = read(store.folder)
    assert data.present.sum(1).tolist() == [5, 5, 5, 5]  # r002 has one left; r001's sixth has no pose
    assert data.left_out["the only hypothesis of its request"] == 1
    assert sum("not a safetensors file" in reason for reason in data.left_out) == 1
    assert sum("no rotations" in reason for reason in data.left_out) == 1
    assert read(store.folder, ("base",)).content == data.content  # what is left out does not count
    with pytest.raises(UsageError, match="no generator other; it has base, extra"):
        read(store.folder, ("other",))
    with pytest.raises(UsageError, match="no request with two meshes of known error. Left out: .*not a mesh"):
        lone = Store.create(tmp_path / "lone")
        lone.write_requests([Request("r000", "p")])
        lone.candidates("base").append([row("r000", 0, b"rubbish")])
        read(lone.folder)


def test_splits_keep_groups_together_and_hold_out_test_requests(run, tmp_path):
    data = read(run, group="clip")
    parts = split(data, 0.1, 0.2, 0)
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 140, "validation": 20, "test": 40}
    of = [{data.groups[n] for n in rows} for rows in parts.values()]
    assert not of[0] & of[1] and not of[0] & of[2] and not of[1] & of[2]
    assert split(data, 0.1, 0.2, 1)["test"] != parts["test"]
    store = run_of(tmp_path / "r", 20, split_of=lambda n: "test" if n % 4 == 0 else "train")
    held = split(read(store.folder), 0.1, 0.2, 0)
    assert held["test"] == list(range(0, 20, 4)) and len(held["train"]) == 13
    with pytest.raises(UsageError, match="no column 'scene'"):
        read(run, group="scene")
    with pytest.raises(UsageError, match="2 groups of requests are too few"):
        split(read(run_of(tmp_path / "two", 2).folder), 0.1, 0.1, 0)


def test_one_thread_is_given_back_after_an_error():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(ValueError), one_thread():
            assert torch.get_num_threads() == 1
            raise ValueError
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
