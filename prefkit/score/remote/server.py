"""The HTTP side of `python -m prefkit.score.serve`: who may ask, how much, and for how long.

Everything that a stranger sends is bounded before it is read: who asks (Host, Origin, key), then the length, then the
body within a time that fits its length. What is refused closes the connection.
"""

from __future__ import annotations

import hmac
import io
import ipaddress
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LARGEST = 256 * 2**20  # bytes of a request
MOST_VALUES = 1_000_000  # of a request's JSON: each takes far more memory than the two bytes that it needs
DEEPEST = 32  # lists and objects inside each other
MOST_CONNECTIONS = 64
HEAD_SECONDS, IDLE_SECONDS = 10.0, 60.0  # until the headers are whole; between two requests of a connection
BODY_SECONDS, SLOWEST = 30.0, 256 * 2**10  # for a body: so long, and a second for so many bytes
WRITE_SECONDS = 30.0
#: a Host header: a name or an address, IPv6 in brackets, and perhaps a port; nothing else, such as user@
HOST = re.compile(r"(?:(?P<name>[A-Za-z0-9._-]+)|\[(?P<address>[0-9A-Fa-f:.]+)\])(?::[0-9]{1,5})?")
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Refused(Exception):
    """status: of the HTTP answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Timed(io.RawIOBase):
    """A socket's bytes until `deadline` (time.monotonic), however slowly they come."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.deadline = connection, time.monotonic() + HEAD_SECONDS

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request took too long")
        self.connection.settimeout(left)
        return self.connection.recv_into(buffer)


