"""Quality as a multimodal language model sees it: the expected rating, or the rating it writes.

    logprobs   value = sum_l p(l) v(l) / sum_l p(l) over the levels l, p of the next token (Q-Align's form, arXiv 2312.17090);
               one forward pass, no sampling. What is left of the probability is the aspect `leftover`; where the levels
               hold less than `min_mass` of it there is no score.
    text       the rating in the written answer. An answer that names no level, or two, is asked again up to `attempts`
               times where that can change it (a server, or a temperature above 0); then there is no score.
    json       as text, the server being held to a JSON schema: a reason, then the score. For models that give no
               log-probabilities.

A model loaded here (`model`), or any OpenAI-compatible server (`server`). With `aspects`, each is asked on its own and the
value is their mean. `preset: fashiondpo` asks as FashionDPO does (ten named levels, the request's `category`,
temperature 0.1; text only), in prefkit's words; its published parser reads "7" as nothing, "5-..." as 10 on occasion, and
asks for ever. A judge is best of another family than the generator.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prefkit.errors import UsageError
from prefkit.score.judge.backend import make_backend
from prefkit.score.judge.compare import TEMPLATE as PAIRWISE
from prefkit.score.judge.compare import Verdicts, compare
from prefkit.score.judge.cost import estimate
from prefkit.score.judge.question import JudgeOptions, Question, Reply
from prefkit.score.judge.ratings import Scale, expected, parse, prefix_clash, scale_of
from prefkit.score.judge.templates import ASPECT, FASHIONDPO, FASHIONDPO_NAMES, RATING, fill, places
from prefkit.types import Candidate, Score, ScorerSpec, digest

FIVE = ("1", "2", "3", "4", "5")
FILLED = {"prompt", "aspect", "scale", "worst", "best"}


@dataclass(frozen=True)
class MllmOptions(JudgeOptions):
    #: rating | fashiondpo
    preset: Literal["rating", "fashiondpo"] = "rating"
    #: logprobs (expected value) | text (written rating) | json (text under a schema; servers)
    answer: Literal["logprobs", "text", "json"] = "logprobs"
    #: the question; {prompt}, {aspect}, {scale}, {worst}, {best}, and keys of the request; empty = the preset's
    template: str = ""
    #: levels from worst to best: numbers, or words that count 1, 2, ...
    scale: tuple[str, ...] = FIVE
    #: asked one by one, the value being their mean; empty = one question
    aspects: tuple[str, ...] = ()
    #: share of the probability that the levels must hold for a score (logprobs)
    min_mass: float = 0.1
    #: of sampling (text, json); null = the preset's: 0, and 0.1 for fashiondpo
    temperature: float | None = None
    #: times that an answer which cannot be read is asked for (text, json)
    attempts: int = 3
    #: longest written answer
    max_tokens: int = 256


class Mllm:
    Options = MllmOptions
    scope = "absolute"

    def __init__(self, options: MllmOptions) -> None:
        self.options = options
        self.fashion = options.preset == "fashiondpo"
        if self.fashion and (options.scale != FIVE or options.aspects):
            raise UsageError(
                "mllm: preset fashiondpo has a scale and no aspects of its own; leave `scale`, `aspects` out."
            )
        self.scale, self.listed = _fashion_scale() if self.fashion else _scale(options)
        self.answer = "text" if self.fashion and options.answer == "logprobs" else options.answer
        self.template = options.template or (FASHIONDPO if self.fashion else RATING)
        self.temperature = options.temperature if options.temperature is not None else 0.1 * self.fashion
        if options.aspects and "aspect" not in places(self.template):
            raise UsageError("mllm: `aspects` are asked through {aspect}, which the template does not have.")
        if self.answer == "json" and not options.server:
            raise UsageError("mllm: `answer: json` holds a server to a schema; set `server`, or `answer: text`.")
        clash = prefix_clash(self.scale.labels)
        if self.answer == "logprobs" and options.server and clash:
            raise UsageError(
                f"mllm: the level {clash[1]} begins as {clash[0]} does, and a server does not say how it splits words: "
                "take levels such as 1 to 9, or `answer: text`."
            )
        self.requires = frozenset({"image"} | places(self.template) - FILLED | {"prompt"})
        self.backend = make_backend(options, "mllm")
        self.concurrency, self.batch, self.close = self.backend.concurrency, self.backend.batch, self.backend.close
        self.alone = self.sends_files = bool(options.server)  # waiting for a server holds up nobody else

    def spec(self) -> ScorerSpec:
        o = self.options
        formula = {
            "logprobs": f"expected level of the next token, of at least {o.min_mass:g}",
            "text": f"level in the written answer, temperature {self.temperature:g}, {o.attempts} attempts",
            "json": f"level in the JSON answer, temperature {self.temperature:g}, {o.attempts} attempts",
        }[self.answer]
        asked = digest(self.template, self.listed, self.scale.values, length=12)
        formula += f"; question {asked}" + (f"; mean of {', '.join(o.aspects)}" if o.aspects else "")
        return ScorerSpec(
            "mllm",
            "1",
            **self.backend.about(),
            formula=formula,
            range=(self.scale.values[0], self.scale.values[-1]),
            licence="that of the weights",
        )

    def load(self, device: str, dtype: str) -> None:
        """Raises UsageError for a model that cannot be loaded, or an address or key that is none."""
        self.backend.load(device, dtype)

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        aspects = self.options.aspects or ("",)
        questions = [Question((c, self._text(c, aspect))) for c in batch for aspect in aspects]
        scores = self._expected(questions) if self.answer == "logprobs" else self._written(questions)
        if not self.options.aspects:
            return scores
        return [
            _mean(self.options.aspects, scores[start : start + len(aspects)])
            for start in range(0, len(scores), len(aspects))
        ]

    def judge_spec(self) -> dict[str, Any]:
        """What a verdict of `compare` means, beside the question."""
        how = {"answer": self._pairwise(), "min_mass": self.options.min_mass}
        return {"judge": self._judge(), "version": "1", **self.backend.about(), **how}

    def compare(self, pairs: Sequence[tuple[Candidate, Candidate]], template: str = "", aspect: str = "") -> Verdicts:
        """Which of two is better, asked in both orders. template: the question; {prompt}, {aspect}, keys of the request."""
        return compare(
            self.backend,
            pairs,
            self._judge(),
            template=template or PAIRWISE,
            aspect=aspect,
            answer=self._pairwise(),
            min_mass=self.options.min_mass,
        )

    def estimate(self, sample: Sequence[Candidate], todo: int, images: int = 1) -> dict[str, Any]:
        """Calls, tokens and cost of `todo` candidates (images=2: of `todo` questions of `compare`); {} without a server."""
        if not self.options.server:
            return {}
        aspects = self.options.aspects or ("",)
        texts = [PAIRWISE + c.prompt if images == 2 else self._text(c, aspects[0]) for c in sample]
        most = 1 if self.answer == "logprobs" else 16 if images == 2 else self.options.max_tokens
        return estimate(self.options, sample, texts, todo * (1 if images == 2 else len(aspects)), most, images)

    def _judge(self) -> str:
        return Path(self.options.model).name if Path(self.options.model).exists() else self.options.model

    def _pairwise(self) -> Literal["logprobs", "text"]:
        return "logprobs" if self.answer == "logprobs" else "text"

    def _text(self, candidate: Candidate, aspect: str) -> str:
        listed = self.listed
        # in the preset {aspect} is a part of the sentence; in a template of the user's, the name alone
        looking = fill(ASPECT, {"aspect": aspect}) if aspect and not self.options.template else aspect
        given: dict[str, Any] = {**candidate.extra, "prompt": candidate.prompt, "aspect": looking}
        given |= {"scale": ", ".join(listed), "worst": listed[0], "best": listed[-1]}
        return fill(self.template, given)

    def _expected(self, questions: Sequence[Question]) -> list[Score]:
        return [self._of_masses(reply) for reply in self.backend.masses(questions, self.scale.labels)]

    def _of_masses(self, reply: Reply) -> Score:
        if reply.masses is None:
            return Score(None, error=reply.error)
        value, leftover = expected(reply.masses, self.scale.values)
        aspects = {"leftover": leftover}
        if value is None or 1 - leftover < self.options.min_mass:
            error = f"the levels hold {1 - leftover:.3g} of the probability, less than {self.options.min_mass:g}"
            return Score(None, aspects, reply.text, error)
        return Score(value, aspects, reply.text)

    def _written(self, questions: Sequence[Question]) -> list[Score]:
        found: dict[int, Score] = {}
        attempts = self.options.attempts if self.backend.retries or self.temperature > 0 else 1
        for attempt in range(attempts):
            open_ = [i for i in range(len(questions)) if i not in found]
            asked = [Question(questions[i].parts, attempt) for i in open_]
            replies = self.backend.texts(asked, self.options.max_tokens, self.temperature, self._schema())
            for i, reply in zip(open_, replies):
                value = parse(reply.text, self.scale) if reply.text is not None else None
                if value is not None or reply.text is None:
                    found[i] = Score(value, text=reply.text, error=reply.error)
                elif attempt == attempts - 1:
                    error = (
                        f"{attempts} of {attempts} answers named no level of the scale, the last: {reply.text[:200]!r}"
                    )
                    found[i] = Score(None, text=reply.text, error=error)
        return [found[i] for i in range(len(questions))]

    def _schema(self) -> dict[str, Any] | None:
        if self.answer != "json":
            return None
        properties = {"reason": {"type": "string"}, "score": {"type": "string", "enum": list(self.listed)}}
        return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _scale(options: MllmOptions) -> tuple[Scale, tuple[str, ...]]:
    scale = scale_of(options.scale, "mllm")
    return scale, scale.labels


def _fashion_scale() -> tuple[Scale, tuple[str, ...]]:
    """The scale, and its levels as listed in the question: 1-Unusable and so on."""
    numbers = tuple(str(i + 1) for i in range(len(FASHIONDPO_NAMES)))
    listed = tuple(f"{number}-{name}" for number, name in zip(numbers, FASHIONDPO_NAMES))
    return Scale(numbers, tuple(float(n) for n in numbers), FASHIONDPO_NAMES), listed


def _mean(names: Sequence[str], scores: Sequence[Score]) -> Score:
    """One missing aspect is a missing score: a mean over the others would be another quantity."""
    values = {name: score.value for name, score in zip(names, scores) if score.value is not None}
    extra = {f"{k} {name}": v for name, score in zip(names, scores) for k, v in (score.aspects or {}).items()}
    texts = [score.text for score in scores if score.text is not None]
    errors = [f"{name}: {score.error}" for name, score in zip(names, scores) if score.value is None]
    value = None if errors else statistics.fmean(values.values())
    return Score(value, values | extra, " | ".join(texts) or None, "; ".join(errors) or None)


plugin = Mllm
