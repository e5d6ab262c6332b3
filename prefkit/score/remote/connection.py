"""One HTTP connection, kept open, with a limit on the whole of a request."""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Mapping
from urllib.parse import SplitResult, urlsplit

from prefkit.errors import UsageError

LARGEST = 64 * 2**20  # bytes of an answer


def checked_url(url: str, where: str) -> SplitResult:
    """The parts of an http(s) URL. Raises UsageError for another kind, and for one that holds a password."""
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # half a bracket, a port that is no number
        whole = False
    if not whole or not parts.netloc.isascii():
        raise UsageError(f"{where}: {url!r} is not an address such as http://127.0.0.1:8000/v1.")
    if parts.username or parts.password or parts.query:
        raise UsageError(
            f"{where}: the address must hold neither user, password nor query, since it is written into recipes and "
            "logs. A key belongs into an environment variable, which `key_env` names."
        )
    return parts


class Connection:
    """To one server, through the proxy that the environment names (HTTPS_PROXY, NO_PROXY) if any."""

    def __init__(self, url: SplitResult, timeout: float) -> None:
        self.url, self.timeout, self.requests = url, timeout, 0
        self.http = self._open()

    def _open(self) -> http.client.HTTPConnection:
        host, port, secure = str(self.url.hostname), self.url.port, self.url.scheme == "https"
        proxy = urllib.request.getproxies().get(self.url.scheme)
        self.prefix = ""
        if proxy is None or urllib.request.proxy_bypass(host):
            kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
            return kind(host, port, timeout=self.timeout)
        via = urlsplit(proxy if "//" in proxy else f"//{proxy}")
        if not secure:
            self.prefix = f"http://{self.url.netloc}"
            return http.client.HTTPConnection(str(via.hostname), via.port, timeout=self.timeout)
        context = ssl.create_default_context()
        tunnel = http.client.HTTPSConnection(str(via.hostname), via.port, timeout=self.timeout, context=context)
        tunnel.set_tunnel(host, port or 443)
        return tunnel

    def request(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[int, str | None, bytes]:
        """(status, Retry-After, body). Raises OSError or HTTPException; TimeoutError past the limit for the whole."""
        deadline = time.monotonic() + self.timeout
        self.requests += 1
        # a server that sends a byte of its headers now and then never trips the socket's limit
        watch = threading.Timer(self.timeout, self.cut)
        watch.daemon = True
        watch.start()
        try:
            self.http.request(method, self.prefix + path, body, dict(headers))
            response = self.http.getresponse()
            parts: list[bytes] = []
            size = 0
            while part := response.read1(65536):
                size += len(part)
                parts.append(part)
                if size > LARGEST:
                    raise http.client.HTTPException(f"the answer is longer than {LARGEST >> 20} MiB")
                if (
                    time.monotonic() > deadline
                ):  # a server that sends a byte now and then never trips the socket's limit
                    raise TimeoutError(f"no whole answer within {self.timeout:g} s")
            if time.monotonic() >= deadline:  # `watch` cut the headers short, which looks like their end
                raise TimeoutError(f"no whole answer within {self.timeout:g} s")
            if response.length:  # read1 takes a connection that breaks off for the end
                raise http.client.IncompleteRead(b"", response.length)
            response.close()  # read1 does not say that it is done, and the connection must be free for the next request
        except BaseException as error:
            self.http.close()
            if time.monotonic() > deadline and isinstance(error, (OSError, http.client.HTTPException)):
                raise TimeoutError(f"no whole answer within {self.timeout:g} s") from error
            raise
        finally:
            watch.cancel()
        return response.status, response.getheader("Retry-After"), b"".join(parts)

    def cut(self) -> None:
        """Ends a request that another thread waits in."""
        sock = self.http.sock
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:  # it has just ended by itself
                return


def key_of(key_env: str) -> str | None:
    """The key in the environment variable of that name; None where it is not set. Raises UsageError, without the key."""
    key = os.environ.get(key_env, "").strip() if key_env else ""
    if key and not (key.isascii() and key.isprintable()):
        raise UsageError(f"${key_env} holds signs that no API key has; set it anew.")
    return key or None
