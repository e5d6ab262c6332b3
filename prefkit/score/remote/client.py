"""HTTP client for remote judges and scorers, with limited concurrency, retries, and answers stored on disk."""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import json
import random
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from prefkit.errors import PluginError
from prefkit.score.remote.answers import Answers
from prefkit.score.remote.connection import ERRORS, Connection, checked_url, key_of

RETRIED = {408, 409, 429}  # and 5xx: the same request may succeed later
REFUSED = {301, 302, 303, 307, 308, 401, 402, 403, 404, 405}  # the server would also refuse every other request
AT_FAULT = {400, 413, 414, 415, 422}  # the question itself is invalid: its error is final
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds between tries; doubled after each try, up to LONGEST_WAIT
LONGEST_RETRY_AFTER = 300.0  # seconds; a request fails if the server asks to wait longer
KNOWN = REFUSED | AT_FAULT | RETRIED | set(range(500, 600))
EXCERPT = 300  # number of characters of a server's answer that an error quotes


@dataclass(frozen=True)
class Answer:
    """An answer: the parsed JSON in `body`, or else the reason in `error`.

    status: HTTP status, 0 if no complete answer arrived. retry_after: seconds that the server asks to wait.
    """

    body: Any = None
    error: str | None = None
    cached: bool = False
    status: int = 0
    text: str | None = None
    retry_after: float = 0.0


