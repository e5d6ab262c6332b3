"""Scorers of meshes: errors and reprojection against plain loops, what is missing or invalid, the ranking scorer's contract."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from prefkit.errors import UsageError
from prefkit.fit.fitters.mesh import MeshFit
from prefkit.fit.folder import FitFolder, save_tensors
from prefkit.mesh.body import HIPS, JOINT_NAMES, LIMBS, load_body
from prefkit.mesh.candidates import hypotheses
from prefkit.mesh.observed import observed
from prefkit.mesh.payload import Mesh
from prefkit.mesh.ranking.features import Layout, features
from prefkit.mesh.ranking.ranker import MeshRanker
from prefkit.mesh.rotations import from_matrix, to_matrix
from prefkit.score.core import make_scorer, score_batch
from prefkit.types import Candidate

CAMERA = {"focal": 500.0, "principal": [130.0, 120.0], "size": [256, 256]}
BOX = [60.0, 20.0, 100.0, 200.0]


def person(seed, spread=0.3):
    """A posed body 4 m away: rotations [20, 6], joints [18, 3], vertices."""
    torch.manual_seed(seed)
    matrices = to_matrix(torch.randn(1, 20, 3) * spread, "axis_angle")
    posed = load_body().pose(matrices, None, torch.tensor([[0.1, 0.0, 4.0]]))
    return from_matrix(matrices, "6d")[0].numpy(), posed.joints[0].numpy(), posed.vertices[0].numpy()


def pixels(joints):
    """A plain pinhole projection."""
    return np.stack([j[:2] / j[2] * CAMERA["focal"] + CAMERA["principal"] for j in joints.astype(np.float64)])


def request(truth=0, **more):
    """The extra columns of a request whose truth is person `truth`; None removes a column."""
    rotations, joints, _ = person(truth)
    extra = {
        "keypoints2d": [[x, y, 1.0] for x, y in pixels(joints)],
        "bbox": BOX,
        "camera": CAMERA,
        "true_joints3d": joints.tolist(),
        "true_rotations": rotations.tolist(),
    }
    # stored requests are JSON
    return json.loads(json.dumps({k: v for k, v in (extra | more).items() if v is not None}))


def candidate(payload, extra, index=0):
    payload = payload.pack() if isinstance(payload, Mesh) else payload
    return Candidate(f"c{index}", "r", index, index, payload=payload, extra=extra)


def mesh(seed, **more):
    return Mesh(person(seed)[1], body_model="free", joint_names=JOINT_NAMES, **more)


def score(name, payload, extra, **options):
    scorer = make_scorer(name, options)
    scorer.load("cpu", "float32")
    (found,) = score_batch(scorer, [candidate(payload, extra)])
    return found


def rooted(joints):
    return joints.astype(np.float64) - joints[list(HIPS)].astype(np.float64).mean(0)


def aligned(a, b):
    """a after the best similarity transform, in float64 (Kabsch)."""
    x, y = a.astype(np.float64) - a.mean(0), b.astype(np.float64) - b.mean(0)
    u, s, vt = np.linalg.svd(x.T @ y)
    d = np.diag([1, 1, np.sign(np.linalg.det(u @ vt))])
    return x @ u @ d @ vt * (s @ np.diag(d)) / (x**2).sum() + b.mean(0)


def distance(a, b):
    return np.linalg.norm(a - b, axis=-1) * 1000


def test_errors_are_those_of_a_plain_computation():
    rotations, joints, vertices = person(1)
    _, true, true_vertices = person(0)
    found = score("mesh_error", mesh(1, vertices=vertices), request())
    assert found.value == pytest.approx(-distance(rooted(joints), rooted(true)).mean(), rel=1e-4)
    assert found.aspects["pa_mpjpe"] == pytest.approx(distance(aligned(joints, true), true).mean(), rel=1e-4)
    surface = distance(vertices - joints[list(HIPS)].mean(0), true_vertices - true[list(HIPS)].mean(0)).mean()
    assert found.aspects["mpvpe"] == pytest.approx(surface, rel=1e-4)
    assert set(found.aspects) == {"mpjpe", "pa_mpjpe", "mpvpe"}
    posed = score("mesh_error", mesh(1, rotations=rotations), request())  # vertices from the pose
    assert posed.aspects["mpvpe"] == pytest.approx(surface, rel=1e-4)
    given = score("mesh_error", mesh(1, vertices=vertices), request(true_vertices=true_vertices.tolist()))
    assert given.aspects["mpvpe"] == pytest.approx(surface, rel=1e-4)


def test_moving_or_scaling_a_mesh_changes_what_it_must():
    same = score("mesh_error", Mesh(person(0)[1] + [0.5, -1, 2], joint_names=JOINT_NAMES), request())
    assert same.value == pytest.approx(0, abs=1e-3) and "mpvpe" not in same.aspects
    larger = score("mesh_error", Mesh(person(0)[1] * 1.1, joint_names=JOINT_NAMES), request())
    assert larger.value < -10 and larger.aspects["pa_mpjpe"] == pytest.approx(0, abs=0.01)


def test_visible_joints_and_hidden_joints():
    visible = [n % 3 != 0 for n in range(18)]
    found = score("mesh_error", mesh(1), request(visible=[int(v) for v in visible]))
    each = distance(rooted(person(1)[1]), rooted(person(0)[1]))
    mask = np.array(visible)
    assert found.aspects["mpjpe_visible"] == pytest.approx(each[mask].mean(), rel=1e-4)
    assert found.aspects["mpjpe_hidden"] == pytest.approx(each[~mask].mean(), rel=1e-4)
    assert found.aspects["mpjpe"] == pytest.approx(each.mean(), rel=1e-4)
    assert "mpjpe_hidden" not in score("mesh_error", mesh(1), request(visible=[1] * 18)).aspects


def test_a_batch_of_several_bodies_and_requests():
    """Bodies with other joints are computed beside each other, each against its own truth."""
    named = [f"j{n}" for n in range(5)]
    five = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    batch = [
        candidate(mesh(1), request()),
        candidate(Mesh(five[0], joint_names=named), request(true_joints3d=five[1].tolist())),
        candidate(mesh(1), request(truth=2)),
    ]
    scorer = make_scorer("mesh_error", {})
    alone = [scorer.score([c])[0].value for c in batch]
    assert [s.value for s in scorer.score(batch)] == pytest.approx(alone, rel=1e-5)
    plain = five[:, :] - five[:, :1]  # no hips: joint 0 is the root
    assert alone[1] == pytest.approx(-distance(plain[0], plain[1]).mean(), rel=1e-4)


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"true_joints3d": None}, "no true_joints3d"),
        ({"true_joints3d": [[0, 0, 4]] * 14}, "14 joints, but the candidate has 18"),
        ({"true_joints3d": [[0, 0, None]] * 18}, "true_joints3d has NaN"),
        ({"true_joints3d": "unknown"}, "true_joints3d must be a list of rows"),
        ({"visible": [1, 0]}, "list of 18 numbers"),
        ({"true_rotations": [[1, 0, 0, 0, 1, 0]] * 7}, "20 rotations, not 7"),
    ],
)
def test_errors_without_a_usable_truth_fail(change, reason):
    found = score("mesh_error", mesh(1), request(**change))
    assert found.value is None and reason in found.error


def test_payloads_that_are_no_mesh_fail_alone(ranking):
    """Latents, nothing, rubbish and NaN: a reason each, and the mesh beside them is scored."""
    joints = person(1)[1]
    broken = save({"joints3d": np.where(np.arange(54).reshape(18, 3) == 5, np.nan, joints).astype(np.float32)})
    payloads = [save({"latents": np.zeros((4, 8, 8), np.float32)}), None, b"rubbish", broken, mesh(1)]
    batch = [candidate(p, request(), n) for n, p in enumerate(payloads)]
    for name, options in (("mesh_error", {}), ("mesh_reprojection", {}), ("mesh", {"model": str(ranking())})):
        scorer = make_scorer(name, options)
        scorer.load("cpu", "float32")
        found = scorer.score(batch)
        assert [s.value is None for s in found] == [True, True, True, True, False], name
        assert "latents" in found[0].error and "no payload" in found[1].error and "NaN" in found[3].error


@pytest.mark.parametrize("camera", [CAMERA, None])
def test_reprojection_is_that_of_a_plain_loop(camera):
    rng = np.random.default_rng(0)
    _, joints, _ = person(1)
    keypoints = np.c_[pixels(person(0)[1]), rng.uniform(0.1, 1, 18)]
    keypoints[3] = np.nan, np.nan, 0  # no keypoint
    found = score("mesh_reprojection", mesh(1), request(keypoints2d=keypoints.tolist(), camera=camera))
    seen = keypoints[:, 2] > 0
    k, c = keypoints[seen, :2], keypoints[seen, 2]
    if camera:
        shown = pixels(joints)[seen]
    else:  # weighted least squares of scale and offset
        x = joints[seen, :2].astype(np.float64)
        zero, one = np.zeros(len(x)), np.ones(len(x))
        a = np.r_[np.c_[x[:, 0], one, zero], np.c_[x[:, 1], zero, one]] * np.sqrt(np.r_[c, c])[:, None]
        s, u, v = np.linalg.lstsq(a, np.r_[k[:, 0], k[:, 1]] * np.sqrt(np.r_[c, c]), rcond=None)[0]
        shown = x * s + [u, v]
    error = (np.linalg.norm(shown - k, axis=1) * c).sum() / c.sum()
    assert found.aspects["reproj_px"] == pytest.approx(error, rel=1e-4)
    assert found.value == pytest.approx(-error / 100, rel=1e-4)  # the box is 100 x 200 px
    assert found.aspects["n_visible"] == (c >= 0.5).sum()
    exact = score("mesh_reprojection", mesh(0), request(camera=camera))
    assert exact.value == pytest.approx(0, abs=1e-4 if camera else 0.05)  # a weak camera has no perspective


def test_keypoints_by_convention():
    """BlazePose's landmarks and the twelve limb joints are matched by name; other landmarks do not count."""
    wanted = score("mesh_reprojection", mesh(1), request()).value
    limbs = [JOINT_NAMES.index(name) for name in LIMBS]
    shown = pixels(person(0)[1])
    twelve = [[*shown[n], 1.0] for n in limbs]
    by_limb = score("mesh_reprojection", mesh(1), request(keypoints2d=twelve, keypoint_names="free12"))
    assert by_limb.aspects["n_visible"] == 12 and by_limb.value != wanted
    landmarks = np.tile([7.0, 7.0, 1.0], (33, 1))
    for at, name in zip((11, 13, 15, 12, 14, 16, 23, 25, 27, 24, 26, 28), LIMBS):
        landmarks[at] = [*shown[JOINT_NAMES.index(name)], 1.0]
    blaze = score("mesh_reprojection", mesh(1), request(keypoints2d=landmarks.tolist(), keypoint_names="blazepose33"))
    assert blaze.value == pytest.approx(by_limb.value, rel=1e-5)
    own = score("mesh_reprojection", mesh(1), request(keypoints2d=twelve, keypoint_names=list(LIMBS)))
    assert own.value == by_limb.value


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"keypoints2d": [[1, 2, 1]] * 17}, "17 rows"),
        ({"keypoints2d": [[1, 2]] * 18}, "rows of 3 numbers"),
        ({"keypoints2d": [[1, None, 1]] * 18}, "NaN"),
        ({"keypoints2d": [[1, 2, 0]] * 18}, "no keypoint has a confidence above 0"),
        ({"keypoint_names": "coco"}, "'coco' is unknown"),
        ({"bbox": [1, 1, 0, 0]}, "width and height"),
        ({"bbox": None, "keypoints2d": [[1, 2, 1]] * 18}, "one point"),
        ({"camera": {"focal": -1}}, "camera"),
    ],
)
def test_requests_that_cannot_be_read_fail(change, reason, ranking):
    for name, options in (("mesh_reprojection", {}), ("mesh", {"model": str(ranking())})):
        found = score(name, mesh(1), request(**change), **options)
        assert found.value is None and reason in found.error


