"""Questions to a judge, its replies, and the interface of its back ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from prefkit.types import Candidate


@dataclass(frozen=True)
class JudgeOptions:
    """Common options of scorers that ask a multimodal language model."""

    #: folder or Hub id of an image-text-to-text model, or `tiny` (embedded); with `server`, the model's name on the server
    model: str = ""
    #: Hub revision (branch, tag or commit)
    revision: str | None = None
    #: run code that comes with the model
    trust_remote_code: bool = False
    #: address of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1; null loads the model locally
    server: str | None = None
    #: environment variable with the server's API key
    key_env: str = ""
    #: maximum number of concurrent requests to the server
    in_flight: int = 16
    #: time limit for a request in seconds
    timeout: float = 120.0
    #: maximum number of times that a request is sent
    tries: int = 6
    #: file that stores the server's answers; null = answers.sqlite in the user's cache folder
    cache: str | None = None
    #: prices of a million input tokens and of a million output tokens (any currency), for the estimate of --dry-run
    price_in: float | None = None
    price_out: float | None = None
    #: additional JSON keys of each request to the server; null removes a key
    body: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """A question: texts and images in the order shown. attempt: number of times that it was asked before."""

    parts: tuple[str | Candidate, ...]
    attempt: int = 0


@dataclass(frozen=True)
class Reply:
    """A judge's reply: `text`, `masses` (the probability of each label as the next token), both, or an `error`."""

    text: str | None = None
    masses: tuple[float, ...] | None = None
    error: str | None = None


class Backend(Protocol):
    retries: bool  # True if a repeated question can get a different answer at temperature 0
    concurrency: int  # number of concurrent calls
    batch: int | None  # maximum number of questions in a call

    def load(self, device: str, dtype: str) -> None: ...

    def close(self) -> None: ...

    def about(self) -> dict[str, Any]:
        """Return the fields weights, revision and preprocessing of a ScorerSpec."""
        ...

    def masses(self, questions: Sequence[Question], labels: Sequence[str]) -> list[Reply]:
        """Return one reply per question, in order. A label's mass sums over all tokens that spell it (`reads_as`)."""
        ...

    def texts(
        self,
        questions: Sequence[Question],
        max_tokens: int,
        temperature: float = 0.0,
        schema: Mapping[str, Any] | None = None,
    ) -> list[Reply]:
        """Return one reply per question, in order. schema: JSON schema of the answer (servers only)."""
        ...


def reads_as(token: str, label: str) -> bool:
    """True if a token spells the label, regardless of case and spaces (which tokenizers also write as Ġ or ▁)."""
    return token.strip(" \t\r\nĠ▁").casefold() == label.casefold()
