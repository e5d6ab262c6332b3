"""One client for every remote judge: at most N requests in flight, retries of what can succeed, answers kept on disk."""

from __future__ import annotations

import email.utils
import hashlib
import http.client
import json
import random
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from prefkit.errors import PluginError
from prefkit.score.remote.answers import Answers
from prefkit.score.remote.connection import Connection, checked_url, key_of

AGAIN = {408, 409, 429}  # and 5xx: the same request may succeed later
REFUSED = {301, 302, 303, 307, 308, 401, 402, 403, 404, 405}  # no item of the run would fare better
AT_FAULT = {400, 413, 414, 415, 422}  # the question itself: its error is kept, and it is not asked again
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds between tries: doubled each time, up to the second
LONGEST_ASKED = 300.0  # of a Retry-After that is still waited for
KNOWN = REFUSED | AT_FAULT | AGAIN | set(range(500, 600))
SHOWN = 300  # characters of a server's words in an error


@dataclass(frozen=True)
class Answer:
    """`body` is the answer's JSON; None where there is none, and `error` says why."""

    body: Any = None
    error: str | None = None
    cached: bool = False


class Client:
    """Posts JSON to one server. Thread-safe; `submit` never blocks.

    server    http(s)://host[:port][/prefix]
    key_env   environment variable with the API key, sent as a bearer token and written nowhere
    in_flight requests under way at once; a request that waits to be tried again counts
    timeout   seconds for the whole of one request
    tries     how often a request is sent at most
    answers   where answers are kept and looked up; None: nowhere
    version   of what answers there, where the questions do not say it: answers of another one are not looked up
    Raises PluginError from a result where the server refuses every request (HTTP 401 to 405, and redirections).
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
        self.in_flight, self.timeout, self.tries = in_flight, timeout, tries
        self.answers = answers
        self.pool = ThreadPoolExecutor(in_flight, "judge")
        self.local = threading.local()
        self.connections: list[Connection] = []
        self.flying: dict[str, Future[Answer]] = {}
        self.lock = threading.Lock()
        self.closed = threading.Event()
        self.refused: PluginError | None = None

    @property
    def sent(self) -> int:
        """Requests so far, with all tries."""
        return sum(connection.requests for connection in self.connections)

    def map(self, path: str, payloads: Sequence[Mapping[str, Any]]) -> list[Answer]:
        """An answer each, in order. Interrupted, it drops what has not been sent and cuts what has."""
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
        """The answer to come. Equal payloads under way share one request."""
        body = json.dumps(payload, ensure_ascii=False, sort_keys=True).encode("utf-8", "surrogatepass")
        if self.answers is None:
            return self.pool.submit(self._ask, path, body, None)
        salt = f"{self.url.geturl()}\n{path}\n" + (f"{self.version}\n" if self.version else "")
        key = hashlib.sha256(salt.encode() + body).hexdigest()
        with self.lock:
            future = self.flying.get(key)
            if future is None or future.cancelled():
                known = self.answers.get(key)  # here, since the pool's threads shall do nothing but ask
                if known is not None:
                    return _done(known)
                future = self.flying[key] = self.pool.submit(self._remembered, path, body, key)
        return future

    def get(self, path: str) -> Answer:
        """The answer to a GET, never kept."""
        return self._ask(path, None, None)

    def close(self) -> None:
        """Ends everything under way; waiting threads get errors."""
        self.closed.set()
        self.pool.shutdown(wait=False, cancel_futures=True)
        for connection in list(self.connections):
            connection.cut()

    def _remembered(self, path: str, body: bytes, key: str) -> Answer:
        try:
            return self._ask(path, body, key)
        finally:  # by now `answers` knows it, so that nobody finds it in neither
            self.flying.pop(key, None)

    def _ask(self, path: str, body: bytes | None, key: str | None) -> Answer:
        status, error, wait, tries = 0, "", 0.0, 0
        while tries < self.tries and not self.closed.wait(wait):
            if self.refused is not None:  # what waits in other threads need not be sent to know
                raise self.refused
            tries += 1
            status, asked, text, answer = self._send(path, body)
            if answer.error is None:
                self._keep(key, status, text, None, True, tries)
                return answer
            error = answer.error
            if status in REFUSED:
                self.refused = PluginError(self._refusal(status, path, error))
                raise self.refused
            if not (status in AGAIN or status >= 500 or status == 0):
                self._keep(key, status, None, error, status in AT_FAULT, tries)
                return Answer(error=error)
            backoff = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (tries - 1)) * random.uniform(0.5, 1)
            wait = max(backoff, asked or 0.0)
            if wait > LONGEST_ASKED:
                error += f"; it asks to wait {wait:.0f} s, which is too long: run again later"
                break
        if self.closed.is_set():
            return Answer(error="interrupted")
        error += f" ({tries} {'try' if tries == 1 else 'tries'})"
        self._keep(key, status, None, error, False, tries)
        return Answer(error=error)

    def _send(self, path: str, body: bytes | None) -> tuple[int, float | None, str, Answer]:
        """(status, seconds to wait, body, answer) of one try; status 0 where no whole answer came."""
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "prefkit"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        try:
            status, asked, raw = self._connection().request(
                "POST" if body is not None else "GET", self.url.path.rstrip("/") + path, body, headers
            )
        except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: a host that is no name
            return 0, None, "", Answer(error=f"no answer from {self.url.netloc}: {type(error).__name__}: {error}")
        text = self._without_key(raw.decode("utf-8", "replace"))
        if not 200 <= status < 300:
            words = " ".join(text[: 4 * SHOWN].split())[:SHOWN]
            return status, _seconds(asked), "", Answer(error=f"HTTP {status} from {self.url.netloc}: {words}")
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return 0, None, "", Answer(error=f"the answer of {self.url.netloc} is not JSON")
        failed = found.get("error") if isinstance(found, dict) else None
        if isinstance(failed, dict):  # some routers pass on the failure of the server behind them as a success
            code = failed.get("code")
            words = str(failed.get("message") or failed)[:SHOWN]
            return (
                code if isinstance(code, int) and code in KNOWN else 502,
                None,
                "",
                Answer(error=f"{self.url.netloc} answered an error: {words}"),
            )
        return status, None, text, Answer(found)

    def _connection(self) -> Connection:
        """This thread's own."""
        if not hasattr(self.local, "connection"):
            self.local.connection = Connection(self.url, self.timeout)
            self.connections.append(self.local.connection)
        return self.local.connection

    def _keep(self, key: str | None, status: int, body: str | None, error: str | None, final: bool, tries: int) -> None:
        if key is not None and self.answers is not None:
            self.answers.put(key, status, body, error, final, tries)

    def _refusal(self, status: int, path: str, error: str) -> str:
        if status in (401, 403):
            has = "is not accepted" if self.key else "is not set"
            key = (
                f"the key in ${self.key_env} {has}"
                if self.key_env
                else "it wants a key: name its variable in `key_env`"
            )
            return f"{error}. The server lets nothing through: {key}."
        if status == 402:
            return f"{error}. The account behind the key has run out of credit; what was answered is kept."
        return f"{error}. There is nothing at {self.url.geturl().rstrip('/')}{path}: check the address and the model's name."

    def _without_key(self, text: str) -> str:
        """Some servers repeat the key they were given."""
        return text.replace(self.key, "***") if self.key else text


def _done(known: tuple[str | None, str | None]) -> Future[Answer]:
    text, error = known
    future: Future[Answer] = Future()
    future.set_result(Answer(json.loads(text) if text is not None else None, error, cached=True))
    return future


def _seconds(retry_after: str | None) -> float | None:
    """Of a Retry-After header: seconds, or an HTTP date. None where it says nothing readable."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return None
