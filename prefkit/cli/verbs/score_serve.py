"""score --serve NAME: answer the scoring requests of another process or machine. The scorer's options are flags."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

from prefkit import output
from prefkit.config import reader
from prefkit.errors import UsageError

SERVE_FLAGS = ("device", "dtype", "accept_license")
HOST, PORT = "127.0.0.1", 8765


def arguments(parser: argparse.ArgumentParser) -> None:
    text = (
        "serve scorer NAME over HTTP, for `use: http://HOST:PORT` in another recipe; the scorer's options are flags, and "
        "--device, --dtype and --accept_license apply too"
    )
    parser.add_argument("--serve", metavar="NAME", help=text)
    add = parser.add_argument_group("with --serve").add_argument
    add("--host", help=f"address to listen on ({HOST})")
    add("--port", type=port, help=f"port to listen on; 0 = any free port ({PORT})")
    add("--require-key", metavar="VARIABLE", help="environment variable with the API key that clients must send")
    text = 'use standard input and output instead of a port, for `use: "exec:python -m prefkit score --serve NAME --stdio"`'
    add("--stdio", action="store_true", help=text)


def check(known: argparse.Namespace) -> None:
    """Raise UsageError for a flag that only `--serve` uses, or that `--serve` or `--check` would ignore."""
    if not known.serve:
        for flag in ("host", "port", "require_key", "stdio"):
            if getattr(known, flag) not in (None, False):
                raise UsageError(f"--{flag.replace('_', '-')} needs --serve NAME.")
    elif known.stdio:
        for flag in ("host", "port", "require_key"):
            if getattr(known, flag) is not None:
                raise UsageError(f"--stdio uses no port. Remove --{flag.replace('_', '-')}.")
    if not known.serve and not known.check:
        return
    given = {"-r": known.recipe, "--name": known.name, "--limit": known.limit, "--redo": known.redo}
    given |= {"--dry-run": known.dry_run}
    if known.serve:
        given |= {"--check": known.check, f"the run folder {known.run_folder}": known.run_folder}
    if extra := next((flag for flag, value in given.items() if value), None):
        mode, kind = ("--serve", "serves") if known.serve else ("--check", "tests")
        raise UsageError(
            f"score {mode} {kind} one scorer, whose options are flags, and does not use {extra}. Remove it."
        )


def act(known: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    """Load the scorer and serve it until a signal or, with --stdio, the end of the input."""
    from prefkit.score.remote.connection import key_of
    from prefkit.score.serve import Service, bound, serve_lines

    service = Service(_loaded(known.serve, flags), paths=known.stdio)
    with contextlib.closing(service):
        if known.stdio:
            serve_lines(service, output.results())
            return 0
        key = key_of(known.require_key or "")
        if known.require_key and key is None:
            raise UsageError(f"--require-key: the environment variable {known.require_key} is not set.")
        host = known.host or HOST
        server = bound(service, host, PORT if known.port is None else known.port, key)
        output.note(f"{known.serve} at http://{f'[{host}]' if ':' in host else host}:{server.server_port}")
        server.serve_forever()
    return 0


def port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a port number from 0 to 65535")
    return int(text)


def _loaded(name: str, flags: list[tuple[str, str]]) -> Any:
    from prefkit.distributed import device_of
    from prefkit.plugin_guard import guarded
    from prefkit.score.core import make_scorer
    from prefkit.score.licence import check_licence

    settings = {key: text for key, text in flags if key in SERVE_FLAGS}
    options = reader.tree_of_flags([flag for flag in flags if flag[0] not in SERVE_FLAGS])
    scorer = make_scorer(name, options, name)
    check_licence(scorer, [settings.get("accept_license", "")], f"score --serve {name}")
    with guarded(f"scorer {name}"):
        scorer.load(device_of(settings.get("device")), settings.get("dtype", "float32"))
    return scorer
