"""A judge behind an OpenAI-compatible server: chat completions with images as data URLs."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.errors import UsageError
from prefkit.images import head_traits
from prefkit.paths import read_regular
from prefkit.score.core import undecodable
from prefkit.score.judge.question import JudgeOptions, Question, Reply, reads_as
from prefkit.score.remote.answers import Answers, default_path
from prefkit.score.remote.client import Answer, Client
from prefkit.score.remote.connection import key_of
from prefkit.types import Candidate, digest

if TYPE_CHECKING:
    pass

CALLS = 8
MOST_TOP = 20  # what servers give at most
MEDIA = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}


class ServerBackend:
    retries = True

    def __init__(self, options: JudgeOptions) -> None:
        self.options = options
        # twice as many questions as can be under way, so that the next ones are ready, in calls of an eighth: a thread for
        # each of them would spend more time on waking up than on asking
        size = max(1, options.in_flight // CALLS)
        self.batch: int | None = size
        self.concurrency = 1 if options.in_flight == 1 else 2 * -(-options.in_flight // size)
        self.client: Client | None = None

    def load(self, device: str, dtype: str) -> None:
        """Opens the file of answers. Raises UsageError for an address that is none and a key that is not set."""
        o = self.options
        if o.key_env and key_of(o.key_env) is None:
            raise UsageError(f"the environment variable {o.key_env} (`key_env`) is not set.")
        path = Path(o.cache).expanduser() if o.cache else default_path()
        self.client = Client(
            str(o.server),
            key_env=o.key_env,
            in_flight=o.in_flight,
            timeout=o.timeout,
            tries=o.tries,
            answers=Answers(path),
            version=o.revision,
        )

    def close(self) -> None:
        """Ends what is under way, and writes down what was answered."""
        if self.client is not None:
            self.client.close()

    def about(self) -> dict[str, Any]:
        """The address is not part of it: a server may move without its scores meaning something else."""
        body = f"; request {digest(self.options.body)}" if self.options.body else ""
        return {
            "weights": f"{self.options.model} behind an OpenAI-compatible server",
            "revision": self.options.revision,
            "preprocessing": f"RGB files as stored, others as PNG; the server's own transform{body}",
        }

    def masses(self, questions: Sequence[Question], labels: Sequence[str]) -> list[Reply]:
        asked = {"max_tokens": 1, "logprobs": True, "top_logprobs": MOST_TOP}
        answers = self._ask(questions, 0.0, asked)
        return [_masses(answer, labels) for answer in answers]

    def texts(
        self,
        questions: Sequence[Question],
        max_tokens: int,
        temperature: float = 0.0,
        schema: Mapping[str, Any] | None = None,
    ) -> list[Reply]:
        asked: dict[str, Any] = {"max_tokens": max_tokens}
        if schema is not None:
            asked["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "answer", "strict": True, "schema": schema},
            }
        answers = self._ask(questions, temperature, asked)
        return [_text(answer) for answer in answers]

    def _ask(self, questions: Sequence[Question], temperature: float, asked: dict[str, Any]) -> list[Answer]:
        """An answer each; a question whose image cannot be sent is not asked."""
        from PIL import Image

        assert self.client is not None, "load first"
        found: dict[int, Answer] = {}
        payloads = []
        for n, question in enumerate(questions):
            try:
                payload = self._payload(question, temperature) | asked | self.options.body
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                found[n] = Answer(error=undecodable(error))
            else:
                payloads.append({k: v for k, v in payload.items() if v is not None})
        answers = iter(self.client.map("/chat/completions", payloads))
        return [found[n] if n in found else next(answers) for n in range(len(questions))]

    def _payload(self, question: Question, temperature: float) -> dict[str, Any]:
        content = [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "image_url", "image_url": {"url": data_url(part)}}
            for part in question.parts
        ]
        return {
            "model": self.options.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": temperature,
            "top_p": 1.0,
            "seed": question.attempt,
        }


def data_url(candidate: Candidate) -> str:
    """The stored file where it is whole and shows its RGB numbers, so that nothing is lost; else the pixels as PNG.

    Raises what Pillow raises for a damaged image.
    """
    from PIL import Image

    raw, kind = stored(candidate), None
    if raw is not None:
        with Image.open(io.BytesIO(raw)) as image:
            kind = MEDIA.get(image.format or "")
            if image.mode != "RGB" or head_traits(image, raw) or not whole(raw, image.format):
                kind = None
    if raw is None or kind is None:
        buffer = io.BytesIO()
        candidate.pil().save(buffer, "PNG", compress_level=1)
        raw, kind = buffer.getvalue(), "image/png"
    return f"data:{kind};base64,{base64.b64encode(raw).decode()}"


def stored(candidate: Candidate) -> bytes | None:
    if candidate.image is None and candidate.path is not None:
        return read_regular(candidate.path)
    return candidate.image


def whole(raw: bytes, kind: str | None) -> bool:
    """Whether the file has its end, told without decoding; where it has not, decoding says what is wrong."""
    from PIL import Image

    if kind == "PNG":
        with Image.open(io.BytesIO(raw)) as image:
            image.verify()  # checksums of its chunks
    ends = {"PNG": raw.endswith(b"IEND\xaeB`\x82"), "JPEG": raw.endswith(b"\xff\xd9")}
    return ends.get(str(kind), int.from_bytes(raw[4:8], "little") + 8 == len(raw))


def _choice(answer: Answer) -> Mapping[str, Any] | None:
    try:
        choice = answer.body["choices"][0]
        return choice if isinstance(choice, Mapping) else None
    except (TypeError, KeyError, IndexError):
        return None


def _text(answer: Answer) -> Reply:
    if answer.error is not None:
        return Reply(error=answer.error)
    message = (_choice(answer) or {}).get("message")
    text = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(text, str):
        return Reply(error="the server's answer holds no message")
    return Reply(text)


def _masses(answer: Answer, labels: Sequence[str]) -> Reply:
    if answer.error is not None:
        return Reply(error=answer.error)
    choice = _choice(answer)
    if choice is None:
        return Reply(error="the server's answer holds no choice")
    try:
        first = choice["logprobs"]["content"][0]
        top = {str(row["token"]): row["logprob"] for row in [*first["top_logprobs"], first]}
    except (TypeError, KeyError, IndexError):
        return Reply(error="the server gave no log-probabilities; set `answer: text` or `answer: json`")
    values = list(top.values())
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) and v <= 1e-3 for v in values):  # NaN is not
        return Reply(error="the server's log-probabilities are no log-probabilities")
    if sum(math.exp(v) for v in values) > 1.01:
        return Reply(error="the server's probabilities sum to more than 1")
    masses = tuple(math.fsum(math.exp(v) for token, v in top.items() if reads_as(token, label)) for label in labels)
    return Reply(str(first["token"]), masses)