def test_joints_behind_the_camera_fail(ranking):
    behind = Mesh(person(1)[1] - [0, 0, 4], joint_names=JOINT_NAMES)
    for name, options in (("mesh_reprojection", {}), ("mesh", {"model": str(ranking())})):
        found = score(name, behind, request(), **options)
        assert found.value is None and "behind the camera" in found.error
    assert score("mesh_reprojection", behind, request(camera=None)).value is not None


@pytest.fixture
def ranking(tmp_path):
    """A folder as `prefkit fit mesh` writes it, with random weights."""

    def build(pose=False):
        folder = tmp_path / f"pose-{pose}"
        if not folder.exists():
            layout = Layout(tuple(JOINT_NAMES), 20 if pose else 0)
            torch.manual_seed(0)
            seen, meshes = observed(request(), JOINT_NAMES), [mesh(1, rotations=person(1)[0])] * 2
            net = MeshRanker(features(seen, meshes, layout)[0].shape[1], 16)
            spec = {"features": {"joints": list(layout.joints), "rotations": layout.rotations}}
            FitFolder("mesh", str(folder), MeshFit(), {}).write(
                spec, lambda place: save_tensors(place, net.state_dict())
            )
        return folder

    return build


@pytest.mark.parametrize("pose", [False, True])
def test_the_ranking_is_the_networks_output_for_the_whole_request(ranking, pose):
    members = [mesh(n, rotations=person(n)[0]) for n in (1, 2, 3)]
    scorer = make_scorer("mesh", {"model": str(ranking(pose))})
    scorer.load("cpu", "float32")
    batch = [candidate(m, request(), n) for n, m in enumerate(members)]
    found = scorer.score(batch)
    rows, error = features(observed(request(), JOINT_NAMES), members, scorer.layout)
    assert [s.value for s in found] == pytest.approx(scorer.net(rows).tolist(), abs=1e-6)
    assert [s.aspects["reproj_px"] for s in found] == pytest.approx((error * 100).tolist(), rel=1e-5)
    assert scorer.scope == scorer.spec().scope == "within_request"
    assert [s.value for s in scorer.score(batch[::-1])][::-1] == pytest.approx([s.value for s in found], abs=1e-5)
    # the mean hypothesis is that of the request: fewer hypotheses give other values
    assert scorer.score(batch[:2])[0].value != found[0].value
    # two requests in one call do not mix
    other = [Candidate(f"d{n}", "other", n, n, payload=c.payload, extra=request(truth=5)) for n, c in enumerate(batch)]
    mixed = scorer.score([c for both in zip(batch, other) for c in both])
    assert [s.value for s in mixed[::2]] == [s.value for s in found]


