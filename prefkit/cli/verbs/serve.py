"""serve: contact sheet, blind voting and report over HTTP, for several people at once."""

from __future__ import annotations

import argparse
import socket
from typing import Any

from prefkit import output
from prefkit.cli.main import open_run
from prefkit.cli.verbs.report import vote_arguments, vote_settings
from prefkit.cli.verbs.score_serve import port
from prefkit.errors import UsageError

HOST, PORT = "127.0.0.1", 8766
PACKAGES = ("starlette", "uvicorn")


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--host", default=HOST, help=f"address to listen on ({HOST}, which only this machine reaches)")
    add("--port", type=port, default=PORT, help=f"port to listen on; 0 = any free port ({PORT})")
    text = (
        "names, separated by commas; each gets an address of their own (default: one address, where they choose names)"
    )
    add("--annotators", metavar="A,B", default="", help=text)
    vote_arguments(parser.add_argument_group("voting"))


def act(known: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    """Print the addresses and serve the pages until a signal."""
    annotators = list(dict.fromkeys(name.strip() for name in known.annotators.split(",") if name.strip()))
    run = open_run("serve", known, flags)
    if not run.store.exists():
        folder = output.shell_quoted(run.folder)
        raise UsageError(f"{run.folder} is not a run folder: it has no run.json. Run `prefkit generate {folder}`.")
    run.store.check_single()
    server = _server()
    from prefkit.human.page import counts_of, make_page

    page = make_page(run.store, vote_settings(known), resume=True)
    site = server.Site(run.store, run.recipe, page, annotators)
    with server.listen(known.host, known.port) as bound:
        address = _address(known.host, bound.getsockname()[1])
        pages = {"home": f"{address}/{site.owner}/"}
        pages |= {f"vote, {name}" if name else "vote": f"{address}/{token}/" for token, name in site.voters.items()}
        result = {"page": page.key["page"], **counts_of(page.key), "addresses": pages}
        output.emit(result, known.json, [{"page": name, "address": link} for name, link in pages.items()])
        _notes(site, known)
        server.serve(server.application(site, known.host), bound)
    return 0


def _server() -> Any:
    try:
        from prefkit.human import server
    except ModuleNotFoundError as error:
        if error.name not in PACKAGES:
            raise
        raise UsageError(f"serve: {error.name} is not installed. Run: pip install 'prefkit[serve]'") from error
    return server


def _address(host: str, number: int) -> str:
    name = socket.gethostname() if host in ("0.0.0.0", "::") else host
    return f"http://{f'[{name}]' if ':' in name else name}:{number}"


def _notes(site: Any, known: argparse.Namespace) -> None:
    done = site.ballot.progress()
    if done:
        votes = sum(row["votes"] + row["skipped"] for row in done)
        output.note(
            f"Continuing page {site.ballot.page} (annotators: {len(done)}, votes: {votes}). For other pairs, give another "
            "--seed."
        )
    if known.host not in (HOST, "localhost", "::1"):
        output.warn(
            "the addresses are secrets, but HTTP sends them unencrypted; in a network that you do not trust, listen on "
            f"{HOST} and let annotators connect through SSH."
        )
    output.hint(
        "keep `home` to yourself (it shows which model made an image); give annotators `vote`. Stop with Ctrl-C."
    )
