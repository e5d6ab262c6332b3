"""A scorer on another machine: `use: http://host:port`. See prefkit/score/remote/protocol.py; prefkit/score/serve.py
serves any of prefkit's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from prefkit.errors import PluginError
from prefkit.score.remote.client import Client
from prefkit.score.remote.protocol import Hello, item_of, read_hello, read_scores
from prefkit.types import Candidate, Score, ScorerSpec


@dataclass(frozen=True)
class WebOptions:
    #: images per request; a scorer within requests gets whole requests
    chunk: int = 8
    #: requests under way at once
    in_flight: int = 4
    #: seconds for the whole of one request
    timeout: float = 300.0
    #: how often a request is sent at most
    tries: int = 6
    #: environment variable that holds a key for the server, sent as a bearer token
    key_env: str = ""


class WebScorer:
    """`address` is set by prefkit.registry, on a subclass of its own."""

    Options = WebOptions
    address = ""
    alone = True

    def __init__(self, options: WebOptions) -> None:
        self.options = options
        self.client = Client(
            self.address,
            key_env=options.key_env,
            in_flight=options.in_flight,
            timeout=options.timeout,
            tries=options.tries,
        )
        self.concurrency, self.batch = options.in_flight, options.chunk

    @cached_property
    def hello(self) -> Hello:
        """What the server says it is. Raises PluginError where it does not say."""
        answer = self.client.get("/hello")
        if answer.error is not None:
            raise PluginError(f"scorer {self.address}: {answer.error}. Is the server running?")
        return read_hello(answer.body, f"scorer {self.address}")

    @property
    def requires(self) -> frozenset[str]:
        return self.hello.requires

    @property
    def scope(self) -> str:
        return self.hello.scope

    def spec(self) -> ScorerSpec:
        return self.hello.spec

    def load(self, device: str, dtype: str) -> None:
        """The server has loaded what it needs, on its own device."""

    def close(self) -> None:
        """Ends what is under way."""
        self.client.close()

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        size = len(batch) if self.scope == "within_request" else self.options.chunk
        parts = [batch[start : start + size] for start in range(0, len(batch), size)]
        payloads = [{"items": [item_of(c, self.requires) for c in part]} for part in parts]
        found: list[Score] = []
        for part, answer in zip(parts, self.client.map("/score", payloads)):
            body = answer.body if answer.error is None else {"error": answer.error}
            found += read_scores(body, len(part), self.client.url.netloc)
        return found


plugin = WebScorer
