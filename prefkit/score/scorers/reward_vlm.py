"""A published reward model that writes its scores as text, local or on a server: UnifiedReward or EditScore.

    unifiedreward  CodeGoat24/UnifiedReward-2.0-* (arXiv 2503.05236): how well the image follows the prompt (alignment),
                   its coherence and its style, each from 1 to 5, written as `Alignment Score (1-5): 3.6`; the value is
                   their mean. Older models write one `Final Score: 3`.
    editscore      EditScore/EditScore-* (arXiv 2509.23909): two questions about an edit, each answered by JSON with a
                   list of scores from 0 to 25. The value is sqrt(min(edit scores) * min(quality scores)). The request's
                   column `source` holds the image before the edit; `model.inputs` or `requests.images` lists it.

The questions ask for the published format in prefkit's own words. For the models' best accuracy, set `template` (and
`quality_template`) to the wording on the model's card, with {prompt}, {image} and {source} in its places. An answer
without the scores fails; it is never counted as 0. Neither model was run with its published weights.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prefkit.errors import UsageError
from prefkit.score.core import with_input_images
from prefkit.score.judge.backend import JudgeScorer
from prefkit.score.judge.cost import estimate
from prefkit.score.judge.question import JudgeOptions, Question, Reply
from prefkit.score.judge.templates import IMAGE, placeholders, shown
from prefkit.types import Candidate, Score, ScorerSpec, digest

UNIFIED = (
    "{image}\nThis image was generated for the caption: {prompt}\n"
    "Give it three scores from 1 (worst) to 5 (best), with decimals: alignment (does it show what the caption says?), "
    "coherence (are there errors or distortions?) and style (is it beautiful?). Answer in exactly these three lines:\n"
    "Alignment Score (1-5): X\nCoherence Score (1-5): Y\nStyle Score (1-5): Z"
)
EDIT = (
    "Image before the edit:\n{source}\nImage after the edit:\n{image}\nThe edit that was asked for: {prompt}\n"
    "Give two scores from 0 (worst) to 25 (best): was the edit carried out, and is everything else unchanged? "
    'Answer with JSON: {"reasoning": "...", "score": [edit, unchanged]}'
)
QUALITY = (
    "{image}\nGive this generated image two scores from 0 (worst) to 25 (best): does it look natural, and is it free of "
    'artifacts? Answer with JSON: {"reasoning": "...", "score": [natural, free_of_artifacts]}'
)
AXES = ("alignment", "coherence", "style")
NUMBER = r"(-?\d+(?:\.\d+)?)"
TOP = {"unifiedreward": (1.0, 5.0), "editscore": (0.0, 25.0)}


@dataclass(frozen=True)
class RewardVlmOptions(JudgeOptions):
    #: unifiedreward | editscore
    preset: Literal["unifiedreward", "editscore"] = "unifiedreward"
    #: the question, with {image}, {prompt}, {source} or {column} of the request; empty = the preset's
    template: str = ""
    #: the question about the quality of an edited image (editscore); empty = the preset's
    quality_template: str = ""
    #: column of the requests with the image before the edit (editscore)
    source: str = "source"
    #: maximum number of tokens of an answer
    max_tokens: int = 512


class RewardVlm(JudgeScorer):
    Options = RewardVlmOptions

    def __init__(self, options: RewardVlmOptions) -> None:
        self.options = options
        edits = options.preset == "editscore"
        if options.quality_template and not edits:
            raise UsageError("reward_vlm: `quality_template` is for `preset: editscore`. Remove it.")
        first = options.template or (EDIT.replace("{source}", f"{{{options.source}}}") if edits else UNIFIED)
        self.templates = (first, options.quality_template or QUALITY) if edits else (first,)
        named = set[str]().union(*map(placeholders, self.templates))
        self.requires = frozenset({IMAGE, "prompt"} | named | ({options.source} if edits else set()))
        super().__init__(options, "reward_vlm")

    def spec(self) -> ScorerSpec:
        value = "sqrt(min(edit) * min(quality))" if self.options.preset == "editscore" else "mean of the written scores"
        return ScorerSpec(
            "reward_vlm",
            "1",
            **self.backend.about(),
            formula=f"{self.options.preset}: {value}; question {digest(self.templates, length=12)}",
            range=TOP[self.options.preset],
            licence="that of the weights",
        )

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        if self.options.preset != "editscore":
            return self._scores(batch)
        return with_input_images(batch, self.options.source, self._scores)

    def _scores(self, batch: Sequence[Candidate]) -> list[Score]:
        questions = [question for c in batch for question in self._questions(c)]
        replies = self.backend.texts(questions, self.options.max_tokens)
        n = len(self.templates)
        return [self._score(replies[n * i : n * (i + 1)]) for i in range(len(batch))]

    def estimate(self, sample: Sequence[Candidate], todo: int) -> dict[str, Any]:
        """Return the estimated calls, tokens and cost of `todo` candidates; {} without a server."""
        questions = [question for c in sample for question in self._questions(c)]
        calls = todo * len(self.templates)
        return estimate(self.options, sample, questions, calls, self.options.max_tokens) if self.options.server else {}

    def _questions(self, candidate: Candidate) -> list[Question]:
        return [Question(shown(template, candidate, {"prompt": candidate.prompt})) for template in self.templates]

    def _score(self, replies: Sequence[Reply]) -> Score:
        text = "\n".join(reply.text or "" for reply in replies)
        error = next((reply.error for reply in replies if reply.text is None), None)
        if error is not None:
            return Score(None, text=text or None, error=error)
        low, high = TOP[self.options.preset]
        if self.options.preset == "unifiedreward":
            aspects = written(text, low, high)
            value = statistics.fmean(aspects.values()) if aspects else None
        else:
            lists = [listed(reply.text or "", low, high) for reply in replies]
            edit, quality = (min(numbers) if numbers else None for numbers in lists)
            aspects = {name: v for name, v in (("edit", edit), ("quality", quality)) if v is not None}
            value = None if edit is None or quality is None else math.sqrt(edit * quality)
        if value is None:
            return Score(None, aspects, text, f"the answer has no valid scores: {text[:200]!r}")
        return Score(value, aspects, text)


def written(text: str, low: float, high: float) -> dict[str, float]:
    """Return the scores of UnifiedReward's answer by axis, or {"final": score}; {} if one is missing or invalid."""
    found: dict[str, float] = {}
    for axis in (*AXES, "final"):
        pattern = rf"\b{axis}(?:\s+score)?(?:\s*\([^)\n]*\))?\s*[:=]\s*\**\s*{NUMBER}"
        numbers = {float(number) for number in re.findall(pattern, text, re.IGNORECASE)}
        if len(numbers) > 1 or not all(low <= number <= high for number in numbers):
            return {}
        if numbers:
            found[axis] = numbers.pop()
    axes = {axis: found[axis] for axis in AXES if axis in found}
    if not axes:
        return found
    return axes if len(axes) == len(AXES) else {}


def listed(text: str, low: float, high: float) -> list[float]:
    """Return the numbers of `"score": [...]` in an answer with one JSON object; [] if they are missing or invalid."""
    match = re.search(r"\{.*\}", text, re.DOTALL)
    try:
        answer = json.loads(match.group(0)) if match else None
    except ValueError:
        return []
    values = answer.get("score") if isinstance(answer, dict) else None
    values = values if isinstance(values, list) else [values]
    numbers = [float(v) for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    valid = len(numbers) == len(values) and all(low <= number <= high for number in numbers)
    return numbers if valid else []


plugin = RewardVlm
