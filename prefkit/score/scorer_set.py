"""Scorers of the recipe by their aliases, through the same code as `prefkit score`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from prefkit.config import Recipe
from prefkit.distributed import device_of
from prefkit.errors import UsageError
from prefkit.plugin_guard import guarded
from prefkit.score.contract import spec_of
from prefkit.score.core import AdaptiveBatchSize, missing_keys, score_batch
from prefkit.score.overlap import in_order
from prefkit.score.run import scorer_of, scorer_spec
from prefkit.types import Candidate, Score

Scores = dict[str, list[Score]]


class ScorerSet:
    """Scorers by alias. Raises UsageError for an alias that the recipe does not have."""

    def __init__(self, recipe: Recipe, aliases: Sequence[str], where: str) -> None:
        unknown = [alias for alias in aliases if alias not in recipe.score]
        if unknown:
            raise UsageError(
                f"{where}: no scorer is called {', '.join(unknown)}; the recipe's `score:` has {', '.join(recipe.score) or 'none'}."
            )
        self.settings = {alias: recipe.score[alias] for alias in aliases}
        self.scorers = {alias: scorer_of(recipe, alias) for alias in aliases}
        self.rooms = {alias: AdaptiveBatchSize(who=f"score {alias}") for alias in self.scorers}
        self.current = ""

    def specs(self) -> dict[str, dict[str, Any]]:
        """What each alias means, as beside its table."""
        return {alias: scorer_spec(scorer, self.settings[alias]) for alias, scorer in self.scorers.items()}

    def signs(self) -> dict[str, float]:
        return {a: 1.0 if spec_of(scorer).higher_is_better else -1.0 for a, scorer in self.scorers.items()}

    def refuse_judges(self, aliases: Sequence[str], where: str) -> None:
        """A judge that is for evaluation only is no reward. Raises UsageError."""
        forbidden = [alias for alias in aliases if spec_of(self.scorers[alias]).evaluation_only]
        if forbidden:
            raise UsageError(f"{where}: {', '.join(forbidden)} may be used for evaluation only. Take another scorer.")

    def check(self, candidate: Candidate) -> None:
        """Raises UsageError where a scorer requires what the requests do not have."""
        for alias, scorer in self.scorers.items():
            lacking = missing_keys(scorer, candidate)
            if lacking:
                raise UsageError(
                    f"score.{alias}: the scorer needs {', '.join(lacking)}, which request {candidate.request_id} does not "
                    "have. Add a column of that name to the requests."
                )

    def load(self) -> None:
        for alias, scorer in self.scorers.items():
            with guarded(f"score {alias}: {self.settings[alias].use}"):
                scorer.load(device_of(self.settings[alias].device), self.settings[alias].dtype)

    def score(self, groups: Sequence[Sequence[Candidate]]) -> Scores:
        """Groups of candidates of one request each -> scores per alias, in order of the candidates. A candidate that failed
        fails with its own reason."""
        found: Scores = {}
        for alias, scorer in self.scorers.items():
            self.current = alias
            width = getattr(scorer, "concurrency", 1)
            call = partial(_scored, scorer, self.rooms[alias])
            blocks = self._blocks(alias, groups)
            if width > 1:  # it waits for another machine
                answers = [scores for _, scores in in_order(call, blocks, width)]
            else:
                answers = [call(block) for block in blocks]
            found[alias] = [score for scores in answers for score in scores]
        return found

    def _blocks(self, alias: str, groups: Sequence[Sequence[Candidate]]) -> Sequence[Sequence[Candidate]]:
        """What the scorer is given at once, as in `prefkit score`."""
        scorer, most = self.scorers[alias], self.settings[alias].batch_size
        if scorer.scope == "within_request":
            return groups
        own = getattr(scorer, "batch", None) or (1 if getattr(scorer, "concurrency", 1) > 1 else most)
        size, flat = min(own, most), [candidate for group in groups for candidate in group]
        return [flat[i : i + size] for i in range(0, len(flat), size)]

    def close(self) -> None:
        """End what scorers have under way elsewhere."""
        for alias, scorer in self.scorers.items():
            if hasattr(scorer, "close"):
                with guarded(f"score {alias}: {self.settings[alias].use}"):
                    scorer.close()


def _scored(scorer: Any, room: AdaptiveBatchSize, block: Sequence[Candidate]) -> list[Score]:
    return score_batch(scorer, [c if c.error is None else Score(None, error=c.error) for c in block], room)


def values_of(scores: Scores, alias: str) -> np.ndarray:
    """[N] float64, NaN = failed."""
    return np.array([np.nan if s.value is None else s.value for s in scores[alias]], dtype=np.float64)
