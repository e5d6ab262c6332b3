"""Agreement of image and prompt: the probability of "Yes" to "Does this figure show ...?" (Lin et al., arXiv 2404.01291).

    value = P("Yes" | image, question), not renormalised over Yes and No, as published

over all tokens that read as yes whatever their case and spaces, of a model loaded here or of an OpenAI-compatible server.
The aspect `leftover` is the probability of neither Yes nor No; where they hold less than `min_mass` there is no score. A
server shows its 20 likeliest tokens only: an answer outside of them counts as having no probability.
Images go through the model's own processor (RGB first), as published; a server gets the file, or a PNG where the file would
show otherwise than it is seen here (prefkit/images.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefkit.score.judge.backend import make_backend
from prefkit.score.judge.cost import estimate
from prefkit.score.judge.question import JudgeOptions, Question, Reply
from prefkit.score.judge.templates import fill, places
from prefkit.types import Candidate, Score, ScorerSpec


@dataclass(frozen=True)
class VqascoreOptions(JudgeOptions):
    #: the question; {prompt}, and keys of the request
    template: str = 'Does this figure show "{prompt}"? Please answer yes or no.'
    #: share of the probability that yes and no must hold together for a score
    min_mass: float = 0.1


class Vqascore:
    Options = VqascoreOptions
    scope = "absolute"

    def __init__(self, options: VqascoreOptions) -> None:
        self.options = options
        self.requires = frozenset({"image", "prompt"} | places(options.template))
        self.backend = make_backend(options, "vqascore")
        self.concurrency, self.batch, self.close = self.backend.concurrency, self.backend.batch, self.backend.close
        self.alone = self.sends_files = bool(options.server)  # waiting for a server holds up nobody else

    def spec(self) -> ScorerSpec:
        return ScorerSpec(
            "vqascore",
            "1",
            **self.backend.about(),
            formula=f"P(yes) to {self.options.template!r}, with yes and no of at least {self.options.min_mass:g}",
            range=(0.0, 1.0),
            licence="that of the weights",
        )

    def load(self, device: str, dtype: str) -> None:
        """Raises UsageError for a model that cannot be loaded, or an address or key that is none."""
        self.backend.load(device, dtype)

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        questions = [Question((c, fill(self.options.template, {**c.extra, "prompt": c.prompt}))) for c in batch]
        return [self._one(reply) for reply in self.backend.masses(questions, ("yes", "no"))]

    def estimate(self, sample: Sequence[Candidate], todo: int) -> dict[str, Any]:
        """Calls, tokens and cost of `todo` candidates; {} without a server."""
        texts = [fill(self.options.template, {**c.extra, "prompt": c.prompt}) for c in sample]
        return estimate(self.options, sample, texts, todo, 1) if self.options.server else {}

    def _one(self, reply: Reply) -> Score:
        if reply.masses is None:
            return Score(None, error=reply.error)
        both = sum(reply.masses)
        aspects = {"leftover": max(0.0, 1.0 - both)}
        if both < self.options.min_mass or both == 0:
            error = f"yes and no hold {both:.3g} of the probability, less than {self.options.min_mass:g}"
            return Score(None, aspects, reply.text, error)
        return Score(reply.masses[0], aspects, reply.text)


plugin = Vqascore
