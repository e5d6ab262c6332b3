"""Remote judges on a server that is slow, wrong, busy, broken or silent; and exec: and http: scorers."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
import random
import re
import signal
import socket
import struct
import sys
import threading
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from prefkit.api import Run
from prefkit.config import Recipe, Score
from prefkit.errors import PluginError, UsageError
from prefkit.score.core import make_scorer, score_batch
from prefkit.score.overlap import in_order
from prefkit.score.remote import client as client_module
from prefkit.store import Store
from prefkit.store.table import candidate_row
from prefkit.types import Candidate, Request


def png(seed=0, size=(6, 4), mode="RGB"):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def candidates(n, image=None):
    return [Candidate(f"c{i}", "r", i, i, prompt=f"item {i}", image=image or png(i)) for i in range(n)]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(client_module, "FIRST_WAIT", 0.01)


def ok(body, headers=None):
    return 200, headers or {}, json.dumps(body).encode()


def chat(text="", top=None):
    """A chat completion; top: token -> probability of the first token."""
    choice = {"message": {"role": "assistant", "content": text}}
    if top is not None:
        rows = [{"token": t, "logprob": math.log(p)} for t, p in top.items()]
        choice["logprobs"] = {"content": [{**rows[0], "top_logprobs": rows}]}
    return {"choices": [choice]}


def text_of(payload):
    return next(part["text"] for part in payload["messages"][0]["content"] if part["type"] == "text")


def number_of(payload):
    return int(text_of(payload).split("item ")[1].split("\n")[0])


# ---- the judge behind it


def truth(i):
    """What the server thinks of item i: probabilities of the levels 1 to 5, with something left over."""
    weights = np.random.default_rng(i).random(6)
    return weights[:5] / weights.sum()


def faults(payload, count):
    i = number_of(payload)
    p = truth(i)
    good = ok(
        chat("3", {"1": p[0] / 2, " 1": p[0] / 2, "2": p[1], "3": p[2], "4": p[3], "5": p[4], "The": 1 - p.sum()})
    )
    kind = i % 40
    if kind < 8 and count > 1:  # these pass
        return good
    wrong = {
        0: lambda: (429, {"Retry-After": "0"}, b""),
        1: lambda: (500, {}, b"oops"),
        2: lambda: (200, {}, b'{"choices": [{"mess'),
        3: lambda: None,
        4: lambda: (200, {"Content-Length": "500", "Connection": "close"}, b'{"choices"'),
        5: lambda: (502, {}, b"<html>"),
        6: lambda: (409, {}, b""),
        7: lambda: (time.sleep(2.5) if i == 7 else None) or good,
        8: lambda: (400, {}, b'{"error": "no such picture"}'),
        9: lambda: (503, {}, b""),
        10: lambda: ok(chat("3")),  # no log-probabilities
        11: lambda: ok([{"choices": 3}, {}, {"choices": []}, chat("3", {"5": 0.9, "4": 0.9})][i // 40 % 4]),
    }
    return wrong[kind]() if kind in wrong else good


@pytest.mark.parametrize("n", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_thirty_in_a_hundred_faults_no_wrong_score_no_lost_row_no_second_call(faulty, tmp_path, n):
    server = faulty(faults)
    store = Store.create(tmp_path / "run")
    store.write_requests([Request(f"r{i}", f"item {i}") for i in range(n)])
    image = png()
    rows = [Candidate(f"c{i}", f"r{i}", 0, i, image=image, sha256=str(i)) for i in range(n)]
    store.candidates("own").append([candidate_row(c) for c in rows])
    options = {"model": "j", "server": server.url, "in_flight": 32, "timeout": 2.0, "tries": 3}
    options |= {"cache": str(tmp_path / "answers.sqlite")}
    settings = Score(use="mllm", options=options, batch_size=400, max_failed=1.0)
    run = Run(recipe=Recipe(run=str(tmp_path / "run"), score={"q": settings}))

    found = run.score()["q"]
    kinds = np.arange(n) % 40
    failing = (kinds >= 8) & (kinds <= 11)
    assert (found["scored"], found["failed"]) == (n - failing.sum(), failing.sum())
    frame = store.scores("q").frame().set_index("id").loc[[f"c{i}" for i in range(n)]]
    expected = [float(truth(i) @ np.arange(1, 6) / truth(i).sum()) for i in range(n)]
    assert (frame.value.isna() == failing).all() and (frame.error.notna() == failing).all()
    np.testing.assert_allclose(frame.value[~failing], np.array(expected)[~failing], rtol=1e-12)
    left = [json.loads(a)["leftover"] for a in frame.aspects[~failing]]
    np.testing.assert_allclose(left, [1 - truth(i).sum() for i in np.flatnonzero(~failing)], atol=1e-12)

    before = dict(server.asked)
    assert run.score()["q"]["scored"] == 0
    again = {number_of(json.loads(raw)) for raw, count in server.asked.items() if count > before[raw]}
    assert again == set(np.flatnonzero(kinds == 9).tolist())  # the rest is known, errors too


def judge(server, tmp_path, name="mllm", **options):
    given = {"model": "j", "server": server.url, "cache": str(tmp_path / "a.sqlite"), **options}
    scorer = make_scorer(name, given)
    scorer.load("cpu", "float32")
    return scorer


def test_what_a_server_is_sent(faulty, tmp_path):
    seen = []
    server = faulty(lambda payload, count: seen.append(payload) or ok(chat("4", {"4": 1.0})))
    raw, alpha = png(1), png(2, mode="RGBA")
    batch = [Candidate("a", "r", 0, 0, prompt="a {scale}", image=raw), Candidate("b", "r", 1, 1, image=alpha)]
    scorer = judge(server, tmp_path, body={"max_tokens": None, "reasoning_effort": "low"}, in_flight=1)
    assert [s.value for s in scorer.score(batch)] == [4.0, 4.0]
    image, text = seen[0]["messages"][0]["content"]
    assert image["image_url"]["url"] == "data:image/png;base64," + base64.b64encode(raw).decode()
    assert "asked for: a {scale}\n" in text["text"] and "1, 2, 3, 4, 5" in text["text"]
    sent = base64.b64decode(seen[1]["messages"][0]["content"][0]["image_url"]["url"].split(",")[1])
    opened = Image.open(io.BytesIO(sent))
    assert opened.mode == "RGB" and opened.tobytes() == batch[1].pil().tobytes()
    wanted = {"logprobs": True, "top_logprobs": 20, "temperature": 0.0, "reasoning_effort": "low", "model": "j"}
    assert wanted.items() <= seen[0].items() and "max_tokens" not in seen[0]


def test_a_photo_that_lies_on_its_side_is_sent_as_every_scorer_sees_it(tmp_path):
    from prefkit.score.judge.server import data_url

    image = Image.open(io.BytesIO(png(3, (8, 5))))
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind, mark in (("JPEG", "jpeg"), ("PNG", "png"), ("WEBP", "webp")):
        plain, turned = io.BytesIO(), io.BytesIO()
        image.save(plain, kind)
        image.save(turned, kind, exif=exif)
        sent = data_url(Candidate("a", "r", 0, 0, image=plain.getvalue()))
        assert sent == f"data:image/{mark};base64," + base64.b64encode(plain.getvalue()).decode()
        c = Candidate("a", "r", 0, 0, image=turned.getvalue())
        again = Image.open(io.BytesIO(base64.b64decode(data_url(c).split(",")[1])))
        assert again.getexif().get(0x0112, 1) == 1 and again.tobytes() == c.pil().tobytes()


@pytest.mark.parametrize("turn", [1, 6])
def test_a_png_that_says_how_it_stands_after_its_pixels_is_sent(turn):
    from prefkit.score.judge.server import data_url

    exif, data = Image.Exif(), png(3, (8, 5))
    exif[0x0112] = turn
    said = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(said)) + b"eXIf" + said + struct.pack(">I", zlib.crc32(b"eXIf" + said))
    c = Candidate("a", "r", 0, 0, image=data[:-12] + chunk + data[-12:])
    again = Image.open(io.BytesIO(base64.b64decode(data_url(c).split(",")[1])))
    assert again.tobytes() == c.pil().tobytes() and again.size == ((8, 5) if turn == 1 else (5, 8))


def test_a_damaged_image_is_never_sent_and_nothing_is_decoded_to_know(faulty, tmp_path, monkeypatch):
    """JPEG, PNG and WebP cut short, a flipped byte, no image, none at all; whole ones, with a tail too, are sent."""
    image = Image.open(io.BytesIO(png(4, (40, 30))))
    good = {}
    for kind in ("JPEG", "PNG", "WEBP"):
        buffer = io.BytesIO()
        image.save(buffer, kind)
        good[kind] = buffer.getvalue()
    flipped = bytearray(good["PNG"])
    flipped[len(flipped) // 2] ^= 255
    bad = [*(data[: len(data) * 2 // 3] for data in good.values()), bytes(flipped), b"no image", None]
    fine = [*good.values(), good["JPEG"] + b"\0\0"]
    server = faulty(lambda p, count: ok(chat("4", {"4": 1.0})))
    store = Store.create(tmp_path / "run")
    store.write_requests([Request("r", "a hat")])
    rows = [Candidate(f"c{i}", "r", i, i, image=data, sha256=str(i)) for i, data in enumerate([*fine, *bad])]
    store.candidates("own").append([candidate_row(c) for c in rows])
    decoded, inner = [], Candidate.pil
    monkeypatch.setattr(Candidate, "pil", lambda self: decoded.append(self.id) or inner(self))
    options = {"model": "j", "server": server.url, "cache": str(tmp_path / "a.sqlite")}
    Run(recipe=Recipe(run=str(tmp_path / "run"), score={"q": Score("mllm", options, max_failed=1.0)})).score()
    frame = store.scores("q").frame().set_index("id")
    assert frame.value[[f"c{i}" for i in range(4)]].eq(4.0).all() and len(server.asked) == 4
    failed = frame.loc[[f"c{i}" for i in range(4, 10)]]
    assert failed.value.isna().all() and failed.error.str.startswith("the image could not be decoded").all()
    assert not {"c0", "c1", "c2"} & set(decoded)


def test_pixels_that_are_in_no_file_are_sent_too():
    from prefkit.score.judge.server import data_url

    image = Image.open(io.BytesIO(png(3, (8, 5)))).convert("RGB")
    sent = data_url(Candidate("a", "r", 0, 0, decoded=image))
    assert Image.open(io.BytesIO(base64.b64decode(sent.split(",")[1]))).tobytes() == image.tobytes()


def test_a_written_answer_is_asked_again_a_bounded_number_of_times(faulty, tmp_path):
    said = {0: ["7"], 1: ["I like it", "Score: 4/10"], 2: ["fine"] * 9, 3: ["11", "0-", "9-excellent"]}
    seen = []

    def behave(payload, count):
        seen.append(payload)
        return ok(chat(said[number_of(payload)][payload["seed"]]))

    server = faulty(behave)
    template = "item {number}\n{category}? {scale}"
    scorer = judge(server, tmp_path, preset="fashiondpo", template=template)
    assert scorer.requires == {"image", "prompt", "number", "category"}
    batch = [Candidate(f"c{i}", "r", i, i, image=png(), extra={"number": i, "category": "hat"}) for i in range(4)]
    scores = scorer.score(batch)
    assert [s.value for s in scores] == [7.0, 4.0, None, 9.0]
    assert "3 of 3 answers named no level" in scores[2].error and scores[2].text == "fine"
    assert len(seen) == 1 + 2 + 3 + 3 and {p["temperature"] for p in seen} == {0.1}
    assert "10-Outstanding" in text_of(seen[0])


def test_json_answers_follow_a_schema(faulty, tmp_path):
    seen = []

    def behave(payload, count):
        seen.append(payload)
        return ok(chat('{"reason": "3 buttons", "score": "2"}'))

    server = faulty(behave)
    scorer = judge(server, tmp_path, answer="json", aspects=["colour", "cut"])
    (score,) = scorer.score(candidates(1))
    assert score.value == 2.0 and score.aspects == {"colour": 2.0, "cut": 2.0}
    schema = seen[0]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["score"]["enum"] == ["1", "2", "3", "4", "5"]
    assert {"its colour." in text_of(p) for p in seen} == {True, False}


def test_a_missing_aspect_is_a_missing_score(faulty, tmp_path):
    server = faulty(lambda p, count: (400, {}, b"") if "cut" in text_of(p) else ok(chat("4", {"4": 0.5, "x": 0.5})))
    (score,) = judge(server, tmp_path, aspects=["colour", "cut"]).score(candidates(1))
    assert (
        score.value is None
        and score.aspects == {"colour": 4.0, "leftover colour": 0.5}
        and "cut: HTTP 400" in score.error
    )


def test_levels_outside_the_top_list_are_a_failure(faulty, tmp_path):
    server = faulty(lambda p, count: ok(chat("The", {"The": 0.95, "5": 0.05})))
    (score,) = judge(server, tmp_path).score(candidates(1))
    assert score.value is None and score.aspects["leftover"] == pytest.approx(0.95)
    (score,) = judge(server, tmp_path, min_mass=0.01).score(candidates(1))
    assert score.value == 5.0
    (score,) = judge(server, tmp_path, "vqascore").score(candidates(1))
    assert score.value is None and "yes and no have a total probability of 0" in score.error


def test_vqascore_is_not_renormalised(faulty, tmp_path):
    server = faulty(lambda p, count: ok(chat("Yes", {"Yes": 0.5, " yes": 0.25, "No": 0.125, "It": 0.125})))
    (score,) = judge(server, tmp_path, "vqascore").score(candidates(1))
    assert score.value == pytest.approx(0.75, abs=1e-12) and score.aspects["leftover"] == pytest.approx(0.125)


@pytest.mark.parametrize(
    "options, said",
    [
        ({}, "`model` is not set"),
        ({"model": "m", "answer": "json"}, "set `server`"),
        ({"model": "m", "server": "http://h/", "scale": ["1", "5", "10"]}, "the level 10 begins as 1 does"),
        ({"model": "m", "scale": ["1", "1"]}, "two or more different"),
        ({"model": "m", "scale": ["5", "1"]}, "must rise"),
        ({"model": "m", "preset": "fashiondpo", "aspects": ["a"]}, "Remove `scale` and `aspects`"),
        ({"model": "m", "template": "{prompt}", "aspects": ["a"]}, "needs {aspect} in `template`"),
        ({"model": "m", "body": {"a": 1}}, "set `server`"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options, said):
    with pytest.raises(UsageError, match=said):
        make_scorer("mllm", options)


def test_an_address_that_is_none_and_a_key_that_is_not_set(monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    for options, said in [
        ({"server": "localhost:8000"}, "is not an address"),
        ({"server": "http://h", "key_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY"),
    ]:
        with pytest.raises(UsageError, match=said):
            make_scorer("mllm", {"model": "m", **options}).load("cpu", "float32")


def test_other_weights_behind_the_same_name_are_asked_again(faulty, tmp_path):
    """`revision` is all that says so: the address and the name stay."""
    server = faulty(lambda p, count: ok(chat("4", {str(count): 1.0})))
    found = [judge(server, tmp_path, revision=r).score(candidates(1))[0].value for r in (None, "b", None, "b")]
    assert found == [1.0, 2.0, 1.0, 2.0]


def test_killed_and_begun_again_it_asks_little_twice(faulty, tmp_path, cli, forks):
    """kill -9 in the middle: what is asked a second time is no more than what was under way."""
    n, in_flight = 300, 8
    server = faulty(lambda payload, count: time.sleep(0.02) or ok(chat("3", {"3": 1.0})))
    store = Store.create(tmp_path / "run")
    store.write_requests([Request(f"r{i}", f"item {i}") for i in range(n)])
    rows = [Candidate(f"c{i}", f"r{i}", 0, i, image=png(), sha256=str(i)) for i in range(n)]
    store.candidates("own").append([candidate_row(c) for c in rows])
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"run: {tmp_path}/run\nscore:\n  q: {{use: mllm, model: j, server: '{server.url}', in_flight: {in_flight}, "
        f"cache: '{tmp_path}/answers.sqlite'}}\n"
    )
    process = forks.start("score", "-r", recipe)
    while sum(server.asked.values()) < n // 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(store.scores("q").frame()) == 0  # so that answers alone can spare a question
    assert cli("score", "-r", recipe)[0] == 0
    assert len(server.asked) == n and store.scores("q").frame().value.eq(3.0).sum() == n
    twice = sum(count > 1 for count in server.asked.values())
    assert max(server.asked.values()) == 2 and 0 < twice <= 2 * in_flight, twice


# ---- exec: and http:

SCORER = """
import base64, io, json, os, sys, time
from PIL import Image
print(json.dumps({"protocol": 1, "spec": {"name": "width", "version": 1}, "requires": ["image", "user"]}), flush=True)
print("a library's chatter", file=sys.stderr)
for line in sys.stdin:
    request, scores = json.loads(line), []
    for item in request["items"]:
        if item["prompt"] == "die": os._exit(3)
        if item["prompt"] == "hang": time.sleep(60)
        if item["prompt"] == "chatter": print("no JSON", flush=True)
        data = open(item["path"], "rb").read() if "path" in item else base64.b64decode(item["image"])
        width = Image.open(io.BytesIO(data)).width
        scores.append({"nan": float("nan"), "text": "5", "null": None}.get(item["prompt"], width + item["extra"]["user"]))
    print(json.dumps({"request": request["request"], "scores": scores}), flush=True)
