"""`prefkit score --serve` against clients that are strangers, slow, broken or hostile."""

from __future__ import annotations

import base64
import io
import json
import socket
import subprocess
import sys
import threading
import time

import pytest
from PIL import Image

from prefkit.human.http_host import allowed
from prefkit.score.core import make_scorer
from prefkit.score.remote import server as listening
from prefkit.score.remote.server import deeper
from prefkit.score.serve import Service, http_server


def image():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 30)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


GOOD = json.dumps({"items": [{"id": "a", "image": image()}]}).encode()


@pytest.fixture
def start(capsys):
    """start(key) -> the running server; at the end, that it said nothing of a traceback."""
    running = []

    def begin(key=None, host="127.0.0.1"):
        server = http_server(Service(make_scorer("jpeg", {})), host, 0, key)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        running.append(server)
        return server

    yield begin
    for server in running:
        server.shutdown()
        server.server_close()
    assert "Traceback" not in capsys.readouterr().err


def raw(server, data, seconds=5.0):
    """(status, rest) of what comes back; (0, b"") where the line is closed without a word."""
    with socket.create_connection(("127.0.0.1", server.server_port), seconds) as line:
        line.sendall(data)
        found = b""
        while part := line.recv(65536):
            found += part
            head, _, body = found.partition(b"\r\n\r\n")
            lengths = [h.split(b":")[1] for h in head.split(b"\r\n") if h.lower().startswith(b"content-length")]
            if lengths and len(body) >= int(lengths[0]):
                break
    return (int(found.split()[1]) if found else 0), found


def post(body=GOOD, length=None, host="localhost", headers=""):
    length = str(len(body)) if length is None else length
    lines = f"POST /score HTTP/1.1\r\nHost: {host}\r\n" + (f"Content-Length: {length}\r\n" if length != "" else "")
    return (lines + headers + "\r\n").encode("latin1") + body


def test_it_answers_those_it_should(start):
    server = start("k1")
    status, found = raw(server, post(headers="Authorization: Bearer k1\r\n", host=f"127.0.0.1:{server.server_port}"))
    assert status == 200 and json.loads(found.partition(b"\r\n\r\n")[2])["scores"][0]["value"] > 0
    both = "GET /hello HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer k1\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.server_port), 5) as line:  # one connection, kept open
        for _ in range(3):
            line.sendall(both.encode())
            assert b" 200 " in line.recv(65536).split(b"\r\n")[0]


