"""HTTP server of `prefkit score --serve`, with limits on clients, sizes and durations.

The server checks the client (Host, Origin, key) and the length of the body before it reads the body, within a time
limit that depends on the length. It closes the connection of a refused request.
"""

from __future__ import annotations

import hmac
import io
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prefkit.human.http_host import allowed

LARGEST = 256 * 2**20  # maximum number of bytes in a request
MOST_VALUES = 1_000_000  # number of JSON values in a request; parsed values need much more memory than their text
DEEPEST = 32  # nested lists and objects
MOST_CONNECTIONS = 64
HEAD_SECONDS, IDLE_SECONDS = 10.0, 60.0  # until the headers are complete; between two requests on a connection
BODY_SECONDS, SLOWEST = 30.0, 256 * 2**10  # time limit for a body: BODY_SECONDS, plus one second per SLOWEST bytes
WRITE_SECONDS = 30.0


class Refused(Exception):
    """Raised to answer a request with the HTTP error `status`."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class TimedSocket(io.RawIOBase):
    """Socket with one deadline, in time.monotonic(), for all its reads."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.deadline = connection, time.monotonic() + HEAD_SECONDS

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        seconds = self.deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError("the request took too long")
        self.connection.settimeout(seconds)
        return self.connection.recv_into(buffer)


class Server(ThreadingHTTPServer):
    """Server that keeps at most MOST_CONNECTIONS open and closes further connections without reading from them."""

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
        """Print one line for an error, and nothing for a client that has disconnected."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            print(f"a request failed: {type(error).__name__}: {error}", file=sys.stderr)


def http_server(service: Any, host: str = "127.0.0.1", port: int = 0, key: str | None = None) -> Server:
    """Return a bound server; `serve_forever` starts it. Port 0: any free port (`server_port`). Raises OSError."""
    return Server(host, port, type("BoundHandler", (Handler,), {"service": service, "key": key, "host": host}))


class Handler(BaseHTTPRequestHandler):
    """Request handler. service: the Service to call; key: the API key to require, if set; host: the value of --host."""

    service: Any
    key: str | None
    host: str
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet; otherwise each answer waits for the client's delayed ACK
    served = False

    def setup(self) -> None:
        super().setup()
        self.timed = TimedSocket(self.connection)
        self.rfile = io.BufferedReader(self.timed, 65536)

    def handle_one_request(self) -> None:
        self.timed.deadline = time.monotonic() + (IDLE_SECONDS if self.served else HEAD_SECONDS)
        super().handle_one_request()
        self.served = True

    def handle_expect_100(self) -> bool:
        return True  # `_body` sends the 100, after all checks

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer requests that the standard library refuses: an invalid request line, header or method."""
        self.request_version, self.close_connection = "HTTP/1.1", True  # HTTP 0.9 answers have no status
        self._reply(code, {"error": message or "not an HTTP request"})

    def do_GET(self) -> None:
        self._answer("/hello", lambda: self.service.hello())

    def do_POST(self) -> None:
        self._answer("/score", lambda: self.service.answer(parsed(self._body())))

    def _answer(self, path: str, make: Callable[[], dict[str, Any]]) -> None:
        try:
            self._admit()
            if self.path != path:
                raise Refused(
                    404,
                    f"not found: this server answers GET /hello and POST /score, not {self.command} {self.path[:80]}",
                )
            if self.command == "GET" and self._length(needed=False):
                raise Refused(400, "a GET request must not have a body")
            self._reply(200, make())
        except Refused as refusal:
            self.close_connection = True  # the rest of the request would be read as the next one
            self._reply(refusal.status, {"error": str(refusal)})
            self._drain()

    def _admit(self) -> None:
        """Raise Refused if the request comes from a web page, names another host or lacks the API key."""
        hosts, origin = self.headers.get_all("Host", []), self.headers.get("Origin")
        if len(hosts) != 1 or not allowed(hosts[0], self.host):
            raise Refused(403, "the Host header does not name this server: use the address of --host, or localhost")
        if origin is not None:
            raise Refused(403, "requests from web pages are refused")
        token = self.headers.get("Authorization", "")
        if self.key is not None and not hmac.compare_digest(token.encode(), f"Bearer {self.key}".encode()):
            raise Refused(401, "the API key is missing or wrong: send it as `Authorization: Bearer KEY`")

    def _length(self, needed: bool = True) -> int:
        """Return the length of the body in bytes. Raises Refused before any of it is read."""
        if self.headers.get("Transfer-Encoding") is not None:
            raise Refused(501, "Transfer-Encoding is not supported; send a Content-Length")
        lengths = self.headers.get_all("Content-Length", [])
        if not lengths and needed:
            raise Refused(411, "a Content-Length is needed")
        if len(lengths) > 1 or not all(re.fullmatch("[0-9]{1,18}", length) for length in lengths):
            raise Refused(400, "Content-Length must be one whole number")
        length = int(lengths[0]) if lengths else 0
        if length > LARGEST:
            raise Refused(413, f"the request body is longer than {LARGEST} bytes")
        return length

    def _body(self) -> bytes:
        length = self._length()
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
            self.wfile.flush()
        self.timed.deadline = time.monotonic() + BODY_SECONDS + length / SLOWEST
        parts: list[bytes] = []  # in parts, so that memory grows with the bytes received, not with the announced length
        while length and (part := self.rfile.read1(min(length, 1 << 20))):
            parts.append(part)
            length -= len(part)
        if length:
            raise Refused(400, "the body is shorter than its Content-Length")
        return b"".join(parts)

    def _reply(self, status: int, message: dict[str, Any]) -> None:
        body = json.dumps(message).encode()
        self.connection.settimeout(WRITE_SECONDS)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def _drain(self) -> None:
        """Discard input for up to 2 s: if closed at once, the connection might break before the answer arrives."""
        self.wfile.flush()
        try:
            self.connection.shutdown(socket.SHUT_WR)
            self.timed.deadline = time.monotonic() + 2.0
            while self.rfile.read1(1 << 16):
                pass
        except OSError:
            return

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing per request."""


def parsed(raw: bytes) -> Any:
    """Parse the JSON of a request. Raises Refused if it is invalid, too deep or has too many values."""
    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") > MOST_VALUES:
        raise Refused(400, f"the request has more than {MOST_VALUES} values")
    try:
        message = json.loads(raw)
    except (ValueError, RecursionError) as error:
        reason = ", or nested too deeply" if isinstance(error, RecursionError) else ""
        raise Refused(400, f"the request is not JSON{reason}") from error
    if deeper(message, DEEPEST):
        raise Refused(400, f"the request has more than {DEEPEST} nested lists and objects")
    return message


def deeper(value: Any, most: int) -> bool:
    """True if lists and objects are nested more than `most` deep."""
    level: list[Any] = [value]
    for _ in range(most + 1):
        inner = [item for item in level if isinstance(item, (list, dict))]
        level = [value for item in inner for value in (item.values() if isinstance(item, dict) else item)]
        if not inner:
            return False
    return True
