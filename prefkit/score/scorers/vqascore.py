"""Agreement of image and prompt: the probability of "Yes" to "Does this figure show ...?" (Lin et al., arXiv 2404.01291).

    value = P("Yes" | image, question), not renormalised over Yes and No, as published

over all tokens that spell yes in any case and with any spaces, of a local model or of an OpenAI-compatible server.
The aspect `leftover` is the probability of neither Yes nor No; the score fails if both have less than `min_mass` together. A
server returns its 20 likeliest tokens only; all other tokens count as having no probability.
Images go through the model's own processor (RGB first), as published. A server gets the file, or a PNG if some decoders show
the file in another way than prefkit/images.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefkit.score.judge.backend import JudgeScorer
from prefkit.score.judge.cost import estimate
from prefkit.score.judge.question import JudgeOptions, Question, Reply
from prefkit.score.judge.templates import fill, placeholders
from prefkit.types import Candidate, Score, ScorerSpec


@dataclass(frozen=True)
class VqascoreOptions(JudgeOptions):
    #: the question; {prompt}, and columns of the request
    template: str = 'Does this figure show "{prompt}"? Please answer yes or no.'
    #: fraction of the probability that yes and no must have together
    min_mass: float = 0.1


class Vqascore(JudgeScorer):
    Options = VqascoreOptions

    def __init__(self, options: VqascoreOptions) -> None:
        self.options = options
        self.requires = frozenset({"image", "prompt"} | placeholders(options.template))
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
        questions = [Question((c, self._text(c))) for c in batch]
        return [self._score(reply) for reply in self.backend.masses(questions, ("yes", "no"))]

    def estimate(self, sample: Sequence[Candidate], todo: int) -> dict[str, Any]:
        """Calls, tokens and cost of `todo` candidates; {} without a server."""
        texts = [self._text(c) for c in sample]
        return estimate(self.options, sample, texts, todo, 1) if self.options.server else {}

    def _text(self, candidate: Candidate) -> str:
        return fill(self.options.template, {**candidate.extra, "prompt": candidate.prompt})

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
