"""A published reward model that writes its scores as text, local or on a server: UnifiedReward, EditScore, RationalRewards.

    unifiedreward         CodeGoat24/UnifiedReward-2.0-* (arXiv 2503.05236): how well the image follows the prompt
                          (alignment), its coherence and its style, each from 1 to 5, written as `Alignment Score (1-5):
                          3.6`; the value is their mean. Older models write one `Final Score: 3`.
    editscore             EditScore/EditScore-* (arXiv 2509.23909): two questions about an edit, each answered by JSON with
                          a list of scores from 0 to 25. The value is sqrt(min(edit scores) * min(quality scores)).
    rationalrewards       TIGER-Lab/RationalRewards-8B-T2I (arXiv 2604.11626): a critique with scores from 1 to 4 for text
                          faithfulness, physical and visual quality and, if the prompt asks for text, text rendering,
                          written as `## Score: 3.5`. The value is (mean - 1) / 3. At temperature 0; published at 0.1.
    rationalrewards_edit  TIGER-Lab/RationalRewards-8B-Edit: likewise for an edit, with image faithfulness too. (The
                          authors' training code leaves image faithfulness out of the mean, their model card does not.)

About an edit, the request's column `source` holds the image before it; `model.inputs` or `requests.images` lists it.

The questions ask for the published format in prefkit's own words. For the models' best accuracy, set `template` (and
`quality_template`) to the wording on the model's card, with {prompt}, {image} and {source} in its places. An answer
without the scores fails, as does a score outside the scale; it is never counted as 0. No model was run with its
published weights.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prefkit.errors import UsageError
from prefkit.score.core import with_input_images
from prefkit.score.judge.backend import JudgeScorer
from prefkit.score.judge.cost import estimate
from prefkit.score.judge.question import JudgeOptions, Question, Reply
from prefkit.score.judge.templates import IMAGE, placeholders, shown
from prefkit.score.judge.written import EDIT_SECTIONS, T2I_SECTIONS, TEXT_RENDERING, listed, sectioned, written
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
#: what each section of a critique is about
ABOUT = {
    "Text Faithfulness": "does the image show what the instruction asks for?",
    "Image Faithfulness": "is everything that should not change as in the source image?",
    "Physical and Visual Quality": "is it physically plausible and free of artifacts?",
    TEXT_RENDERING: "if the instruction asks for text: is it correct and legible? Otherwise the score is N/A.",
}


def critique(start: str, sections: Sequence[str]) -> str:
    """Return the question that asks for a critique in sections."""
    aspects = "\n".join(f"- {name}: {ABOUT[name]}" for name in sections)
    answer = "\n".join(f"{n}. {name}:\n## Justification: ...\n## Score: X" for n, name in enumerate(sections, 1))
    return (
        f"{start}\nJudge the result in {len(sections)} aspects, each with a score from 1 (worst) to 4 (best), with decimals:\n"
        f"{aspects}\nAnswer in this format:\n# Detailed Judgement\n{answer}\n# Summary: ..."
    )


RATIONAL = critique("User Instruction: {prompt}\nGenerated image:\n{image}", T2I_SECTIONS)
RATIONAL_EDIT = critique("User Instruction: {prompt}\nSource image:\n{source}\nEdited image:\n{image}", EDIT_SECTIONS)

Found = tuple[float | None, dict[str, float]]


@dataclass(frozen=True)
class Preset:
    """templates: one question each; read: the written answers -> value, None if one has no valid scores, and aspects."""

    templates: tuple[str, ...]
    read: Callable[[Sequence[str]], Found]
    formula: str
    range: tuple[float, float]
    edits: bool = False
    max_tokens: int = 512


def _unifiedreward(texts: Sequence[str]) -> Found:
    aspects = written(texts[0], 1, 5)
    return (statistics.fmean(aspects.values()) if aspects else None), aspects


def _editscore(texts: Sequence[str]) -> Found:
    lists = [listed(text, 0, 25) for text in texts]
    edit, quality = (min(numbers) if numbers else None for numbers in lists)
    aspects = {name: v for name, v in (("edit", edit), ("quality", quality)) if v is not None}
    return (None if edit is None or quality is None else math.sqrt(edit * quality)), aspects


def _rationalrewards(sections: Sequence[str]) -> Callable[[Sequence[str]], Found]:
    def read(texts: Sequence[str]) -> Found:
        aspects = sectioned(texts[0], sections, 1, 4)
        return ((statistics.fmean(aspects.values()) - 1) / 3 if aspects else None), aspects

    return read


MEAN = "(mean of the written scores - 1) / 3"
PRESETS = {
    "unifiedreward": Preset((UNIFIED,), _unifiedreward, "mean of the written scores", (1.0, 5.0)),
    "editscore": Preset((EDIT, QUALITY), _editscore, "sqrt(min(edit) * min(quality))", (0.0, 25.0), edits=True),
    "rationalrewards": Preset((RATIONAL,), _rationalrewards(T2I_SECTIONS), MEAN, (0.0, 1.0), max_tokens=2048),
    "rationalrewards_edit": Preset(
        (RATIONAL_EDIT,), _rationalrewards(EDIT_SECTIONS), MEAN, (0.0, 1.0), edits=True, max_tokens=2048
    ),
}


@dataclass(frozen=True)
class RewardVlmOptions(JudgeOptions):
    #: unifiedreward | editscore | rationalrewards | rationalrewards_edit
    preset: Literal["unifiedreward", "editscore", "rationalrewards", "rationalrewards_edit"] = "unifiedreward"
    #: the question, with {image}, {prompt}, {source} or {column} of the request; empty = the preset's
    template: str = ""
    #: the question about the quality of an edited image (editscore); empty = the preset's
    quality_template: str = ""
    #: column of the requests with the image before the edit (editscore, rationalrewards_edit)
    source: str = "source"
    #: maximum number of tokens of an answer; null = 512, and 2048 for rationalrewards and rationalrewards_edit
    max_tokens: int | None = None


class RewardVlm(JudgeScorer):
    Options = RewardVlmOptions

    def __init__(self, options: RewardVlmOptions) -> None:
        self.options, self.preset = options, PRESETS[options.preset]
        if options.quality_template and options.preset != "editscore":
            raise UsageError("reward_vlm: `quality_template` is for `preset: editscore`. Remove it.")
        source = f"{{{options.source}}}"
        defaults = [template.replace("{source}", source) for template in self.preset.templates]
        given = (options.template, options.quality_template)
        self.templates = tuple(own or default for own, default in zip(given, defaults))
        self.max_tokens = options.max_tokens or self.preset.max_tokens
        named = set[str]().union(*map(placeholders, self.templates))
        self.requires = frozenset({IMAGE, "prompt"} | named | ({options.source} if self.preset.edits else set()))
        super().__init__(options, "reward_vlm")

    def spec(self) -> ScorerSpec:
        return ScorerSpec(
            "reward_vlm",
            "1",
            **self.backend.about(),
            formula=f"{self.options.preset}: {self.preset.formula}; question {digest(self.templates, length=12)}",
            range=self.preset.range,
            licence="that of the weights",
        )

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        if not self.preset.edits:
            return self._scores(batch)
        return with_input_images(batch, self.options.source, self._scores)

    def _scores(self, batch: Sequence[Candidate]) -> list[Score]:
        questions = [question for c in batch for question in self._questions(c)]
        replies = self.backend.texts(questions, self.max_tokens)
        n = len(self.templates)
        return [self._score(replies[n * i : n * (i + 1)]) for i in range(len(batch))]

    def estimate(self, sample: Sequence[Candidate], todo: int) -> dict[str, Any]:
        """Return the estimated calls, tokens and cost of `todo` candidates; {} without a server."""
        questions = [question for c in sample for question in self._questions(c)]
        calls = todo * len(self.templates)
        return estimate(self.options, sample, questions, calls, self.max_tokens) if self.options.server else {}

    def _questions(self, candidate: Candidate) -> list[Question]:
        return [Question(shown(template, candidate, {"prompt": candidate.prompt})) for template in self.templates]

    def _score(self, replies: Sequence[Reply]) -> Score:
        texts = [reply.text or "" for reply in replies]
        text = "\n".join(texts)
        error = next((reply.error for reply in replies if reply.text is None), None)
        if error is not None:
            return Score(None, text=text or None, error=error)
        value, aspects = self.preset.read(texts)
        if value is None:
            return Score(None, aspects, text, f"the answer has no valid scores: {text[:200]!r}")
        return Score(value, aspects, text)


plugin = RewardVlm
