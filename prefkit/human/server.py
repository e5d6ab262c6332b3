"""The live server: home page, contact sheet and report for the owner of a run, blind voting for any number of annotators.

A secret token starts the path of every address. The owner's token opens all pages; an annotator's opens the voting page
only, which names neither models nor candidates.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import socket
import tempfile
import threading
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prefkit import output
from prefkit.errors import PrefkitError, UsageError
from prefkit.human import home
from prefkit.human.ballot import Ballot, Conflict
from prefkit.human.http_host import allowed
from prefkit.human.page import VotePage, page_text
from prefkit.human.votes import ANNOTATOR
from prefkit.report.contact import add_decisions, contact_page
from prefkit.report.page import write_report
from prefkit.store import Store
from prefkit.store.files import read_json, write_whole

if TYPE_CHECKING:
    from prefkit.config import Recipe

SHEET = 200  # maximum number of candidates on a contact sheet
MOST_VOTE, MOST_DECISIONS = 4096, 1 << 20  # bytes of a request
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


class Site:
    """The pages that are served, and the endpoints that answer requests for them."""

    def __init__(self, store: Store, recipe: Recipe | None, page: VotePage, annotators: Sequence[str] = ()) -> None:
        """annotators: names of those who get an address of their own; without names, all share one address."""
        self.store, self.recipe, self.page = store, recipe, page
        self.ballot = Ballot(store, page.key)
        self.images = {page.names[name]: data for name, data in page.images.items()}
        secret = _secret(store)
        self.owner = _token(secret, "owner")
        #: token -> name of the annotator; "" for the address that all share
        self.voters = {_token(secret, "annotator", name): name for name in annotators or [""]}
        self.hashed = {name: hashed_name(page.salt, name) for name in annotators}
        self.reporting = threading.Lock()
        self.printed: set[str] = set()

    def routes(self) -> list[Route]:
        return [
            Route("/favicon.ico", lambda request: Response(status_code=204)),
            Route("/{token}", self.slash),
            Route("/{token}/", self.start),
            Route("/{token}/image/{name}", self.image),
            Route("/{token}/votes/{annotator}", self.votes),
            Route("/{token}/votes/{annotator}", self.vote, methods=["POST", "DELETE"]),
            Route("/{token}/progress", self.progress),
            Route("/{token}/contact", self.contact),
            Route("/{token}/decisions", self.decide, methods=["POST"]),
            Route("/{token}/report", self.report),
        ]

    def slash(self, request: Request) -> Response:
        self._voter(request)
        return RedirectResponse(f"/{request.path_params['token']}/")

    def start(self, request: Request) -> Response:
        voter = self._voter(request)
        if voter is None:
            return HTMLResponse(home.page(self.store, self.page.key, self._progress(request)))
        live = {"annotator": self.hashed[voter]} if voter else {}
        sources = {name: f"image/{file}" for name, file in self.page.names.items()}
        return HTMLResponse(page_text(self.page.key["question"], self.page, sources, "'self'", live))

    # -- voting ---------------------------------------------------------------------------------------------------
    def image(self, request: Request) -> Response:
        self._voter(request)
        data = self.images.get(request.path_params["name"])
        if data is None:
            raise HTTPException(404)
        return Response(data, media_type="image/webp", headers={"Cache-Control": "private, max-age=86400"})

    def votes(self, request: Request) -> Response:
        return JSONResponse({"votes": self.ballot.votes(self._annotator(request))})

    async def vote(self, request: Request) -> Response:
        annotator = self._annotator(request)
        try:
            vote = json.loads(await _body(request, MOST_VOTE))
            pair = str(vote["pair"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise HTTPException(400, "this is not a vote") from error
        try:
            if request.method == "DELETE":
                await run_in_threadpool(self.ballot.undo, annotator, pair)
            else:
                await run_in_threadpool(self.ballot.add, annotator, vote)
        except Conflict:
            return JSONResponse({"votes": await run_in_threadpool(self.ballot.votes, annotator)}, 409)
        return JSONResponse({})

    # -- pages for the owner --------------------------------------------------------------------------------------
    def progress(self, request: Request) -> Response:
        self._check_owner(request)
        return HTMLResponse(self._progress(request))

    def contact(self, request: Request) -> Response:
        self._check_owner(request)
        requests = [name for name in request.query_params.getlist("request") if name.strip()]
        condition = request.query_params.get("filter", "").strip()
        return HTMLResponse(contact_page(self.store, requests, condition or None, live=True, most=SHEET))

    async def decide(self, request: Request) -> Response:
        self._check_owner(request)
        text = await _body(request, MOST_DECISIONS)
        return JSONResponse(await run_in_threadpool(self._add_decisions, text))

    def report(self, request: Request) -> Response:
        self._check_owner(request)
        with self.reporting:
            return HTMLResponse(write_report(self.store, self.recipe).read_bytes())

    def _add_decisions(self, text: bytes) -> dict[str, int]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "decisions.csv"
            path.write_bytes(text)
            return add_decisions(self.store, path)

    def _progress(self, request: Request) -> str:
        address = f"{request.url.scheme}://{request.headers['host']}"
        links = {name: f"{address}/{token}/" for token, name in self.voters.items()}
        return home.progress(self.ballot.progress(), len(self.page.key["pairs"]), links, self.hashed)

    def failed(self, request: Request, error: Exception) -> Response:
        """Answer a request that failed. An annotator does not see the reason, which may name files and candidates."""
        text = str(error)
        if not self._is_owner(request):
            if text not in self.printed:  # the page repeats its request
                output.error(text)
            self.printed.add(text)
            text = "votes cannot be read or stored; tell the person who gave you the address"
        return _answer(request, text, 400 if isinstance(error, UsageError) else 500)

    # -- access ---------------------------------------------------------------------------------------------------
    def _voter(self, request: Request) -> str | None:
        """Return the name of the annotator whose token the address has ("" for the shared one); None for the owner.

        Raises HTTPException (404) for any other token.
        """
        if self._is_owner(request):
            return None
        token = request.path_params["token"].encode()
        for known, name in self.voters.items():
            if hmac.compare_digest(known.encode(), token):
                return name
        raise HTTPException(404)

    def _is_owner(self, request: Request) -> bool:
        return hmac.compare_digest(self.owner.encode(), request.path_params["token"].encode())

    def _check_owner(self, request: Request) -> None:
        if self._voter(request) is not None:
            raise HTTPException(404)

    def _annotator(self, request: Request) -> str:
        """Return the hashed name in the address, if the token allows to vote under it. Raises HTTPException."""
        voter, annotator = self._voter(request), str(request.path_params["annotator"])
        if voter is None or not ANNOTATOR.fullmatch(annotator) or (voter and annotator != self.hashed[voter]):
            raise HTTPException(404)
        return annotator


class Guard:
    """Refuses requests that name another host or that other web pages send, and adds HEADERS to all answers."""

    def __init__(self, app: ASGIApp, host: str) -> None:
        self.app, self.host = app, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name for name, _ in message["headers"]}
                more = [(k.lower().encode(), v.encode()) for k, v in HEADERS.items() if k.lower().encode() not in own]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        reason = refusal(Headers(scope=scope), scope["scheme"], self.host) if scope["type"] == "http" else None
        app = self.app if reason is None else JSONResponse({"error": reason}, 403)
        await app(scope, receive, send_with_headers)


def refusal(headers: Headers, scheme: str, bound: str) -> str | None:
    """Return why a request is refused; None if its Host is this server and no other web page sent it."""
    hosts, origin = headers.getlist("host"), headers.get("origin")
    if len(hosts) != 1 or not allowed(hosts[0], bound):
        return "the Host header does not name this server: use the address that it printed, or localhost"
    if origin is not None and origin != f"{scheme}://{hosts[0]}":
        return "requests from other web pages are refused"
    if headers.get("sec-fetch-site") in ("cross-site", "same-site") and headers.get("sec-fetch-mode") != "navigate":
        return "requests from other web pages are refused"
    return None


def application(site: Site, host: str) -> Starlette:
    """Return the ASGI application. host: the address that the server is bound to."""
    app = Starlette(routes=site.routes(), exception_handlers={PrefkitError: site.failed, HTTPException: _refused})
    app.add_middleware(Guard, host=host)
    return app


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to host and port (0: any free port). Raises UsageError."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise UsageError(f"cannot listen on {host}, port {port}: {error}. Choose another --host or --port.") from error


def serve(app: ASGIApp, bound: socket.socket) -> None:
    """Answer requests until a signal. Prints no addresses, which hold the tokens."""
    limits: dict[str, Any] = {"limit_concurrency": 200, "timeout_keep_alive": 60, "timeout_graceful_shutdown": 5}
    quiet: dict[str, Any] = {"log_config": None, "access_log": False, "server_header": False}
    config = uvicorn.Config(app, lifespan="off", ws="none", proxy_headers=False, **limits, **quiet)
    uvicorn.Server(config).run(sockets=[bound])


def hashed_name(salt: str, name: str) -> str:
    """Return the name under which a person's votes are stored, as computed by prefkit/human/vote.js."""
    plain = unicodedata.normalize("NFKC", name).strip().lower()
    return "person-" + hashlib.sha256(f"{salt}\0{plain}".encode()).hexdigest()[:12]


def _secret(store: Store) -> str:
    """Return the run's secret, from which the tokens are derived, so that addresses stay valid after a restart."""
    path = store.folder / "votes" / "server.json"
    if not path.exists():
        write_whole(path, _save_secret)
    return str(read_json(path, f"Remove {path}; the addresses then change.")["secret"])


def _save_secret(path: Path) -> None:
    path.touch(0o600)  # before it holds the secret
    path.write_text(json.dumps({"secret": secrets.token_hex(32)}), encoding="utf-8")


def _token(secret: str, *names: str) -> str:
    return hmac.new(secret.encode(), json.dumps(names).encode(), "sha256").hexdigest()[:32]


async def _body(request: Request, most: int) -> bytes:
    """Return the body of a request. Raises HTTPException (413) if it has more than `most` bytes."""
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > most:
            raise HTTPException(413, f"a request has at most {most} bytes")
    return data


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = (
        "This address is not known here. Use one that the server printed." if error.status_code == 404 else error.detail
    )
    return _answer(request, text, error.status_code)


def _answer(request: Request, text: str, status: int) -> Response:
    if request.method != "GET":
        return JSONResponse({"error": text}, status)
    return HTMLResponse(home.message(text), status)