class Client:
    """Thread-safe client that posts JSON to one server.

    server    http(s)://host[:port][/prefix]
    key_env   environment variable with the API key, sent as a bearer token and never written to disk
    in_flight maximum number of concurrent requests, including those that wait for their next try
    timeout   time limit for a request in seconds
    tries     maximum number of times that a request is sent
    answers   stored answers; None: answers are not stored
    version   model version; stored answers from other versions are not used
    `map`, and futures from `submit`, raise PluginError after an HTTP status in REFUSED.
    """

    def __init__(
        self,
        server: str,
        *,
        key_env: str = "",
        in_flight: int = 16,
        timeout: float = 120.0,
        tries: int = 6,
        answers: Answers | None = None,
        version: str | None = None,
    ) -> None:
        self.url, self.version = checked_url(server, "server"), version
        self.key, self.key_env = key_of(key_env), key_env
        self.timeout, self.tries, self.answers = timeout, tries, answers
        self.context = ssl.create_default_context()  # shared by all connections, since loading certificates takes long
        self.pool = ThreadPoolExecutor(in_flight, "judge")
        self.local = threading.local()
        self.connections: list[Connection] = []
        self.pending: dict[str, Future[Answer]] = {}
        self.lock = threading.Lock()
        self.closed = threading.Event()
        self.refused: PluginError | None = None

    @property
    def sent(self) -> int:
        """Number of requests so far, including repeated tries."""
        return sum(connection.requests for connection in self.connections)

    def map(self, path: str, payloads: Sequence[Mapping[str, Any]]) -> list[Answer]:
        """Return one answer per payload, in order. An interruption closes the client."""
        futures = [self.submit(path, payload) for payload in payloads]
        try:
            return [future.result() for future in futures]
        except Exception:
            for future in futures:
                future.cancel()
            raise
        except BaseException:
            self.close()
            raise
        finally:
            if self.answers is not None:
                self.answers.flush()

    def submit(self, path: str, payload: Mapping[str, Any]) -> Future[Answer]:
        """Post a payload without waiting for the answer. Equal pending payloads share one request."""
        body = json.dumps(payload, ensure_ascii=False, sort_keys=True).encode("utf-8", "surrogatepass")
        if self.answers is None:
            return self.pool.submit(self._ask, path, body, None)
        salt = f"{self.url.geturl()}\n{path}\n" + (f"{self.version}\n" if self.version else "")
        key = hashlib.sha256(salt.encode() + body).hexdigest()
        with self.lock:
            future = self.pending.get(key)
            if future is None or future.cancelled():
                stored = self.answers.get(key)  # looked up here, so that the threads of the pool only send requests
                if stored is not None:
                    return _done(*stored)
                future = self.pending[key] = self.pool.submit(self._ask_once, path, body, key)
        return future

    def get(self, path: str) -> Answer:
        """Send a GET request, whose answer is not stored."""
        return self._ask(path, None, None)

    def close(self) -> None:
        """End all pending requests. Threads that wait for their answers get errors."""
        self.closed.set()
        self.pool.shutdown(wait=False, cancel_futures=True)
        for connection in list(self.connections):
            connection.cut()

    def _ask_once(self, path: str, body: bytes, key: str) -> Answer:
        try:
            return self._ask(path, body, key)
        finally:  # only now that `answers` has the answer, so that an equal question finds it in `pending` or `answers`
            self.pending.pop(key, None)

    def _ask(self, path: str, body: bytes | None, key: str | None) -> Answer:
        """Send a request up to `tries` times and store the last answer."""
        answer, wait, tries = Answer(), 0.0, 0
        while tries < self.tries and not self.closed.wait(wait):
            if self.refused is not None:  # set by another thread: the server would refuse this request too
                raise self.refused
            tries += 1
            answer = self._send(path, body)
            if answer.error is None:
                return self._store(key, answer, True, tries)
            if answer.status in REFUSED:
                self.refused = PluginError(self._refusal(answer.status, path, answer.error))
                raise self.refused
            if not (answer.status in RETRIED or answer.status >= 500 or answer.status == 0):
                return self._store(key, answer, answer.status in AT_FAULT, tries)
            backoff = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (tries - 1)) * random.uniform(0.5, 1)
            wait = max(backoff, answer.retry_after)
            if wait > LONGEST_RETRY_AFTER:
                reason = f"{answer.error}; the server asks to wait {wait:.0f} s, which is too long: run again later"
                answer = replace(answer, error=reason)
                break
        if self.closed.is_set():
            return Answer(error="interrupted")
        answer = replace(answer, error=f"{answer.error} ({tries} {'try' if tries == 1 else 'tries'})")
        return self._store(key, answer, False, tries)

    def _send(self, path: str, body: bytes | None) -> Answer:
        server = self.url.netloc
        try:
            status, retry_after, raw = self._connection().request(path, body)
        except ERRORS as error:
            return Answer(error=f"no answer from {server}: {type(error).__name__}: {error}")
        text = raw.decode("utf-8", "replace")
        if self.key:  # some servers repeat the API key in an error message
            text = text.replace(self.key, "***")
        if not 200 <= status < 300:
            excerpt = " ".join(text[: 4 * EXCERPT].split())[:EXCERPT]
            message = f"HTTP {status} from {server}: {excerpt}"
            return Answer(error=message, status=status, retry_after=_seconds(retry_after))
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError):
            return Answer(error=f"the answer of {server} is not JSON")
        failure = answer.get("error") if isinstance(answer, dict) else None
        if isinstance(failure, dict):  # some routers report an error of the server behind them with status 200
            code, message = failure.get("code"), str(failure.get("message") or failure)[:EXCERPT]
            status = code if isinstance(code, int) and code in KNOWN else 502
            return Answer(error=f"{server} answered an error: {message}", status=status)
        return Answer(answer, status=status, text=text)

    def _connection(self) -> Connection:
        """Return the connection of this thread; open it at the first call."""
        if not hasattr(self.local, "connection"):
            headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "prefkit"}
            if self.key:
                headers["Authorization"] = f"Bearer {self.key}"
            self.local.connection = Connection(self.url, self.timeout, headers, self.context)
            self.connections.append(self.local.connection)
        return self.local.connection

    def _store(self, key: str | None, answer: Answer, final: bool, tries: int) -> Answer:
        if key is not None and self.answers is not None:
            self.answers.put(key, answer.status, answer.text, answer.error, final, tries)
        return answer

    def _refusal(self, status: int, path: str, error: str) -> str:
        if status in (401, 403):
            problem = f"${self.key_env} {'is not accepted' if self.key else 'is not set'}"
            key = f"the key in {problem}" if self.key_env else "it needs a key: set `key_env` to its variable"
            return f"{error}. The server refuses every request: {key}."
        if status == 402:
            return f"{error}. The account of the API key is out of credit. Earlier answers are kept."
        return f"{error}. Nothing answers at {self.url.geturl().rstrip('/')}{path}: check the address and the model's name."


def _done(text: str | None, error: str | None) -> Future[Answer]:
    future: Future[Answer] = Future()
    future.set_result(Answer(json.loads(text) if text is not None else None, error, cached=True))
    return future


def _seconds(retry_after: str | None) -> float:
    """Return the delay in seconds from a Retry-After header (a number or an HTTP date); 0 if absent or invalid."""
    if retry_after is None:
        return 0.0
    with contextlib.suppress(ValueError):
        return max(0.0, float(retry_after))
    with contextlib.suppress(ValueError):
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    return 0.0
