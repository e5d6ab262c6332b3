"""Rewards through the scorers' own code: weights, missing ones, and scorers that never answer."""

from __future__ import annotations

import io
import threading

import numpy as np
import pytest
from PIL import Image

from prefkit.config import Recipe, Score
from prefkit.errors import UsageError
from prefkit.images import Background
from prefkit.score.core import make_scorer
from prefkit.score.run import scorer_of, scorer_spec
from prefkit.score.scorer_set import ScorerSet, values_of
from prefkit.score.serve import Service, http_server
from prefkit.train.online.rewards import BackgroundWorker, rewards
from prefkit.types import Candidate
from prefkit.types import Score as Answer

GROUPS = np.array([0, 0, 1, 1])


def test_rewards_are_weighted_sums_with_signs():
    columns = {"good": np.array([1.0, 2, 3, 4]), "bad": np.array([1.0, 0, 0, 5])}
    found = rewards(columns, {"good": 1, "bad": -1}, {"good": 2.0, "bad": 0.5}, GROUPS, "none")
    assert found == pytest.approx([1.5, 4, 6, 5.5])


def test_each_reward_can_be_normalised_over_the_round_before_it_is_weighted():
    columns = {"a": np.array([1.0, 2, 3, 4]), "b": np.array([0.0, 0, 0, 1000])}
    found = rewards(columns, {"a": 1, "b": 1}, {"a": 1.0, "b": 1.0}, GROUPS, "batch")
    z = [(v - v.mean()) / v.std(ddof=1) for v in columns.values()]
    assert found == pytest.approx(z[0] + z[1])


def test_a_missing_score_makes_the_reward_missing_never_zero():
    columns = {"a": np.array([1.0, np.nan, 3, 4]), "b": np.ones(4)}
    found = rewards(columns, {"a": 1, "b": 1}, {"a": 1.0, "b": 1.0}, GROUPS, "none")
    assert np.isnan(found).tolist() == [False, True, False, False]


def test_a_job_that_never_ends_is_given_up_and_the_others_go_on():
    beside, never = BackgroundWorker(), threading.Event()
    jobs = [beside.submit(lambda: 1), beside.submit(never.wait), beside.submit(lambda: 3)]
    assert [beside.result(job, 0.3) for job in jobs] == [1, None, 3]
    assert beside.result(beside.submit(lambda: 4), 5) == 4
    never.set()
    with pytest.raises(ZeroDivisionError):
        beside.result(beside.submit(lambda: 1 / 0), 5)
    beside.close()


def candidates(count):
    found = []
    for i in range(count):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(held := io.BytesIO(), "PNG")
        found.append(Candidate(str(i), "r", i, i, prompt="a cat", image=held.getvalue()))
    return found


def jury(**score):
    return ScorerSet(Recipe(score=score), list(score), "train.up.online")


def test_remote_scorers_are_called_as_prefkit_score_calls_them(tmp_path):
    """Through a real server, several calls under way at once, answers in the order of the candidates."""
    (tmp_path / "red.py").write_text(
        "def red(images, prompts):\n    return [image.getpixel((0, 0))[0] for image in images]\n"
    )
    service = Service(make_scorer(f"{tmp_path}/red.py:red", {}, "red"))
    service.scorer.load("cpu", "float32")
    server = http_server(service, "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    ours = jury(red=Score(use=f"http://127.0.0.1:{server.server_port}", batch_size=2))
    ours.load()
    found = ours.score([candidates(3), candidates(4)])
    assert values_of(found, "red").tolist() == [0, 1, 2, 0, 1, 2, 3]
    ours.close()
    server.shutdown()
    server.server_close()


def test_scorers_that_wait_for_another_machine_are_called_at_once():
    ours = jury(size=Score(use="jpeg"))
    together = threading.Barrier(3)

    class Waiting:
        scope, concurrency = "absolute", 3

        def score(self, batch):
            together.wait(10)  # breaks unless three calls are under way
            return [Answer(float(c.index)) for c in batch]

    ours.scorers["size"] = Waiting()
    assert values_of(ours.score([candidates(3), candidates(3)]), "size").tolist() == [0, 1, 2, 0, 1, 2]


def test_scorers_of_one_encoder_look_at_an_image_once(monkeypatch):
    """As in `prefkit score`: one network, and one embedding an image, whoever asks for it."""
    options = {"model": "tiny"}
    ours = jury(
        align=Score(use="clip", options=options, batch_size=2),
        logit=Score(use="clip", options=options | {"scaling": "logit"}, batch_size=3),
    )
    ours.load()
    networks = [scorer.encoder.network for scorer in ours.scorers.values()]
    assert networks[0] is networks[1]
    seen, embed = [], networks[0].inner.images
    monkeypatch.setattr(networks[0].inner, "images", lambda images: seen.append(len(images)) or embed(images))
    mine = candidates(5)
    found = ours.score([mine[:2], mine[2:]])
    assert seen == [2, 2, 1]
    cosine, logit = (values_of(found, alias) for alias in ("align", "logit"))
    assert len(set(cosine)) == 5
    np.testing.assert_allclose(logit, cosine * networks[0].inner.scale, rtol=1e-6)


def test_licences_of_rewards_are_asked_for(tmp_path):
    declared = '@prefkit.scorer(licence="CC-BY-NC-4.0")\ndef score(images, prompts):\n    return [0.0] * len(images)\n'
    (tmp_path / "nc.py").write_text(f"import prefkit\n\n{declared}")
    for accepted in ([], ["mit"]):
        with pytest.raises(UsageError, match="accept-license"):
            jury(taste=Score(use=f"{tmp_path}/nc.py:score", accept_license=accepted))
    jury(taste=Score(use=f"{tmp_path}/nc.py:score", accept_license=["CC-BY-NC-4.0"]))


def test_a_scorer_online_is_the_scorer_of_its_table(monkeypatch):
    """The same checks, and the same meaning of its values: a round's tables are read as those of `prefkit score`."""
    with pytest.raises(UsageError, match=r"score\.size\.batch_size is 0"):
        ScorerSet(Recipe(score={"size": Score(use="jpeg", batch_size=0)}), ["size"], "train.up.online")
    monkeypatch.setattr(Background, "suffix", lambda: ", background grey")
    settings = Score(use="jpeg")
    recipe = Recipe(score={"size": settings})
    spec = ScorerSet(recipe, ["size"], "train.up.online").specs()["size"]
    assert spec == scorer_spec(scorer_of(recipe, "size"), settings)
    assert spec["preprocessing"].endswith("background grey")
