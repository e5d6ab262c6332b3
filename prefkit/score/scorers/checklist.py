"""Weighted yes/no answers of a multimodal model to a checklist, and agreement with the prompt: VisionReward's form.

    value = intercept + a * alignment + sum over questions of weight * s,   s = 1 (yes), -1 (no), 0 (does not apply)

This is VisionReward-Image's score (arXiv 2412.21059). Its 30 questions and their weights are not part of prefkit:
`python pipelines/judges/build.py visionreward FOLDER` fetches them into FOLDER/visionreward.json. Or write your own file.
A question with `only_if` applies only if that question is answered with yes (hands, if there are any).

`alignment` is P(yes) that the image shows the prompt, as in the scorer `vqascore`, and is asked only if the checklist gives
it a weight. Here the same model answers it; the published score asks another model, CLIP-FlanT5-XXL. VisionReward-Image
itself is published in a format (SwissArmyTransformer) that neither transformers nor common servers load: with another
model the published weights still apply, but were not fitted to its answers. If a question that applies is answered with
neither yes nor no, the score fails. The aspects are `alignment` and s of each question.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefkit.errors import UsageError
from prefkit.score.judge.backend import JudgeScorer
from prefkit.score.judge.checklist import ALIGNMENT, read_checklist
from prefkit.score.judge.cost import estimate
from prefkit.score.judge.question import JudgeOptions, Question, Reply
from prefkit.score.judge.templates import IMAGE
from prefkit.score.judge.written import yes_or_no
from prefkit.score.scorers.vqascore import Vqascore, VqascoreOptions
from prefkit.types import Candidate, Score, ScorerSpec, digest

MOST_TOKENS = 8  # of an answer: yes or no, perhaps with a mark before it


@dataclass(frozen=True)
class ChecklistOptions(JudgeOptions):
    #: JSON file with the questions and their weights
    checklist: str = ""
    #: the question about the alignment, with {prompt} or {column} of the request, answered with yes or no
    template: str = VqascoreOptions.template
    #: minimum total probability of yes and no as answers about the alignment
    min_mass: float = 0.1


class ChecklistScorer(JudgeScorer):
    Options = ChecklistOptions

    def __init__(self, options: ChecklistOptions) -> None:
        if not options.checklist:
            raise UsageError(
                "checklist: `checklist` is not set. Set it to a JSON file with questions; `python "
                "pipelines/judges/build.py visionreward FOLDER` fetches VisionReward's."
            )
        self.options = options
        self.list = read_checklist(options.checklist, "checklist")
        super().__init__(options, "checklist")
        shared = {field.name: getattr(options, field.name) for field in dataclasses.fields(JudgeOptions)}
        self.alignment = Vqascore(VqascoreOptions(**shared, template=options.template, min_mass=options.min_mass))
        self.alignment.backend = self.backend
        self.requires = self.alignment.requires if self.list.alignment else frozenset({IMAGE})

    def spec(self) -> ScorerSpec:
        content = digest(dataclasses.asdict(self.list), self.options.template, self.options.min_mass, length=12)
        return ScorerSpec(
            "checklist",
            "1",
            **self.backend.about(),
            formula=f"weighted answers to {len(self.list.entries)} questions, and alignment; checklist {content}",
            range=self.list.range(),
            licence="that of the weights",
        )

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        n = len(self.list.entries)
        replies = self.backend.texts([question for c in batch for question in self._questions(c)], MOST_TOKENS)
        shows = self.alignment.score(batch) if self.list.alignment else [Score(0.0)] * len(batch)
        return [self._score(replies[n * i : n * (i + 1)], shows[i]) for i in range(len(batch))]

    def estimate(self, sample: Sequence[Candidate], todo: int) -> dict[str, Any]:
        """Return the estimated calls, tokens and cost of `todo` candidates; {} without a server."""
        if not self.options.server:
            return {}
        questions = [question for c in sample for question in self._questions(c)]
        calls = todo * (len(self.list.entries) + bool(self.list.alignment))
        return estimate(self.options, sample, questions, calls, MOST_TOKENS)

    def _questions(self, candidate: Candidate) -> list[Question]:
        return [Question((candidate, entry.question)) for entry in self.list.entries]

    def _score(self, replies: Sequence[Reply], shows: Score) -> Score:
        reply_of = {entry.question: reply for entry, reply in zip(self.list.entries, replies, strict=True)}
        counted = self.list.counted({name: yes_or_no(reply.text or "") for name, reply in reply_of.items()})
        unanswered = [name for name, answer in counted.items() if answer is None]
        aspects = {name: float(1 if answer else -1) for name, answer in counted.items() if answer is not None}
        aspects |= {name: 0.0 for name in reply_of if name not in counted}
        if shows.value is not None and self.list.alignment:
            aspects[ALIGNMENT] = shows.value
        if unanswered:
            reply = reply_of[unanswered[0]]
            reason = reply.error or f"{(reply.text or '')[:200]!r} is neither yes nor no"
            return Score(None, aspects, error=f"{unanswered[0]} {reason}")
        if shows.value is None:
            return Score(None, aspects, error=f"alignment: {shows.error}")
        return Score(self.list.value(counted, shows.value), aspects)


plugin = ChecklistScorer