def test_another_representation_of_the_pose_gives_the_same_features():
    layout = Layout(tuple(JOINT_NAMES), 20)
    matrices = to_matrix(torch.from_numpy(person(1)[0]), "6d")
    first = [mesh(1, rotations=person(1)[0])]
    for kind in ("axis_angle", "quaternion", "matrix"):
        other = [mesh(1, rotations=from_matrix(matrices, kind).numpy(), pose_repr=kind)]
        a, b = (features(observed(request(), JOINT_NAMES), meshes, layout)[0] for meshes in (first, other))
        assert torch.allclose(a, b, atol=1e-5)


def test_a_mesh_without_what_the_fit_used_fails_with_the_remedy(ranking):
    found = score("mesh", mesh(1), request(), model=str(ranking(True)))
    assert found.value is None and "no rotations" in found.error and "without --pose true" in found.error
    renamed = Mesh(person(1)[1][:14], joint_names=[f"j{n}" for n in range(14)])
    assert "14 joints (j0" in score("mesh", renamed, request(), model=str(ranking())).error
    # it does not count in the others' mean
    full = [mesh(n, rotations=person(n)[0]) for n in (1, 2)]
    batch = [candidate(m, request(), n) for n, m in enumerate([*full, mesh(3)])]
    _, usable = hypotheses(batch, Layout(tuple(JOINT_NAMES), 20))
    assert isinstance(usable[0], Mesh) and usable[2].error
    scorer = make_scorer("mesh", {"model": str(ranking(True))})
    scorer.load("cpu", "float32")
    assert [s.value for s in scorer.score(batch)][:2] == [s.value for s in scorer.score(batch[:2])]


def test_weights_of_something_else_are_refused(ranking, tmp_path):
    FitFolder("mesh", str(tmp_path / "odd"), MeshFit(), {}).write(
        {"features": {"joints": list(JOINT_NAMES), "rotations": 0}},
        lambda place: save_tensors(place, {"head": torch.zeros(2)}),
    )
    with pytest.raises(UsageError, match="no usable network for the scorer `mesh`"):
        make_scorer("mesh", {"model": str(tmp_path / "odd")}).load("cpu", "float32")
    with pytest.raises(UsageError, match="`model` is not set"):
        make_scorer("mesh", {})


def test_specs_say_what_they_are_for():
    assert make_scorer("mesh_error", {}).spec().evaluation_only
    assert not make_scorer("mesh_reprojection", {}).spec().evaluation_only
