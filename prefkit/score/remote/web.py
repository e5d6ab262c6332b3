"""HTTP transport for a remote scorer (`use: http://host:port`), such as one served by prefkit/score/serve.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prefkit.errors import PluginError
from prefkit.score.remote.client import Client
from prefkit.score.remote.protocol import Hello, RemoteScorer, decode_answer, decode_hello, encode_item
from prefkit.score.remote.waiting import note_if_slow
from prefkit.types import Candidate, Score


@dataclass(frozen=True)
class WebOptions:
    #: images per request; a scorer with scope within_request gets whole requests
    chunk: int = 8
    #: maximum number of concurrent requests
    in_flight: int = 4
    #: time limit for a request in seconds
    timeout: float = 300.0
    #: maximum number of times that a request is sent
    tries: int = 6
    #: environment variable with the server's API key, which is sent as a bearer token
    key_env: str = ""


class WebScorer(RemoteScorer):
    Options = WebOptions

    def __init__(self, options: WebOptions) -> None:
        self.concurrency, self.batch = options.in_flight, options.chunk
        self.client = Client(
            self.address,
            key_env=options.key_env,
            in_flight=options.in_flight,
            timeout=options.timeout,
            tries=options.tries,
        )

    def connect(self) -> Hello:
        tries = f"{self.client.tries} {'try' if self.client.tries == 1 else 'tries'}"
        with note_if_slow(
            f"scorer {self.address} has not answered GET /hello yet. prefkit waits up to {self.client.timeout:g} s per try, "
            f"with {tries} (options timeout and tries)."
        ):
            answer = self.client.get("/hello")
        if answer.error is not None:
            raise PluginError(
                f"scorer {self.address}: {answer.error}. Is the server running? GET /hello must return JSON with "
                "protocol, spec and requires (see prefkit/score/remote/protocol.py)."
            )
        return decode_hello(answer.body, f"scorer {self.address}")

    def close(self) -> None:
        """End pending requests."""
        self.client.close()

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        size = len(batch) if self.scope == "within_request" else self.batch
        parts = [batch[start : start + size] for start in range(0, len(batch), size)]
        payloads = [{"items": [encode_item(c, self.hello.requires) for c in part]} for part in parts]
        scores: list[Score] = []
        for part, answer in zip(parts, self.client.map("/score", payloads)):
            message = answer.body if answer.error is None else {"error": answer.error}
            scores += decode_answer(message, len(part), self.client.url.netloc)
        return scores


plugin = WebScorer
