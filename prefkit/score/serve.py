"""Serve any scorer to another process or machine:

    python -m prefkit.score.serve clip --options '{"model": "ViT-B-32"}' --port 8765
    python -m prefkit.score.serve clip --stdio

In the recipe, write `use: http://127.0.0.1:8765`, or `use: "exec:/other/env/bin/python -m prefkit.score.serve clip
--stdio"`. prefkit/score/remote/protocol.py documents the messages. The server scores one batch at a time.
The server is bound to 127.0.0.1 unless --host is set. Any client that can reach the port may use the server, unless
--key-env names an environment variable with a key that clients must send.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import threading
from collections.abc import Sequence
from typing import Any

from prefkit import interrupts
from prefkit.distributed import device_of
from prefkit.errors import PrefkitError, UsageError
from prefkit.plugin_guard import error_summary, guarded
from prefkit.score.core import close, make_scorer, score_batch
from prefkit.score.licence import check_licence
from prefkit.score.remote.connection import key_of
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


def serve_lines(service: Service) -> None:
    """Read requests from standard input and write answers to standard output, where nothing else may be printed."""
    out, sys.stdout = sys.stdout, sys.stderr
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, 130 after Ctrl-C or SIGTERM."""
    try:
        with interrupts.handled(at_once=True):
            return _main(arguments)
    except KeyboardInterrupt:
        return interrupts.CODE


def _main(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m prefkit.score.serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scorer", help="a name listed by `prefkit plugins`, file.py:function, or package.module:Class")
    parser.add_argument("--options", default="{}", help="the scorer's options as JSON")
    parser.add_argument("--stdio", action="store_true", help="use standard input and output instead of a port")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--key-env", default="", help="environment variable with the API key that clients must send")
    parser.add_argument("--device")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument(
        "--accept-license", action="append", default=[], help="accept this restricted licence of the scorer"
    )
    args = parser.parse_args(arguments)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            service = Service(_loaded(args), paths=args.stdio)
        if args.stdio:
            with contextlib.closing(service):
                serve_lines(service)
            return 0
        key = key_of(args.key_env)
        if args.key_env and key is None:
            raise UsageError(f"--key-env: the environment variable {args.key_env} is not set.")
        server = _bound(service, args.host, args.port, key)
    except PrefkitError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    host = f"[{args.host}]" if ":" in args.host else args.host
    print(f"{args.scorer} at http://{host}:{server.server_port}", file=sys.stderr, flush=True)
    with contextlib.closing(service):
        server.serve_forever()
    return 0


def _bound(service: Service, host: str, port: int, key: str | None) -> Server:
    try:
        return http_server(service, host, port, key)
    except (OSError, OverflowError, ValueError) as error:
        raise UsageError(f"cannot listen on {host}, port {port}: {error}. Choose another --host or --port.") from error


def _loaded(args: argparse.Namespace) -> Any:
    try:
        options = json.loads(args.options)
    except ValueError as error:
        raise UsageError(f"--options is not valid JSON: {error}.") from error
    scorer = make_scorer(args.scorer, options)
    check_licence(scorer, args.accept_license, args.scorer)
    with guarded(f"scorer {args.scorer}"):
        scorer.load(device_of(args.device), args.dtype)
    return scorer


if __name__ == "__main__":
    sys.exit(main())
