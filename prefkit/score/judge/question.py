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
    #: seconds for a whole request
    timeout: float = 120.0
    #: maximum number of times that a request is sent
    tries: int = 6
    #: file that stores the server's answers; null = answers.sqlite in the user's cache folder
    cache: str | None = None
    #: price per million tokens sent, and per million tokens answered, for the estimate of --dry-run (any currency)
    price_in: float | None = None
    price_out: float | None = None
    #: further keys of each request to the server; null removes a key
    body: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """Texts and images in the order shown. attempt: number of earlier attempts at this question."""

    parts: tuple[str | Candidate, ...]
    attempt: int = 0


@dataclass(frozen=True)
class Reply:
    """A text, or `masses`: the probability of each label as the next token, [L]; if neither, `error` is the reason."""

    text: str | None = None
    masses: tuple[float, ...] | None = None
    error: str | None = None


class Backend(Protocol):
    retries: bool  # True if another attempt can give another answer at temperature 0
    concurrency: int  # number of concurrent calls
    batch: int | None  # maximum number of questions in a call

    def load(self, device: str, dtype: str) -> None: ...

    def close(self) -> None: ...

    def about(self) -> dict[str, Any]:
        """weights, revision and preprocessing of a ScorerSpec."""
        ...

    def masses(self, questions: Sequence[Question], labels: Sequence[str]) -> list[Reply]:
        """One reply per question, in order. The mass of a label sums over all tokens that `reads_as` it."""
        ...

    def texts(
        self,
        questions: Sequence[Question],
        max_tokens: int,
        temperature: float = 0.0,
        schema: Mapping[str, Any] | None = None,
    ) -> list[Reply]:
        """schema: JSON schema of the answer (servers only)."""
        ...


def reads_as(token: str, label: str) -> bool:
    """True if a token spells the label, ignoring case and the spaces of any tokenizer (also written as Ġ or ▁)."""
    return token.strip(" \t\r\nĠ▁").casefold() == label.casefold()