@pytest.mark.parametrize(
    "request_, status",
    [
        (post(length="\u00b2"), 400),
        (post(length="-5"), 400),
        (post(length="+5"), 400),
        (post(length="5, 5"), 400),
        (post(length="0x10"), 400),
        (post(headers="Content-Length: 7\r\n"), 400),
        (post(length=""), 411),
        (post(length=str(2**40)), 413),
        (post(length="9" * 40), 400),
        (post(length="", headers="Transfer-Encoding: chunked\r\n"), 501),
        (post(headers="Transfer-Encoding: gzip\r\n"), 501),
        (post(b"[" * 100000 + b"]" * 100000), 400),
        (post(b'{"a":' * 50 + b"1" + b"}" * 50), 400),
        (post(b"[" + b"1," * 1_100_000 + b"1]"), 400),
        (post(b"\xff\xfe{}"), 400),
        (post(b"1" * 9999), 400),
        (post(b""), 400),
        (post(host="evil.example"), 403),
        (post(host="localhost.evil.example"), 403),
        (post(host="[::1"), 403),
        (post(headers="Host: localhost\r\n"), 403),
        (post().replace(b"Host: localhost\r\n", b""), 403),
        (post(headers="Origin: http://evil.example\r\n"), 403),
        (post(headers="Origin: null\r\n"), 403),
        (post().replace(b"/score", b"/other"), 404),
        (b"GET /hello HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nabcde", 400),
        (b"GET /hello HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
        (b"BREW /hello HTTP/1.1\r\nHost: localhost\r\n\r\n", 501),
        (b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET /hello HTTP/1.1\r\n" + b"X: 1\r\n" * 200 + b"\r\n", 431),
        (b"GET /hello HTTP/1.1\r\nX: " + b"a" * 70000 + b"\r\n\r\n", 431),
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, int) else "",
)
def test_what_is_wrong_has_its_status_and_ends_the_connection(start, request_, status):
    server = start()
    found, text = raw(server, request_)
    assert found == status, text[:300]
    assert raw(server, post())[0] == 200  # and nobody else is hurt


@pytest.mark.parametrize(
    "body",
    [b"1", b"[]", b'"x"', b"{}", b'{"items": 3}', b'{"items": ["a"]}', b'{"items": [{"id": "a", "image": "*"}]}',
     b'{"items": [{"id": "a", "image": 7}]}', b'{"items": [{"id": "a", "extra": [1]}]}', b'{"items": [{}]}'],
)  # fmt: skip
def test_json_that_is_no_request_is_answered(start, body):
    status, found = raw(start(), post(body))
    assert status == 200 and "not a request of the protocol" in found.decode()


def test_a_body_is_not_read_without_the_key(start):
    server = start("k1")
    with socket.create_connection(("127.0.0.1", server.server_port), 5) as line:
        line.sendall(post(b"", length=str(200 * 2**20)))  # nothing of it is sent, and the answer comes all the same
        assert b" 401 " in line.recv(65536)
    assert raw(server, post(headers="Authorization: Bearer \xe9\r\n"))[0] == 401


def test_a_client_may_ask_before_it_sends(start):
    with socket.create_connection(("127.0.0.1", start().server_port), 5) as line:
        line.sendall(post(b"", length=str(len(GOOD)), headers="Expect: 100-continue\r\n"))
        assert b" 100 " in line.recv(65536)
        line.sendall(GOOD)
        assert b" 200 " in line.recv(65536)
    refused = post(b"", length=str(len(GOOD)), host="evil.example", headers="Expect: 100-continue\r\n")
    assert raw(start(), refused)[0] == 403


@pytest.mark.parametrize("sent", [b"", b"GET /hello HTTP/1.1\r\nHo", post(b"{", length="100")])
@pytest.mark.parametrize("drips", [False, True])
def test_silent_and_dripping_clients_are_dropped(start, monkeypatch, sent, drips):
    monkeypatch.setattr(listening, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(listening, "BODY_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", start().server_port), 20) as line:
        line.sendall(sent)
        line.settimeout(0.05 if drips else 20)
        assert any(closed(line, b"a" if drips else b"") for _ in range(400)), "the connection was kept"


def closed(line, drop):
    """Whether the server has ended the connection, asked by sending `drop` and waiting for an answer."""
    try:
        line.sendall(drop)
        return line.recv(65536) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_connections_are_counted_and_given_back(start, monkeypatch):
    monkeypatch.setattr(listening, "MOST_CONNECTIONS", 3)
    server = start()
    lines = [socket.create_connection(("127.0.0.1", server.server_port), 5) for _ in range(3)]
    time.sleep(0.1)
    assert refused(server)
    for line in lines:
        line.close()
    for _ in range(200):
        if not refused(server):
            return
        time.sleep(0.02)
    pytest.fail("the places of closed connections were not given back")


def refused(server):
    try:
        return raw(server, post())[0] == 0
    except OSError:
        return True


def test_who_may_name_the_server():
    for given in ("localhost", "LOCALHOST:80", "127.0.0.1:9", "[::1]:9"):
        assert allowed(given, "127.0.0.1") and allowed(given, "0.0.0.0")
    assert allowed("scorer.lan:8765", "scorer.lan") and not allowed("scorer.lan", "127.0.0.1")
    assert allowed("192.168.0.7:8765", "0.0.0.0") and not allowed("192.168.0.7", "127.0.0.1")
    for given in (
        "evil.example",
        "127.0.0.1.evil.example",
        "",
        "a b",
        "[",
        "user@evil.example",
        "evil@127.0.0.1",
        "127.0.0.1:x",
        "localhost\0",
        "[::1",
    ):
        assert not allowed(given, "0.0.0.0"), given


def test_depth_is_counted_without_recursion():
    deep = []
    for _ in range(50000):
        deep = [deep]
    assert deeper(deep, 32) and not deeper([[{"a": [1, 2]}], "x"], 4) and deeper([[{"a": [1, 2]}], "x"], 3)


def test_an_address_that_cannot_be_bound_is_said(cli):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for arguments in (["--port", taken.getsockname()[1]], ["--port", "0", "--host", "999.1.1.1"]):
            code, _, err = cli("score", "--serve", "jpeg", *arguments)
            assert code == 2 and "cannot listen on" in err


def test_flags_that_do_not_go_together_are_refused(cli):
    for arguments, text in (
        (["--port", "8"], "--port needs --serve NAME"),
        (["--stdio"], "--stdio needs --serve NAME"),
        (["--serve", "jpeg", "--port", "99999"], "not a port number"),
        (["--serve", "jpeg", "--require-key", "UNSET_HERE"], "the environment variable UNSET_HERE is not set"),
        (["--serve", "jpeg", "--stdio", "--port", "0"], "--stdio uses no port. Remove --port."),
        (["--serve", "jpeg", "--stdio", "--require-key", "KEY"], "--stdio uses no port. Remove --require-key."),
        (["runs/x", "--serve", "jpeg"], "does not use the run folder runs/x. Remove it"),
        (["--serve", "jpeg", "--check", "jpeg"], "does not use --check"),
        (["--serve", "jpeg", "--shard", "0/2"], "--serve answers requests of other processes. Leave --shard out"),
        *(
            (
                [mode, "jpeg", *flag],
                f"score {mode} {kind} one scorer, whose options are flags, and does not use {flag[0]}.",
            )
            for mode, kind in (("--serve", "serves"), ("--check", "tests"))
            for flag in (["-r", "r.yaml"], ["--name", "a"], ["--limit", "1"], ["--redo"], ["--dry-run"])
        ),
        (["--serve", "jpeg", "--nonsense", "1"], "nonsense: unknown key"),
    ):
        code, out, err = cli("score", *arguments)
        assert code == 2 and not out and text in err, err


def test_over_standard_input_nonsense_is_answered(tmp_path):
    lines = b"[" * 100000 + b"\nnull\n{}\n" + b'{"request": 1, "items": []}\n'
    command = [sys.executable, "-m", "prefkit", "score", "--serve", "jpeg", "--stdio"]
    done = subprocess.run(command, input=lines, capture_output=True, timeout=120)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    assert ["error" in row for row in rows] == [False, True, True, True, False] and rows[4] == {
        "request": 1,
        "scores": [],
    }
