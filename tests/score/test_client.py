"""The client of remote judges: what is tried again, how much is under way, what is kept, what stops a run."""

from __future__ import annotations

import contextlib
import json
import socket
import sqlite3
import threading
import time

import pytest

from prefkit.errors import PluginError, StoreError, UsageError
from prefkit.score.remote import answers as answers_module
from prefkit.score.remote import client as client_module
from prefkit.score.remote.answers import Answers
from prefkit.score.remote.client import Client


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(client_module, "FIRST_WAIT", 0.01)


def ok(body):
    return 200, {}, json.dumps(body).encode()


def test_only_what_can_succeed_is_tried_again(faulty):
    statuses = {"a": [408, 409, 429, 500, 200], "b": [400], "c": [503] * 9, "d": [413], "e": [None, 200]}

    def behave(payload, count):
        status = statuses[payload["q"]][count - 1]
        return None if status is None else (status, {}, b'{"ok": 1}')

    server = faulty(behave)
    client = Client(server.url, tries=5, timeout=5)
    a, b, c, d, e = client.map("/x", [{"q": q} for q in "abcde"])
    assert a.body == e.body == {"ok": 1} and a.error is e.error is None
    assert "HTTP 400" in b.error and "HTTP 413" in d.error and "HTTP 503" in c.error and "5 tries" in c.error
    assert sorted(server.asked.values()) == [1, 1, 2, 5, 5]


def test_retry_after_is_kept_and_an_endless_one_is_not(faulty):
    times: dict[str, list[float]] = {"soon": [], "never": []}

    def behave(payload, count):
        times[payload["q"]].append(time.monotonic())
        if payload["q"] == "never":
            return 429, {"Retry-After": "86400"}, b""
        return (429, {"Retry-After": "0.4"}, b"") if count == 1 else ok({})

    server = faulty(behave)
    soon, never = Client(server.url).map("/x", [{"q": "soon"}, {"q": "never"}])
    assert soon.error is None and times["soon"][1] - times["soon"][0] >= 0.4
    assert "asks to wait 86400 s" in never.error and len(times["never"]) == 1


def test_at_most_n_in_flight_and_equal_questions_once(faulty, tmp_path):
    server = faulty(lambda payload, count: time.sleep(0.01) or ok(payload))
    client = Client(server.url, in_flight=3, answers=Answers(tmp_path / "a.sqlite"))
    answers = client.map("/x", [{"q": i % 10} for i in range(40)])
    assert [a.body["q"] for a in answers] == [i % 10 for i in range(40)]
    assert server.busiest <= 3 and set(server.asked.values()) == {1}


def test_a_dripping_and_a_silent_server_end_at_the_time_out(faulty):
    def behave(payload, count):
        if payload["q"] == "silent":
            time.sleep(1.5)
        return 200, {"Content-Length": "1000"}, [b" "] * 20 if payload["q"] == "drip" else b"{"

    server = faulty(behave)
    found = Client(server.url, timeout=0.3, tries=2).map("/x", [{"q": q} for q in ("silent", "drip", "short")])
    assert all("TimeoutError" in answer.error and "2 tries" in answer.error for answer in found)


@contextlib.contextmanager
def raw_server(handle, family=socket.AF_INET, host="127.0.0.1"):
    """Runs `handle` for every connection; yields the address."""
    with socket.create_server((host, 0), family=family) as listening:

        def accept():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    threading.Thread(target=attend, args=(connection,), daemon=True).start()

        def attend(connection):
            with connection, contextlib.suppress(OSError):
                handle(connection)

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"


def test_a_slow_reader_does_not_outlive_the_time_out():
    def handle(connection):  # always makes progress, so that only a limit on the whole request ends it
        while connection.recv(500_000):
            time.sleep(0.05)

    with raw_server(handle) as url:
        (answer,) = Client(url, timeout=0.5, tries=1).map("/x", [{"q": "x" * 40_000_000}])
    assert "TimeoutError" in answer.error