"""


@pytest.fixture
def command(tmp_path):
    (tmp_path / "scorer.py").write_text(SCORER)
    return f"exec:{sys.executable} {tmp_path}/scorer.py"


def asked(*prompts):
    return [Candidate(f"c{i}", "r", i, i, p, png(i, (5 + i, 4)), extra={"user": 100}) for i, p in enumerate(prompts)]


@pytest.mark.parametrize("images", ["base64", "path"])
def test_a_scorer_in_another_process(command, images):
    scorer = make_scorer(command, {"images": images})
    assert scorer.spec().name == "width" and scorer.requires == {"image", "user"} and scorer.scope == "absolute"
    scores = score_batch(scorer, asked("a", "nan", "b", "text", "null"))
    assert [s.value for s in scores] == [105.0, None, 107.0, None, None]
    assert all(s.error for s in scores if s.value is None)
    scorer.stop()


def test_a_process_that_overwrites_its_images_leaves_those_of_the_user_alone(tmp_path):
    text = SCORER.replace("import base64", "from pathlib import Path\nimport base64")
    text = text.replace("        width =", "        Path(item['path']).write_bytes(b'')\n        width =")
    (tmp_path / "scorer.py").write_text(text)
    (tmp_path / "mine.png").write_bytes(png(3))
    scorer = make_scorer(f"exec:{sys.executable} {tmp_path}/scorer.py", {"images": "path"})
    item = Candidate("a", "r", 0, 0, "a", path=str(tmp_path / "mine.png"), extra={"user": 100})
    (score,) = score_batch(scorer, [item])
    assert score.error is None and (tmp_path / "mine.png").read_bytes() == png(3)
    scorer.stop()


def test_a_process_that_stops_reading_ends_at_the_time_out(tmp_path):
    (tmp_path / "deaf.py").write_text(
        'import json, time\nprint(json.dumps({"protocol": 1, "spec": {"name": "deaf", "version": 1}}), flush=True)\n'
        "time.sleep(60)\n"
    )
    scorer = make_scorer(f"exec:{sys.executable} {tmp_path}/deaf.py", {"timeout": 0.5})
    large = Candidate("a", "r", 0, 0, "x" * 2**21, png())  # more than a pipe holds
    (score,) = score_batch(scorer, [large])
    assert score.value is None and "did not read its standard input for 0.5 s" in score.error
    scorer.stop()


def test_a_process_that_dies_hangs_or_chatters_loses_that_item_alone(command):
    scorer = make_scorer(command, {"timeout": 1.0})
    scores = score_batch(scorer, asked("a", "die", "b", "chatter", "hang", "c"))
    assert [s.value for s in scores] == [105.0, None, 107.0, None, None, 110.0]
    assert "ended with code 3" in scores[1].error and "not JSON" in scores[3].error and "within 1 s" in scores[4].error
    scorer.stop()


@pytest.mark.parametrize(
    "code, said",
    [
        ("print('hello')", "a line that is not JSON: 'hello"),
        ("import sys; sys.exit(4)", "ended with code 4 before its hello"),
        ("print('{}')", "sent no valid hello"),
        ('print(\'{"protocol": 9, "spec": {}}\')', "speaks protocol 9"),
        ('print(\'{"protocol": 1, "spec": {"name": "x"}}\')', "must have name and version"),
    ],
)
def test_processes_that_are_no_scorer(tmp_path, code, said):
    (tmp_path / "bad.py").write_text(code)
    with pytest.raises(PluginError, match=said):
        make_scorer(f"exec:{sys.executable} {tmp_path}/bad.py", {}).spec()
    with pytest.raises(UsageError, match="could not be started"):
        make_scorer("exec:/no/such/program", {}).spec()


def test_a_served_scorer_gives_the_same_scores(served):
    own = make_scorer("jpeg", {})
    remote = make_scorer(served(own), {"chunk": 3})
    batch = candidates(20)
    assert remote.spec() == own.spec() and remote.requires == own.requires and remote.scope == own.scope
    assert remote.score(batch) == own.score(batch)
    broken = [*batch[:2], Candidate("x", "r", 9, 9, image=b"no image")]
    assert [s.value is None for s in remote.score(broken)] == [False, False, True]


def test_a_served_scorer_reads_no_files_and_wants_its_key(served, tmp_path, monkeypatch):
    import urllib.request

    (tmp_path / "a.png").write_bytes(png())
    address = served(make_scorer("jpeg", {}), key="k1")
    body = json.dumps({"items": [{"id": "a", "path": str(tmp_path / "a.png")}]}).encode()
    request = urllib.request.Request(f"{address}/score", body, {"Authorization": "Bearer k1"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        (row,) = json.load(answer)["scores"]
    assert row["value"] is None and "holds no image" in row["error"]
    with pytest.raises(PluginError, match="needs a key"):
        make_scorer(address, {}).spec()
    monkeypatch.setenv("SCORER_KEY", "k1")
    assert make_scorer(address, {"key_env": "SCORER_KEY"}).spec().name == "jpeg"


def test_prefkit_serves_itself_over_standard_input():
    scorer = make_scorer(f"exec:{sys.executable} -m prefkit score --serve jpeg --stdio", {})
    batch = candidates(3)
    assert scorer.score(batch) == make_scorer("jpeg", {}).score(batch)
    scorer.stop()


def test_wrong_answers_of_a_scorer_server_are_failures(faulty):
    answers = [
        ({"scores": [1.0]}, "1 scores for 2 candidates"),
        ({"scores": "12"}, "no list of scores"),
        ([1, 2], "no list of scores"),
        ({"error": "out of memory"}, "out of memory"),
        (
            {"scores": [True, {"value": 1, "aspects": {"a": "b"}}]},
            "returned .True. .a bool., which is not a number|aspects that are not numbers",
        ),
    ]
    server = faulty(lambda payload, count: ok(answers[int(payload["items"][0]["prompt"])][0]))
    scorer = make_scorer(server.url.removesuffix("/v1"), {"chunk": 2, "tries": 1})
    scorer.hello = read_hello_of_jpeg()
    for i, (_, said) in enumerate(answers):
        pair = [Candidate(f"{i}{k}", "r", k, k, str(i), png()) for k in range(2)]
        scores = scorer.score(pair)
        assert [s.value for s in scores] == [None, None]
        assert all(re.search(said, s.error) for s in scores), (said, scores)


@pytest.mark.parametrize(
    "hello, said",
    [
        ({"spec": {"name": 7, "version": "1"}}, "name of its spec is '7'; it must be a str"),
        ({"spec": {"name": "a", "version": "1", "range": 3}}, "its range is"),
        ({"spec": {"name": "a", "version": "1", "range": [0, "1"]}}, "its range is"),
        ({"spec": {"name": "a", "version": "1", "higher_is_better": "no"}}, "higher_is_better of its spec"),
        ({"spec": {"name": "a", "version": "1"}, "requires": "image"}, "its requires is 'image'"),
        ({"spec": {"name": "a", "version": "1"}, "requires": [1]}, "its requires is"),
        ({"spec": {"name": "a", "version": "1"}, "scope": ["absolute"]}, "its scope is"),
    ],
)
def test_what_a_scorer_elsewhere_says_of_itself_is_checked(hello, said):
    from prefkit.score.remote.protocol import decode_hello

    with pytest.raises(PluginError, match=said):
        decode_hello({"protocol": 1, **hello}, "scorer x")


@pytest.mark.parametrize(
    ("spec", "claim"),
    [
        ({"verified": "Net, net 1.0"}, "Net, net 1.0"),
        ({}, ""),
    ],
)
def test_what_a_scorer_elsewhere_says_was_verified(spec, claim):
    from prefkit.score.remote.protocol import decode_hello

    assert decode_hello({"protocol": 1, "spec": {"name": "a", "version": "1", **spec}}, "x").spec.verified == claim
    with pytest.raises(PluginError, match="verified of its spec is 'True'; it must be a str"):
        decode_hello({"protocol": 1, "spec": {"name": "a", "version": "1", "verified": True}}, "x")


@pytest.mark.parametrize("body", [b"[" * 100000, b'{"scores": [' + b"1" * 9999 + b"]}", b"\xff\xfe", b"nul"])
def test_an_answer_that_is_no_json_is_a_failure(faulty, body):
    server = faulty(lambda payload, count: (200, {}, body))
    scorer = make_scorer(server.url.removesuffix("/v1"), {"tries": 1})
    scorer.hello = read_hello_of_jpeg()
    (score,) = scorer.score(candidates(1))
    assert score.value is None and "is not JSON" in score.error


def test_headers_that_drip_are_given_up(tmp_path):
    """A byte now and then never trips the limit of a socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip():
            line, _ = listener.accept()
            with line, contextlib.suppress(OSError):
                line.sendall(b"HTTP/1.1 200 OK\r\nX: ")
                while True:
                    line.sendall(b"a")
                    time.sleep(0.02)

        threading.Thread(target=drip, daemon=True).start()
        scorer = make_scorer(f"http://127.0.0.1:{listener.getsockname()[1]}", {"tries": 1, "timeout": 0.4})
        with pytest.raises(PluginError, match="no complete answer within 0.4 s"):
            scorer.spec()