class Server(ThreadingHTTPServer):
    """At most MOST_CONNECTIONS at once; a connection beyond them is closed unread."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.free = threading.Semaphore(MOST_CONNECTIONS)
        super().__init__((host, port), handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self.free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news; anything else is a line, no traceback."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            print(f"a request failed: {type(error).__name__}: {error}", file=sys.stderr)


def http_server(service: Any, host: str = "127.0.0.1", port: int = 0, key: str | None = None) -> Server:
    """Bound, not yet serving: call serve_forever. port 0 takes a free one (`server_port`). Raises OSError."""

    class Bound(Handler):
        pass

    Bound.service, Bound.key, Bound.host = service, key, host
    return Server(host, port, Bound)


class Handler(BaseHTTPRequestHandler):
    """`service` answers; `key` is demanded where it is set; `host` is the address that --host named."""

    service: Any
    key: str | None
    host: str
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet, or each answer waits for the other side's delayed ACK
    served = False

    def setup(self) -> None:
        super().setup()
        self.timed = Timed(self.connection)
        self.rfile = io.BufferedReader(self.timed, 65536)

    def handle_one_request(self) -> None:
        self.timed.deadline = time.monotonic() + (IDLE_SECONDS if self.served else HEAD_SECONDS)
        super().handle_one_request()
        self.served = True

    def handle_expect_100(self) -> bool:
        return True  # said in `_body`, once it is known that the body is wanted

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the standard library refuses: a request line, headers or a method that are none."""
        self.request_version, self.close_connection = "HTTP/1.1", True  # 0.9 would be answered without a status
        self._reply(code, {"error": message or "no HTTP request"})

    def do_GET(self) -> None:
        self._answer("/hello", lambda: self.service.hello())

    def do_POST(self) -> None:
        self._answer("/score", lambda: self.service.answer(parsed(self._body())))

    def _answer(self, path: str, found: Callable[[], dict[str, Any]]) -> None:
        try:
            self._admit()
            if self.path != path:
                raise Refused(
                    404,
                    f"not found: this server answers GET /hello and POST /score, not {self.command} {self.path[:80]}",
                )
            if self.command == "GET" and self._length(needed=False):
                raise Refused(400, "a GET has no body")
            self._reply(200, found())
        except Refused as refusal:
            self.close_connection = True  # what is left of the request would be read as the next one
            self._reply(refusal.status, {"error": str(refusal)})
            self._drain()

    def _admit(self) -> None:
        """Raises Refused for a page of another site, whose script a browser runs, and for a client without the key."""
        hosts, origin = self.headers.get_all("Host", []), self.headers.get("Origin")
        if len(hosts) != 1 or not allowed(hosts[0], self.host):
            raise Refused(403, "the Host is not this server's: ask by the address that --host gave, or by localhost")
        if origin is not None:
            raise Refused(403, "requests of web pages are not answered")
        given = self.headers.get("Authorization", "")
        if self.key is not None and not hmac.compare_digest(given.encode(), f"Bearer {self.key}".encode()):
            raise Refused(401, "a key is needed")

    def _length(self, needed: bool = True) -> int:
        """Of the body, in bytes. Raises Refused, before anything of it is read."""
        if self.headers.get("Transfer-Encoding") is not None:
            raise Refused(501, "Transfer-Encoding is not understood; send a Content-Length")
        lengths = self.headers.get_all("Content-Length", [])
        if not lengths and needed:
            raise Refused(411, "a Content-Length is needed")
        if len(lengths) > 1 or not all(re.fullmatch("[0-9]{1,18}", length) for length in lengths):
            raise Refused(400, "Content-Length must be one whole number")
        length = int(lengths[0]) if lengths else 0
        if length > LARGEST:
            raise Refused(413, f"a request has at most {LARGEST} bytes")
        return length

    def _body(self) -> bytes:
        length = self._length()
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
            self.wfile.flush()
        self.timed.deadline = time.monotonic() + BODY_SECONDS + length / SLOWEST
        parts: list[bytes] = []  # piece by piece: memory is taken for what came, not for what was announced
        while length and (part := self.rfile.read1(min(length, 1 << 20))):
            parts.append(part)
            length -= len(part)
        if length:
            raise Refused(400, "the body is shorter than its Content-Length")
        return b"".join(parts)

    def _reply(self, status: int, found: dict[str, Any]) -> None:
        body = json.dumps(found).encode()
        self.connection.settimeout(WRITE_SECONDS)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def _drain(self) -> None:
        """Read on for a moment, keeping nothing: closed at once, the client would see a broken line and no answer."""
        self.wfile.flush()
        try:
            self.connection.shutdown(socket.SHUT_WR)
            self.timed.deadline = time.monotonic() + 2.0
            while self.rfile.read1(1 << 16):
                pass
        except OSError:
            return

    def log_message(self, format: str, *args: Any) -> None:
        """A line per request would bury what matters."""


def allowed(given: str, bound: str) -> bool:
    """Whether a Host header names this server: loopback, or what it is bound to. Bound to every address, it may be any
    address, but no name: a name that a stranger's DNS points here (DNS rebinding) is what a browser would send."""
    found = HOST.fullmatch(given)
    if found is None:
        return False
    name = (found["name"] or found["address"]).lower()
    if name in (*LOOPBACK, bound.lower()):
        return True
    if bound not in ("0.0.0.0", "::", ""):
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name == socket.gethostname().lower()
    return True


def parsed(raw: bytes) -> Any:
    """The JSON of a request. Raises Refused for what is none, is too deep or holds too many values."""
    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") > MOST_VALUES:
        raise Refused(400, f"the request holds more than {MOST_VALUES} values")
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Refused(
            400, "the request is not JSON" + (", or too deep" if isinstance(error, RecursionError) else "")
        ) from error
    if deeper(found, DEEPEST):
        raise Refused(400, f"the request is deeper than {DEEPEST} lists and objects inside each other")
    return found


def deeper(found: Any, most: int) -> bool:
    """Whether more than `most` lists and objects stand inside each other."""
    level: list[Any] = [found]
    for _ in range(most + 1):
        inner = [item for item in level if isinstance(item, (list, dict))]
        level = [value for item in inner for value in (item.values() if isinstance(item, dict) else item)]
        if not inner:
            return False
    return True
