"""Scorers of a recipe, for training and evaluation. They are called by the same code as in `prefkit score`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from prefkit.config import Recipe
from prefkit.distributed import device_of
from prefkit.errors import UsageError
from prefkit.plugin_guard import guarded
from prefkit.score.contract import spec_of
from prefkit.score.core import AdaptiveBatchSize, check_requires, close, score_batch
from prefkit.score.overlap import in_order
from prefkit.score.passes import call_size
from prefkit.score.run import scorer_of, scorer_spec
from prefkit.store import Store
from prefkit.types import Candidate, Score

Scores = dict[str, list[Score]]


class ScorerSet:
    """The recipe's scorers with the given score names. Raises UsageError for a name that the recipe does not have.

    store: the run with the input images of the requests; without it, scorers that need such images fail.
    """

    def __init__(self, recipe: Recipe, names: Sequence[str], where: str, store: Store | None = None) -> None:
        unknown = [name for name in names if name not in recipe.score]
        if unknown:
            raise UsageError(
                f"{where}: no score is called {', '.join(unknown)}; the recipe's `score:` has "
                f"{', '.join(recipe.score) or 'none'}."
            )
        self.settings = {name: recipe.score[name] for name in names}
        self.scorers = {name: scorer_of(recipe, name) for name in names}
        self.batch_sizes = {name: AdaptiveBatchSize(who=f"score {name}") for name in names}
        self.inputs = store.input_images() if store is not None else None
        self.current = ""

    def specs(self) -> dict[str, dict[str, Any]]:
        """Return the spec of each score, as its table stores it in spec.json."""
        return {name: scorer_spec(scorer, self.settings[name]) for name, scorer in self.scorers.items()}

    def signs(self) -> dict[str, float]:
        return {n: 1.0 if spec_of(scorer).higher_is_better else -1.0 for n, scorer in self.scorers.items()}

    def refuse_judges(self, names: Sequence[str], where: str) -> None:
        """Raise UsageError if a score in `names` is for evaluation only and therefore must not be used as a reward."""
        forbidden = [name for name in names if spec_of(self.scorers[name]).evaluation_only]
        if forbidden:
            raise UsageError(f"{where}: {', '.join(forbidden)} may be used for evaluation only. Use another scorer.")

    def check(self, candidate: Candidate) -> None:
        """Raise UsageError if a scorer requires a column that the candidate's request lacks."""
        for name, scorer in self.scorers.items():
            check_requires(scorer, candidate, name)

    def load(self) -> None:
        for name, scorer in self.scorers.items():
            settings = self.settings[name]
            with guarded(f"score {name}: {settings.use}"):
                scorer.load(device_of(settings.device), settings.dtype)

    def score(self, groups: Sequence[Sequence[Candidate]]) -> Scores:
        """Return {score name: scores in the order of the candidates}. groups: the candidates of each request."""
        scores: Scores = {}
        groups = [[replace(candidate, inputs=self.inputs) for candidate in group] for group in groups]
        for name, scorer in self.scorers.items():
            self.current = name
            width = getattr(scorer, "concurrency", 1)
            call = partial(_score_block, scorer, self.batch_sizes[name])
            blocks = self._blocks(name, groups)
            if width > 1:  # the scorer waits for another machine
                results = [block for _, block in in_order(call, blocks, width)]
            else:
                results = [call(block) for block in blocks]
            scores[name] = [score for block in results for score in block]
        return scores

    def _blocks(self, name: str, groups: Sequence[Sequence[Candidate]]) -> Sequence[Sequence[Candidate]]:
        """Split the candidates into calls in the same way as `prefkit score`."""
        scorer, flat = self.scorers[name], [candidate for group in groups for candidate in group]
        if scorer.scope == "within_request":
            return groups
        size = call_size(scorer, self.settings[name].batch_size)
        return [flat[i : i + size] for i in range(0, len(flat), size)]

    def close(self) -> None:
        """End the scorers' processes and pending requests."""
        for name, scorer in self.scorers.items():
            close(scorer, f"score {name}: {self.settings[name].use}")


def _score_block(scorer: Any, batch_size: AdaptiveBatchSize, block: Sequence[Candidate]) -> list[Score]:
    return score_batch(scorer, [c if c.error is None else Score(None, error=c.error) for c in block], batch_size)


def values_of(scores: Scores, name: str) -> np.ndarray:
    """Return the values of the score `name`, [N] float64, with NaN for failed ones."""
    return np.array([np.nan if s.value is None else s.value for s in scores[name]], dtype=np.float64)
