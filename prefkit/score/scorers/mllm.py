"""Quality as rated by a multimodal language model: the expected rating, or the rating that the model writes.

    logprobs   value = sum_l p(l) v(l) / sum_l p(l), where p(l) is the probability of level l as the next token and v(l)
               its value (Q-Align's form, arXiv 2312.17090). The aspect `leftover` is the probability of all other
               tokens; the score fails if the levels together have less than `min_mass`.
    text       the rating in the written answer. If the answer names no level, or two, the question is asked again, up
               to `attempts` times in all; then the score fails. A local model at temperature 0 is asked only once.
    json       like text, but the answer follows a JSON schema (a reason, then the score), which needs a server that
               supports schemas. Use it for models without log-probabilities.

The model is local (`model`) or behind any OpenAI-compatible server (`server`). With `aspects`, one question is asked
about each aspect, and the value is the mean rating. `preset: fashiondpo` is FashionDPO's question, reworded, with ten
named levels, the request's `category` and temperature 0.1; it needs written answers. prefkit does not use the published
parser, which does not understand "7", reads some "5-..." as 10, and retries without limit. The judge should not belong
to the generator's model family.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prefkit.errors import UsageError
from prefkit.score.core import with_input_images
from prefkit.score.judge.backend import JudgeScorer
from prefkit.score.judge.compare import TEMPLATE as PAIRWISE
from prefkit.score.judge.compare import Verdicts, compare
from prefkit.score.judge.cost import estimate
from prefkit.score.judge.question import JudgeOptions, Question, Reply
from prefkit.score.judge.ratings import Scale, expected, parse, prefix_clash, scale_of
from prefkit.score.judge.templates import (
    ASPECT,
    EDIT,
    FASHIONDPO,
    FASHIONDPO_NAMES,
    IMAGE,
    RATING,
    fill,
    placeholders,
    shown,
)
from prefkit.types import Candidate, Score, ScorerSpec, digest

FIVE = ("1", "2", "3", "4", "5")
FILLED = {"prompt", "aspect", "scale", "worst", "best"}


@dataclass(frozen=True)
class MllmOptions(JudgeOptions):
    #: rating | edit (an edited image, with the image before the edit in the request's column `source`) | fashiondpo
    preset: Literal["rating", "edit", "fashiondpo"] = "rating"
    #: logprobs (expected value) | text (written rating) | json (written rating in a JSON schema; servers only)
    answer: Literal["logprobs", "text", "json"] = "logprobs"
    #: the question, with {prompt}, {aspect}, {scale}, {worst}, {best} or {column} of the request; a column of input
    #: images is shown as images, and the image itself at {image}, by default above the question; empty = the preset's
    template: str = ""
    #: levels from worst to best: numbers, or words with the values 1, 2, ...
    scale: tuple[str, ...] = FIVE
    #: aspects to ask about, one question each; the value is the mean of the ratings; empty = one question
    aspects: tuple[str, ...] = ()
    #: minimum total probability of the levels (logprobs)
    min_mass: float = 0.1
    #: sampling temperature (text, json); null = the preset's: 0, and 0.1 for fashiondpo
    temperature: float | None = None
    #: maximum number of times to ask until the answer names a level (text, json)
    attempts: int = 3
    #: maximum number of tokens of a written answer
    max_tokens: int = 256


class Mllm(JudgeScorer):
    Options = MllmOptions

    def __init__(self, options: MllmOptions) -> None:
        self.options = options
        fashion = options.preset == "fashiondpo"
        if fashion and (options.scale != FIVE or options.aspects):
            raise UsageError(
                "mllm: `preset: fashiondpo` has its own scale and no aspects. Remove `scale` and `aspects`."
            )
        self.scale = _fashion_scale() if fashion else scale_of(options.scale, "mllm")
        self.listed = (
            tuple(f"{n + 1}-{name}" for n, name in enumerate(self.scale.names)) if fashion else self.scale.labels
        )
        self.answer = "text" if fashion and options.answer == "logprobs" else options.answer
        self.template = options.template or {"rating": RATING, "edit": EDIT, "fashiondpo": FASHIONDPO}[options.preset]
        self.temperature = options.temperature if options.temperature is not None else 0.1 * fashion
        if options.aspects and "aspect" not in placeholders(self.template):
            raise UsageError("mllm: `aspects` needs {aspect} in `template`. Add it there, or remove `aspects`.")
        if self.answer == "json" and not options.server:
            raise UsageError(
                "mllm: `answer: json` needs a server that follows a schema; set `server`, or `answer: text`."
            )
        clash = prefix_clash(self.scale.labels)
        if self.answer == "logprobs" and options.server and clash:
            raise UsageError(
                f"mllm: the level {clash[1]} begins as {clash[0]} does, and the server may split it into tokens. Use "
                "levels such as 1 to 9, or `answer: text`."
            )
        self.requires = frozenset({IMAGE, "prompt"} | placeholders(self.template) - FILLED)
        super().__init__(options, "mllm")

    def spec(self) -> ScorerSpec:
        o = self.options
        formula = {
            "logprobs": f"expected level of the next token, of at least {o.min_mass:g}",
            "text": f"level in the written answer, temperature {self.temperature:g}, {o.attempts} attempts",
            "json": f"level in the JSON answer, temperature {self.temperature:g}, {o.attempts} attempts",
        }[self.answer]
        question = digest(self.template, self.listed, self.scale.values, length=12)
        formula += f"; question {question}" + (f"; mean of {', '.join(o.aspects)}" if o.aspects else "")
        return ScorerSpec(
            "mllm",
            "1",
            **self.backend.about(),
            formula=formula,
            range=(self.scale.values[0], self.scale.values[-1]),
            licence="that of the weights",
        )

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        if self.options.preset != "edit" or self.options.template:
            return self._scores(batch)
        return with_input_images(batch, "source", self._scores)

    def _scores(self, batch: Sequence[Candidate]) -> list[Score]:
        aspects = self.options.aspects or ("",)
        questions = [self._question(c, aspect) for c in batch for aspect in aspects]
        if self.answer == "logprobs":
            scores = [self._expected(reply) for reply in self.backend.masses(questions, self.scale.labels)]
        else:
            scores = self._written(questions)
        if not self.options.aspects:
            return scores
        n = len(aspects)
        return [_mean(aspects, scores[start : start + n]) for start in range(0, len(scores), n)]

    def judge_spec(self) -> dict[str, Any]:
        """Return the part of a comparison table's spec that depends on the judge."""
        answer = {"answer": self._pairwise(), "min_mass": self.options.min_mass}
        return {"judge": self._judge(), "version": "1", **self.backend.about(), **answer}

    def compare(self, pairs: Sequence[tuple[Candidate, Candidate]], template: str = "", aspect: str = "") -> Verdicts:
        """Compare pairs in both orders. template: the question, with {prompt}, {aspect} or {column} of the request."""
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
        """Return calls, tokens and cost of `todo` candidates (images=2: questions about pairs); {} without a server."""
        if not self.options.server:
            return {}
        aspects = self.options.aspects or ("",)
        questions = [
            Question((c, c, PAIRWISE + c.prompt)) if images == 2 else self._question(c, aspects[0]) for c in sample
        ]
        most = 1 if self.answer == "logprobs" else 16 if images == 2 else self.options.max_tokens
        return estimate(self.options, sample, questions, todo * (1 if images == 2 else len(aspects)), most)

    def _judge(self) -> str:
        return Path(self.options.model).name if Path(self.options.model).exists() else self.options.model

    def _pairwise(self) -> Literal["logprobs", "text"]:
        return "logprobs" if self.answer == "logprobs" else "text"

    def _question(self, candidate: Candidate, aspect: str) -> Question:
        # in the preset {aspect} is a clause; in the user's template it is the bare name
        clause = fill(ASPECT, {"aspect": aspect}) if aspect and not self.options.template else aspect
        values: dict[str, Any] = {"prompt": candidate.prompt, "aspect": clause}
        values |= {"scale": ", ".join(self.listed), "worst": self.listed[0], "best": self.listed[-1]}
        return Question(shown(self.template, candidate, values))

    def _expected(self, reply: Reply) -> Score:
        if reply.masses is None:
            return Score(None, error=reply.error)
        value, leftover = expected(reply.masses, self.scale.values)
        aspects = {"leftover": leftover}
        if value is None or 1 - leftover < self.options.min_mass:
            error = f"the levels have a total probability of {1 - leftover:.3g}, less than {self.options.min_mass:g}"
            return Score(None, aspects, reply.text, error)
        return Score(value, aspects, reply.text)

    def _written(self, questions: Sequence[Question]) -> list[Score]:
        scores: dict[int, Score] = {}
        attempts = self.options.attempts if self.backend.retries or self.temperature > 0 else 1
        for attempt in range(attempts):
            left = [i for i in range(len(questions)) if i not in scores]
            repeated = [Question(questions[i].parts, attempt) for i in left]
            replies = self.backend.texts(repeated, self.options.max_tokens, self.temperature, self._schema())
            for i, reply in zip(left, replies):
                value = parse(reply.text, self.scale) if reply.text is not None else None
                if value is not None or reply.text is None:
                    scores[i] = Score(value, text=reply.text, error=reply.error)
                elif attempt == attempts - 1:
                    error = (
                        f"{attempts} of {attempts} answers named no level of the scale; the last: {reply.text[:200]!r}"
                    )
                    scores[i] = Score(None, text=reply.text, error=error)
        return [scores[i] for i in range(len(questions))]

    def _schema(self) -> dict[str, Any] | None:
        if self.answer != "json":
            return None
        properties = {"reason": {"type": "string"}, "score": {"type": "string", "enum": list(self.listed)}}
        return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _fashion_scale() -> Scale:
    numbers = range(1, len(FASHIONDPO_NAMES) + 1)
    return Scale(tuple(map(str, numbers)), tuple(map(float, numbers)), FASHIONDPO_NAMES)


def _mean(names: Sequence[str], scores: Sequence[Score]) -> Score:
    """Return the mean over aspects; failed if an aspect failed, because a mean of the rest would not be comparable."""
    values = {name: score.value for name, score in zip(names, scores) if score.value is not None}
    extra = {f"{k} {name}": v for name, score in zip(names, scores) for k, v in (score.aspects or {}).items()}
    texts = [score.text for score in scores if score.text is not None]
    errors = [f"{name}: {score.error}" for name, score in zip(names, scores) if score.value is None]
    value = None if errors else statistics.fmean(values.values())
    return Score(value, values | extra, " | ".join(texts) or None, "; ".join(errors) or None)


plugin = Mllm
