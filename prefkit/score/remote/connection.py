"""A persistent HTTP connection with limits on the duration and the size of each answer."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import time
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit

import httpcore2

from prefkit.errors import UsageError

LARGEST = 64 * 2**20  # bytes of an answer
CHUNK = 2**16  # bytes written before the deadline is checked again
#: raised by `Connection.request`; ValueError is for an invalid host name, or a TLS socket that `cut` has closed
ERRORS = (OSError, ValueError, httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.ProxyError)


def checked_url(url: str, where: str) -> SplitResult:
    """Return the parts of an http(s) URL. Raises UsageError for any other text and for a user, password or query."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # such as an unclosed bracket, or a port that is not a number
        valid = False
    if not valid or not parts.netloc.isascii():
        raise UsageError(f"{where}: {url!r} is not an address such as http://127.0.0.1:8000/v1.")
    if parts.username or parts.password or parts.query:
        raise UsageError(
            f"{where}: the address must not contain a user, a password or a query, because it is written into recipes "
            "and logs. Put the key into an environment variable and name the variable in `key_env`."
        )
    return parts


class Connection(httpcore2.NetworkBackend):
    """Connection of one thread to one server, through the proxy in HTTPS_PROXY (or HTTP_PROXY), if set.

    It follows no redirects and keeps no cookies. timeout: time limit for a request in seconds.
    """

    def __init__(self, url: SplitResult, timeout: float, headers: Mapping[str, str], context: ssl.SSLContext) -> None:
        path = quote(url.path.rstrip("/"), safe="/%:@!$&'()*+,;=~")
        self.url = f"{url.scheme}://{url.netloc}{path}"
        # sets Host, because httpcore2 would omit the brackets of an IPv6 address
        self.timeout, self.headers = timeout, [("Host", url.netloc), *headers.items()]
        self.requests, self.deadline = 0, 0.0
        self.stream: DeadlineStream | None = None
        proxy = urllib.request.getproxies().get(url.scheme)
        if proxy is None or urllib.request.proxy_bypass(str(url.hostname)):
            self.pool = httpcore2.ConnectionPool(ssl_context=context, network_backend=self)
        else:
            address = proxy if "//" in proxy else f"http://{proxy}"
            self.pool = httpcore2.HTTPProxy(address, ssl_context=context, network_backend=self)

    def request(self, path: str, body: bytes | None) -> tuple[int, str | None, bytes]:
        """Send POST, or GET if `body` is None, and return (status, Retry-After, answer). Raises ERRORS."""
        self.deadline = time.monotonic() + self.timeout
        self.requests += 1
        raw = bytearray()
        try:
            method = "GET" if body is None else "POST"
            with self.pool.stream(method, self.url + path, headers=self.headers, content=body) as response:
                for part in response.iter_stream():
                    raw += part
                    if len(raw) > LARGEST:
                        raise OSError(f"the answer is longer than {LARGEST >> 20} MiB")
        except httpcore2.TimeoutException as error:
            raise TimeoutError(f"no complete answer within {self.timeout:g} s") from error
        headers = {name.lower(): value.decode("latin-1") for name, value in response.headers}
        return response.status, headers.get(b"retry-after"), bytes(raw)

    def remaining(self) -> float:
        """Return the seconds until the current request's deadline. Raises TimeoutError if it has passed."""
        seconds = self.deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError(f"no complete answer within {self.timeout:g} s")
        return seconds

    def connect_tcp(self, host: str, port: int, *_: Any, **options: Any) -> httpcore2.NetworkStream:
        options["timeout"] = self.remaining()
        self.stream = DeadlineStream(httpcore2.SyncBackend().connect_tcp(host, port, **options), self.remaining)
        return self.stream

    def cut(self) -> None:
        """End the request that another thread waits for."""
        if self.stream is not None:
            with contextlib.suppress(OSError):  # already closed
                self.stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


class DeadlineStream(httpcore2.NetworkStream):
    """Network stream with one deadline for all reads and writes of a request, instead of a timeout for each."""

    def __init__(self, stream: httpcore2.NetworkStream, remaining: Callable[[], float]) -> None:
        self.stream, self.remaining = stream, remaining

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self.stream.read(max_bytes, self.remaining())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), CHUNK):  # `write` applies its timeout to each part, not to the whole buffer
            self.stream.write(buffer[start : start + CHUNK], self.remaining())

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        self.stream = self.stream.start_tls(ssl_context, server_hostname, self.remaining())
        return self

    def get_extra_info(self, info: str) -> Any:
        return self.stream.get_extra_info(info)

    def close(self) -> None:
        self.stream.close()


def key_of(key_env: str) -> str | None:
    """Return the API key in the environment variable `key_env`; None if unset. Raises UsageError for an invalid key."""
    key = os.environ.get(key_env, "").strip() if key_env else ""
    if key and not (key.isascii() and key.isprintable()):
        raise UsageError(f"${key_env} contains characters that no API key has; check its value.")
    return key or None
