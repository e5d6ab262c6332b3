"""What a judge is asked and what it answers, the same for a model loaded here and for one behind a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from prefkit.types import Candidate


@dataclass(frozen=True)
class JudgeOptions:
    """The options of every scorer that asks a multimodal language model."""

    #: folder or Hub id of an image-text-to-text model; with `server`, the name that the server knows it by
    model: str = ""
    #: Hub revision (branch, tag or commit)
    revision: str | None = None
    #: run code that comes with the model
    trust_remote_code: bool = False
    #: address of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1; null loads the model here
    server: str | None = None
    #: environment variable that holds the server's API key
    key_env: str = ""
    #: requests to the server under way at once
    in_flight: int = 16
    #: seconds for the whole of one request
    timeout: float = 120.0
    #: how often a request is sent at most
    tries: int = 6
    #: file that keeps the server's answers; null = answers.sqlite in the user's cache folder
    cache: str | None = None
    #: price of a million tokens sent, and of a million answered, for the estimate of --dry-run (any currency)
    price_in: float | None = None
    price_out: float | None = None
    #: further keys of each request to the server; null leaves a key out
    body: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """Texts and images in the order in which they are shown. attempt: how often it has been asked before."""

    parts: tuple[str | Candidate, ...]
    attempt: int = 0


@dataclass(frozen=True)
class Reply:
    """`masses`: probability of each label as the next token, [L]. `error` says why there is neither."""

    text: str | None = None
    masses: tuple[float, ...] | None = None
    error: str | None = None


class Backend(Protocol):
    retries: bool  # whether asking again can give another answer at temperature 0
    concurrency: int  # calls at once
    batch: int | None  # most questions in a call

    def load(self, device: str, dtype: str) -> None: ...

    def close(self) -> None: ...

    def about(self) -> dict[str, Any]:
        """weights, revision and preprocessing of a ScorerSpec."""
        ...

    def masses(self, questions: Sequence[Question], labels: Sequence[str]) -> list[Reply]:
        """A reply each, in order. All tokens that read as a label, whatever their case and spaces, count as it."""
        ...

    def texts(
        self,
        questions: Sequence[Question],
        max_tokens: int,
        temperature: float = 0.0,
        schema: Mapping[str, Any] | None = None,
    ) -> list[Reply]:
        """schema: JSON schema that the answer has to follow (servers only)."""
        ...


def reads_as(token: str, label: str) -> bool:
    """Whether a token says the label: case and the spaces of any tokenizer (also written as Ġ or ▁) do not matter."""
    return token.strip(" \t\r\nĠ▁").casefold() == label.casefold()
