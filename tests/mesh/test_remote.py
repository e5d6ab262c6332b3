"""exec: and http: scorers on meshes: the items that they receive, and the messages about one that does not answer."""

from __future__ import annotations

import sys
import threading

import numpy as np
import pytest
from bodies import people

from prefkit.errors import PluginError
from prefkit.mesh.body import JOINT_NAMES
from prefkit.mesh.payload import Mesh
from prefkit.score.core import check_requires, make_scorer, score_batch
from prefkit.score.remote import waiting
from prefkit.score.remote.server import http_server
from prefkit.score.serve import Service
from prefkit.types import Candidate

HELLO = '{"protocol": 1, "spec": {"name": "depth", "version": "1"}, "requires": ["arrays", "keypoints2d"]}'
DEPTH = """
import json, sys
print('HELLO')
for line in sys.stdin:
    request = json.loads(line)
    scores = []
    for item in request["items"]:
        index = item["metadata"]["joint_names"].index("Head")
        aspects = {"keypoints": len(item["extra"]["keypoints2d"])}
        scores.append({"value": item["arrays"]["joints3d"][index][2], "aspects": aspects})
    print(json.dumps({"request": request["request"], "scores": scores}))
"""


@pytest.fixture
def meshes():
    rows = people(5)
    return [
        Candidate(
            f"c{i}", f"r{i}", 0, 0, row["prompt"], extra=row,
            payload=Mesh(np.array(row["true_joints3d"], np.float32), joint_names=JOINT_NAMES, body_model="free").pack(),
        )
        for i, row in enumerate(rows)
    ]  # fmt: skip


@pytest.fixture
def process(tmp_path):
    """Return a function (code, options) -> an exec: scorer; its process is ended after the test."""
    made = []

    def make(code, **options):
        (tmp_path / "judge.py").write_text(code)
        made.append(make_scorer(f"exec:{sys.executable} {tmp_path}/judge.py", options))
        return made[-1]

    yield make
    for scorer in made:
        scorer.stop()


def test_a_process_reads_the_arrays_of_meshes_without_safetensors_and_without_flushing(process, meshes):
    scorer = process(DEPTH.replace("HELLO", HELLO), timeout=30, start_timeout=30)
    assert scorer.requires == {"payload", "keypoints2d"}
    damaged = Candidate("x", "r9", 0, 0, "x", extra=meshes[0].extra, payload=b"none")
    scores = score_batch(scorer, [*meshes, damaged])
    head = JOINT_NAMES.index("Head")
    assert [s.value for s in scores[:5]] == [Mesh.unpack(c.payload).joints3d[head, 2] for c in meshes]
    assert scores[0].aspects == {"keypoints": 18} and "not a safetensors file" in scores[5].error


def test_a_candidate_without_a_mesh_is_refused_before_it_is_sent(process, meshes):
    scorer = process(DEPTH.replace("HELLO", HELLO), start_timeout=30)
    with pytest.raises(Exception, match="reads payloads, such as meshes, but candidate c has none"):
        check_requires(scorer, Candidate("c", "r", 0, 0, "x", b"png", extra=meshes[0].extra), "depth")


def test_a_served_mesh_scorer_gives_the_same_scores(meshes):
    own = make_scorer("mesh_reprojection", {})
    server = http_server(Service(own))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        remote = make_scorer(f"http://127.0.0.1:{server.server_port}", {"chunk": 2})
        assert remote.requires == {"payload", "keypoints2d"}
        assert remote.score(meshes) == own.score(meshes) and remote.score(meshes)[0].aspects["n_visible"] == 18
        remote.close()
    finally:
        server.shutdown()
        server.server_close()


def test_a_process_that_waits_for_a_request_before_its_hello_is_told_what_is_expected(process, monkeypatch, capsys):
    monkeypatch.setattr(waiting, "SLOW", 0.01)
    with pytest.raises(
        PluginError, match="within 1 s before its hello. prefkit sends nothing until it has received a first"
    ):
        process("import sys; sys.stdin.readline()", start_timeout=1.0).spec()
    assert "has not sent its hello yet. prefkit expects a first line such as" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("print(json.dumps({'scores': [1]}))", "which does not answer request 3"),
        ("print('0.5 points')", "a line that is not JSON"),
        ("sys.exit(5)", "ended with code 5"),
    ],
)
def test_a_process_that_never_answers_is_not_started_for_every_candidate(process, meshes, answer, reason):
    code = f"import json, sys\nprint('{HELLO}')\nfor line in sys.stdin:\n    {answer}\n"
    scorer = process(code, timeout=30, start_timeout=30)
    with pytest.raises(PluginError, match="started 3 times and failed without an answer") as error:
        score_batch(scorer, meshes)
    assert reason in str(error.value) and 'a line {"request": 3, "scores": [...]} with 1 scores' in str(error.value)
