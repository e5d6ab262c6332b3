"""Judge back end for an OpenAI-compatible server: chat completions with images as data URLs."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefkit.errors import UsageError
from prefkit.images import head_traits
from prefkit.paths import read_regular
from prefkit.score.core import undecodable
from prefkit.score.judge.question import JudgeOptions, Question, Reply, reads_as
from prefkit.score.remote.answers import Answers, default_path
from prefkit.score.remote.client import Answer, Client
from prefkit.score.remote.connection import key_of
from prefkit.types import Candidate, digest

CALLS = 8
MOST_TOP = 20  # maximum number of log-probabilities that servers return
MEDIA = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}


class ServerBackend:
    retries = True

    def __init__(self, options: JudgeOptions) -> None:
        self.options = options
        # a call has an eighth of the questions that may be in flight, because a thread per question would be slow;
        # twice as many calls run as are in flight, so that the next questions are prepared meanwhile
        size = max(1, options.in_flight // CALLS)
        self.batch: int | None = size
        self.concurrency = 1 if options.in_flight == 1 else 2 * -(-options.in_flight // size)
        self.client: Client | None = None

    def load(self, device: str, dtype: str) -> None:
        """Open the answer file. Raises UsageError if the address is invalid or the API key is not set."""
        o = self.options
        if o.key_env and key_of(o.key_env) is None:
            raise UsageError(f"the environment variable {o.key_env} (`key_env`) is not set.")
        self.client = Client(
            str(o.server),
            key_env=o.key_env,
            in_flight=o.in_flight,
            timeout=o.timeout,
            tries=o.tries,
            answers=Answers(Path(o.cache).expanduser() if o.cache else default_path()),
            version=o.revision,
        )

    def close(self) -> None:
        """End pending requests."""
        if self.client is not None:
            self.client.close()

    def about(self) -> dict[str, Any]:
        """Return fields of a ScorerSpec, without the address: a server can move without changing scores."""
        body = f"; request {digest(self.options.body)}" if self.options.body else ""
        return {
            "weights": f"{self.options.model} behind an OpenAI-compatible server",
            "revision": self.options.revision,
            "preprocessing": f"RGB files as stored, others as PNG; the server's own transform{body}",
        }

    def masses(self, questions: Sequence[Question], labels: Sequence[str]) -> list[Reply]:
        keys = {"max_tokens": 1, "logprobs": True, "top_logprobs": MOST_TOP}
        return [_masses(answer, labels) for answer in self._ask(questions, 0.0, keys)]

    def texts(
        self,
        questions: Sequence[Question],
        max_tokens: int,
        temperature: float = 0.0,
        schema: Mapping[str, Any] | None = None,
    ) -> list[Reply]:
        keys: dict[str, Any] = {"max_tokens": max_tokens}
        if schema is not None:
            json_schema = {"name": "answer", "strict": True, "schema": schema}
            keys["response_format"] = {"type": "json_schema", "json_schema": json_schema}
        return [_text(answer) for answer in self._ask(questions, temperature, keys)]

    def _ask(self, questions: Sequence[Question], temperature: float, keys: dict[str, Any]) -> list[Answer]:
        """Return one answer per question. A question with an undecodable image is not sent and gets an error."""
        from PIL import Image

        assert self.client is not None, "load first"
        failed: dict[int, Answer] = {}
        payloads = []
        for n, question in enumerate(questions):
            try:
                payload = self._payload(question, temperature) | keys | self.options.body
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                failed[n] = Answer(error=undecodable(error))
            else:
                payloads.append({k: v for k, v in payload.items() if v is not None})
        answers = iter(self.client.map("/chat/completions", payloads))
        return [failed[n] if n in failed else next(answers) for n in range(len(questions))]

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
    """Return a data URL of the stored file, or of a PNG if decoders could disagree. Raises Pillow's errors."""
    from PIL import Image

    raw, kind = stored(candidate), None
    if raw is not None:
        with Image.open(io.BytesIO(raw)) as image:
            if image.mode == "RGB" and not head_traits(image, raw) and complete(raw, image.format):
                kind = MEDIA.get(image.format or "")
    if raw is None or kind is None:
        buffer = io.BytesIO()
        candidate.pil().save(buffer, "PNG", compress_level=1)
        raw, kind = buffer.getvalue(), "image/png"
    return f"data:{kind};base64,{base64.b64encode(raw).decode()}"


def stored(candidate: Candidate) -> bytes | None:
    if candidate.image is None and candidate.path is not None:
        return read_regular(candidate.path)
    return candidate.image


def complete(raw: bytes, kind: str | None) -> bool:
    """True if the file looks complete. The image is not decoded."""
    from PIL import Image

    if kind == "PNG":
        with Image.open(io.BytesIO(raw)) as image:
            image.verify()  # checksums of its chunks
        return raw.endswith(b"IEND\xaeB`\x82")
    return raw.endswith(b"\xff\xd9") if kind == "JPEG" else int.from_bytes(raw[4:8], "little") + 8 == len(raw)


def _choice(answer: Answer) -> Mapping[str, Any] | None:
    try:
        choice = answer.body["choices"][0]
    except (TypeError, KeyError, IndexError):
        return None
    return choice if isinstance(choice, Mapping) else None


def _text(answer: Answer) -> Reply:
    if answer.error is not None:
        return Reply(error=answer.error)
    message = (_choice(answer) or {}).get("message")
    text = message.get("content") if isinstance(message, Mapping) else None
    return Reply(text) if isinstance(text, str) else Reply(error="the server's answer has no message")


def _masses(answer: Answer, labels: Sequence[str]) -> Reply:
    if answer.error is not None:
        return Reply(error=answer.error)
    choice = _choice(answer)
    if choice is None:
        return Reply(error="the server's answer has no choice")
    try:
        first = choice["logprobs"]["content"][0]
        top = {str(row["token"]): row["logprob"] for row in [*first["top_logprobs"], first]}
    except (TypeError, KeyError, IndexError):
        return Reply(error="the server returned no log-probabilities; set `answer: text` or `answer: json`")
    values = list(top.values())
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) and v <= 1e-3 for v in values):  # false for NaN
        return Reply(error="the server's log-probabilities are invalid")
    if sum(math.exp(v) for v in values) > 1.01:
        return Reply(error="the server's probabilities sum to more than 1")
    masses = tuple(math.fsum(math.exp(v) for token, v in top.items() if reads_as(token, label)) for label in labels)
    return Reply(str(first["token"]), masses)
