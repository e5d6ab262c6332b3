"""Serve a scorer to another process or machine (`prefkit score --serve NAME`), over HTTP or standard input and output.

prefkit/score/remote/protocol.py documents the messages. The server scores one batch at a time. Any client that can reach
its port may use it, unless it requires a key.
"""

from __future__ import annotations

import json
import sys
import threading
from typing import IO, Any

from prefkit.errors import PrefkitError, UsageError
from prefkit.plugin_guard import error_summary
from prefkit.score.core import close, score_batch
from prefkit.score.remote.protocol import decode_item, encode_answer, encode_hello
from prefkit.score.remote.server import Server, http_server


class Service:
    """A loaded scorer that answers scoring requests.

    paths: accept items that name an image file on this machine. This is safe only if the client is the process that
    started this one; over a port, any client could read files.
    """

    def __init__(self, scorer: Any, paths: bool = False) -> None:
        self.scorer, self.paths, self.lock = scorer, paths, threading.Lock()

    def close(self) -> None:
        """End the scorer's pending requests and processes."""
        close(self.scorer, "the scorer")

    def hello(self) -> dict[str, Any]:
        return encode_hello(self.scorer)

    def answer(self, request: Any) -> dict[str, Any]:
        """Return the answer to a request; for an invalid request, the answer is an error message. Never raises."""
        try:
            batch = [decode_item(item, self.paths) for item in request["items"]]
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            return {"error": f"this is not a request of the protocol ({error_summary(error)})"}
        try:
            with self.lock:
                return encode_answer(score_batch(self.scorer, batch))
        except Exception as error:
            return {"error": str(error) if isinstance(error, PrefkitError) else error_summary(error)}


def serve_lines(service: Service, out: IO[str]) -> None:
    """Read requests from standard input and write answers to `out`, where nothing else may be printed."""
    print(json.dumps(service.hello()), file=out, flush=True)
    for line in sys.stdin:
        try:
            request = json.loads(line)
            number = request["request"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            answer, number = {"error": f"this is not a request of the protocol ({error_summary(error)})"}, None
        else:
            answer = service.answer(request)
        print(json.dumps({"request": number, **answer}), file=out, flush=True)


def bound(service: Service, host: str, port: int, key: str | None) -> Server:
    """Return a server that listens on host and port. Raises UsageError if that is impossible."""
    try:
        return http_server(service, host, port, key)
    except (OSError, OverflowError, ValueError) as error:
        raise UsageError(f"cannot listen on {host}, port {port}: {error}. Choose another --host or --port.") from error
