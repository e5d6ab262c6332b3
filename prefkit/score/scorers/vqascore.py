"""Agreement of image and prompt: the probability of "Yes" to "Does this figure show ...?" (Lin et al., arXiv 2404.01291).

    value = P("Yes" | image, question), not renormalised over Yes and No, as published

P sums over all tokens that spell yes, in any case and with any spaces. The model is local or behind an
OpenAI-compatible server. The aspect `leftover` is the probability of all tokens but Yes and No; the score fails if Yes
and No together have less than `min_mass`. A server returns only its 20 most probable tokens; all others count as
impossible. Images go through the model's own processor, as published. A server gets the stored file, or a PNG if
decoders could disagree about the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefkit.score.judge.backend import JudgeScorer
from prefkit.score.judge.cost import estimate
from prefkit.score.judge.question import JudgeOptions, Question, Reply
from prefkit.score.judge.templates import IMAGE, placeholders, shown
from prefkit.types import Candidate, Score, ScorerSpec


@dataclass(frozen=True)
class VqascoreOptions(JudgeOptions):
    #: the question, with {prompt} or {column} of the request; a column of input images is shown as images, and the image
    #: itself at {image}, by default above the question
    template: str = 'Does this figure show "{prompt}"? Please answer yes or no.'
    #: minimum total probability of yes and no
    min_mass: float = 0.1


class Vqascore(JudgeScorer):
    Options = VqascoreOptions

    def __init__(self, options: VqascoreOptions) -> None:
        self.options = options
        self.requires = frozenset({IMAGE, "prompt"} | placeholders(options.template))
        super().__init__(options, "vqascore")

    def spec(self) -> ScorerSpec:
        return ScorerSpec(
            "vqascore",
            "1",
            **self.backend.about(),
            formula=f"P(yes) to {self.options.template!r}, with yes and no of at least {self.options.min_mass:g}",
            range=(0.0, 1.0),
            licence="that of the weights",
        )

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        questions = [self._question(c) for c in batch]
        return [self._score(reply) for reply in self.backend.masses(questions, ("yes", "no"))]

    def estimate(self, sample: Sequence[Candidate], todo: int) -> dict[str, Any]:
        """Return the estimated calls, tokens and cost of `todo` candidates; {} without a server."""
        questions = [self._question(c) for c in sample]
        return estimate(self.options, sample, questions, todo, 1) if self.options.server else {}

    def _question(self, candidate: Candidate) -> Question:
        return Question(shown(self.options.template, candidate, {"prompt": candidate.prompt}))

    def _score(self, reply: Reply) -> Score:
        if reply.masses is None:
            return Score(None, error=reply.error)
        both = sum(reply.masses)
        aspects = {"leftover": max(0.0, 1.0 - both)}
        if both < self.options.min_mass or both == 0:
            error = f"yes and no have a total probability of {both:.3g}, less than {self.options.min_mass:g}"
            return Score(None, aspects, reply.text, error)
        return Score(reply.masses[0], aspects, reply.text)


plugin = Vqascore