@pytest.mark.parametrize("address", ["http://[::1", "http://", "http://a:99999", "http://b\u00fccher", "https://x:y"])
def test_an_address_that_is_none_is_said(address):
    with pytest.raises(UsageError, match="is not an address such as"):
        make_scorer(address, {})


@pytest.mark.parametrize(
    "act, said",
    [
        ("import os, time; os.close(1); time.sleep(600)", "closed its standard output before its hello"),
        ("import os, time; os.write(1, b'\\xff\\xfe' * 9 + b'\\n'); time.sleep(600)", "a line that is not JSON"),
        ("import os, time; os.write(1, b'[' * 100000 + b'\\n'); time.sleep(600)", "a line that is not JSON"),
    ],
)
def test_a_process_that_says_nonsense_does_not_hang_us(tmp_path, monkeypatch, act, said):
    monkeypatch.setattr("prefkit.score.remote.process.ENDING", 0.2)
    (tmp_path / "p.py").write_text(act)
    scorer = make_scorer(f"exec:{sys.executable} {tmp_path}/p.py", {})
    with pytest.raises(PluginError, match=said):
        scorer.spec()
    assert scorer.process is None


def read_hello_of_jpeg():
    from prefkit.score.remote.protocol import decode_hello, encode_hello

    return decode_hello(encode_hello(make_scorer("jpeg", {})), "test")