@pytest.mark.parametrize("path, sent", [("", "/hello"), ("/v1/#there", "/v1/hello"), ("/ä b", "/%C3%A4%20b/hello")])
@pytest.mark.parametrize("family, host", [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_host_and_path_are_sent_as_http_needs_them(family, host, path, sent):
    heads = []

    def handle(connection):
        heads.append(connection.recv(65536).decode().split("\r\n"))
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    if family == socket.AF_INET6:
        try:
            socket.create_server((host, 0), family=family).close()
        except OSError:
            pytest.skip("no IPv6 here")
    with raw_server(handle, family, host) as url:
        assert Client(url + path, tries=1, timeout=5).get("/hello").body == {}
    assert heads[0][0] == f"GET {sent} HTTP/1.1" and f"Host: {url.removeprefix('http://')}" in heads[0]


def test_a_refused_key_stops_everything_and_is_nowhere(faulty, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-secret\n")
    server = faulty(lambda payload, count: (401, {}, b"your key sk-secret is not known"))
    client = Client(server.url, key_env="JUDGE_KEY", answers=Answers(tmp_path / "a.sqlite"))
    with pytest.raises(PluginError, match=r"\$JUDGE_KEY is not accepted") as caught:
        client.map("/x", [{"q": i} for i in range(50)])
    assert "sk-secret" not in str(caught.value)
    assert set(server.keys) == {"Bearer sk-secret"}
    echo = faulty(lambda payload, count: ok({"you": "sk-secret"}))
    client = Client(echo.url, key_env="JUDGE_KEY", answers=Answers(tmp_path / "a.sqlite"))
    assert client.map("/x", [{"q": 1}])[0].body == {"you": "***"}
    assert all(b"sk-secret" not in path.read_bytes() for path in tmp_path.iterdir())
    with pytest.raises(UsageError, match="environment variable"):
        Client("http://me:sk-secret@127.0.0.1:1/v1")
    monkeypatch.setenv("JUDGE_KEY", "sk\nsecret")
    with pytest.raises(UsageError) as caught:
        Client(echo.url, key_env="JUDGE_KEY")
    assert "secret" not in str(caught.value)


def test_errors_are_kept_and_only_passing_ones_asked_again(faulty, tmp_path):
    server = faulty(lambda payload, count: ok({}) if payload["q"] == "good" else (payload["q"], {}, b"no"))
    path = tmp_path / "a.sqlite"
    for _ in range(2):
        client = Client(server.url, tries=2, answers=Answers(path))
        client.map("/x", [{"q": "good"}, {"q": 400}, {"q": 418}, {"q": 503}])
    assert sorted(server.asked.values()) == [1, 1, 2, 4] and client.sent == 3
    rows = sqlite3.connect(path).execute("SELECT status, final, error IS NULL, tries FROM answers ORDER BY status")
    assert rows.fetchall() == [(200, 1, 1, 1), (400, 1, 0, 1), (418, 0, 0, 1), (503, 0, 0, 2)]


def test_an_answer_is_known_before_it_is_written_and_written_when_the_call_ends(faulty, tmp_path, monkeypatch):
    monkeypatch.setattr(answers_module, "LINGER", 60)
    answers, other = Answers(tmp_path / "a.sqlite"), Answers(tmp_path / "a.sqlite")
    answers.put("k", 200, "1", None, True, 1)
    answers.put("bad", 503, None, "no", False, 1)
    assert answers.get("k") == ("1", None) and answers.get("bad") is None and other.get("k") is None
    server = faulty(lambda payload, count: ok({"q": payload["q"]}))
    client = Client(server.url, answers=answers)
    assert client.submit("/x", {"q": 1}).result().body == client.submit("/x", {"q": 1}).result().body == {"q": 1}
    assert other.get("k") is None
    client.map("/x", [{"q": 2}])
    assert other.get("k") == ("1", None) and other.get("bad") is None
    assert {a.cached for a in Client(server.url, answers=other).map("/x", [{"q": 1}, {"q": 2}])} == {True}
    assert set(server.asked.values()) == {1}
    monkeypatch.setattr(answers_module, "LINGER", 0)
    answers.put("late", 200, "2", None, True, 1)
    assert other.get("late") == ("2", None)


def test_a_file_of_answers_that_is_none_is_said(tmp_path):
    (tmp_path / "notes.txt").write_bytes(b"no database " * 100)
    for path in (tmp_path / "notes.txt", tmp_path, tmp_path / "notes.txt" / "below"):
        with pytest.raises(StoreError, match="the answer file .* Remove it, or name another"):
            Answers(path)
    assert (tmp_path / "notes.txt").read_bytes() == b"no database " * 100


@pytest.mark.parametrize("harm", ["garbage", "half", "page"])
def test_a_damaged_file_of_answers_is_set_aside_and_filled_again(tmp_path, capsys, harm):
    path = tmp_path / "answers.sqlite"
    answers = Answers(path)
    for n in range(2000):
        answers.put(f"k{n}", 200, f"answer {n}", None, True, 1)
    assert answers.db.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    answers.close()
    data = path.read_bytes()
    page = data[:8192] + b"\xff" * 4096 + data[12288:]
    path.write_bytes({"garbage": b"garbage" * 99, "half": data[: len(data) // 2], "page": page}[harm])
    again = Answers(path)
    assert str(path) in capsys.readouterr().err and path.with_name("answers.sqlite.damaged").exists()
    assert again.get("k1") is None
    again.put("k1", 200, "answer 1", None, True, 1)
    again.close()
    assert Answers(path).get("k1") == ("answer 1", None)


def test_a_changed_answer_is_asked_again(tmp_path, capsys):
    path = tmp_path / "answers.sqlite"
    answers = Answers(path)
    answers.put("k", 200, "four stars", None, True, 1)
    answers.close()
    path.write_bytes(path.read_bytes().replace(b"four stars", b"five stars"))
    assert Answers(path).get("k") is None and str(path) in capsys.readouterr().err


def test_answers_of_an_earlier_version_are_read(tmp_path):
    path = tmp_path / "answers.sqlite"
    table = answers_module.TABLE.replace(", sum INTEGER", "")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(table)
        db.execute("INSERT INTO answers VALUES ('k', 200, '1', NULL, 1, 1, 0.0)")
    answers = Answers(path)
    assert answers.get("k") == ("1", None)
    answers.put("l", 200, "2", None, True, 1)
    answers.close()
    assert Answers(path).get("l") == ("2", None)


def test_an_error_that_comes_as_a_success_is_an_error(faulty, tmp_path):
    codes = {"busy": 429, "odd": "overloaded", "fault": 400}

    def behave(payload, count):
        failed = {"error": {"code": codes[payload["q"]], "message": "upstream"}}
        return ok(failed) if count == 1 or payload["q"] == "fault" else ok({"fine": True})

    server = faulty(behave)
    for _ in range(2):
        client = Client(server.url, answers=Answers(tmp_path / "a.sqlite"))
        busy, odd, fault = client.map("/x", [{"q": q} for q in codes])
        assert busy.body == odd.body == {"fine": True} and "answered an error: upstream" in fault.error
    assert sorted(server.asked.values()) == [1, 2, 2]


@pytest.mark.parametrize(
    "status, said", [(402, "out of credit"), (404, "check the address"), (308, "check the address")]
)
def test_what_no_item_can_get_past_stops_the_run(faulty, tmp_path, status, said):
    server = faulty(lambda payload, count: (status, {"Location": "http://elsewhere"}, b""))
    client = Client(server.url, in_flight=2, answers=Answers(tmp_path / "a.sqlite"))
    with pytest.raises(PluginError, match=said):
        client.map("/x", [{"q": i} for i in range(100)])
    assert client.sent <= 4 and sqlite3.connect(tmp_path / "a.sqlite").execute("SELECT * FROM answers").fetchall() == []


def test_closing_ends_waiting_requests(faulty):
    server = faulty(lambda payload, count: time.sleep(5) or ok({}))
    client = Client(server.url, in_flight=2, timeout=60)
    futures = [client.submit("/x", {"q": i}) for i in range(4)]
    time.sleep(0.2)
    client.close()  # an answer that was waited for would not be an error
    assert {f.result(timeout=30).error for f in futures if not f.cancelled()} == {"interrupted"}