def test_a_recipe_names_them_with_options(command, tmp_path, faulty):
    from prefkit.config.reader import read

    path = tmp_path / "r.yaml"
    path.write_text(f'score:\n  a: {{use: "{command}", images: path}}\n  b: {{use: "http://h:1", chunk: 2}}\n')
    found = read(path)
    assert found.score["a"].options == {"images": "path"} and found.score["b"].options == {"chunk": 2}
    path.write_text('score:\n  b: {use: "http://h:1", chunks: 2}\n')
    with pytest.raises(UsageError, match="r.yaml:2: score.b.chunks: unknown key. Did you mean 'chunk'"):
        read(path)


# ---- several batches under way


def test_in_order_keeps_the_order_and_its_width():
    now, most, lock = 0, 0, threading.Lock()

    def slow(i):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(random.Random(i).random() / 100)
        with lock:
            now -= 1
        return i * i

    assert list(in_order(slow, range(40), 4)) == [(i, i * i) for i in range(40)]
    assert 2 <= most <= 4
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda i: 1 // (3 - i), range(10), 2))


def test_arrays_without_json_numbers_are_null():
    import json

    import torch
    from safetensors.torch import save

    from prefkit.score.remote.protocol import arrays_of

    arrays, _ = arrays_of(save({"joints3d": torch.tensor([[0.5, float("nan")], [float("inf"), -1.0]])}))
    assert json.loads(json.dumps(arrays, allow_nan=False)) == {"joints3d": [[0.5, None], [None, -1.0]]}
