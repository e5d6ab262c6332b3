"""Accuracy on the test pairs beside its controls, in all and by a column such as the law.

For each pair with a winner: 1 if the winner scores higher, 0.5 for equal scores, else 0; NaN where a text is missing.
    accuracy, accuracy_before     by the tuned model and by the base, given the prompt
    bag_of_words                  by a linear model that sees words only (bag_of_words.py)
    bare, bare_before             given the prompt without its condition: the column `subject`, or without it the words
                                  that prompt, explicit and superficial prompt share
    explicit, explicit_before     given the explicit prompt: a ceiling, since it describes the right image
Chance is 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prefkit.fit.preferences import Preference
from prefkit.fit.statistics import clustered
from prefkit.fit.wording.bag_of_words import Tuple, predictions, words
from prefkit.types import caption_key

CHANCE = 0.5
FEW = 6  # with fewer prompts, a bootstrap interval is too narrow
UNKNOWN = "unknown"
NO_TIERS = "the pairs have no explicit and superficial prompts"
NO_SUBJECT = "the pairs have no subject, and no words that their prompt, explicit and superficial prompt share"
REASONS = {"bag_of_words": NO_TIERS, "explicit": "the pairs have no explicit prompts", "bare": NO_SUBJECT}
Results = dict[str, np.ndarray]  # measure -> results of the test pairs [N]


@dataclass(frozen=True)
class Controls:
    """The columns with explicit prompts, superficial prompts and subjects; rows may lack any of them."""

    explicit: str
    superficial: str
    subject: str

    def tuple_of(self, row: Preference) -> Tuple | None:
        """Return (prompt, explicit, superficial), with the first wording of each; None if one is missing."""
        right, wrong = row.texts.get(self.explicit), row.texts.get(self.superficial)
        return (row.caption, right[0], wrong[0]) if right and wrong else None

    def bare(self, row: Preference) -> str | None:
        """Return the prompt without its condition: the subject, or the words that all three prompts share."""
        if given := row.texts.get(self.subject):
            return given[0]
        texts = self.tuple_of(row)
        if texts is None:
            return None
        shared = set.intersection(*(set(words(text)) for text in texts))
        return " ".join(word for word in words(texts[0]) if word in shared) or None

    def explicit_prompt(self, row: Preference) -> str:
        """Return the explicit prompt; the prompt for a row without one, whose result is not used."""
        return row.texts.get(self.explicit, (row.caption,))[0]

    def bare_prompt(self, row: Preference) -> str:
        return self.bare(row) or row.caption

    def measures(self, rows: Sequence[Preference], parts: Sequence[Sequence[int]], before: Any, after: Any) -> Results:
        """Return the results of each measure on the test rows.

        parts: indices of the training, validation and test rows. before, after: scores [N, 2, 3] of the test rows by
        base and tuned model, given prompt, explicit prompt and bare prompt.
        """
        test = [rows[n] for n in parts[2]]
        missing = {
            "accuracy": np.zeros(len(test), bool),
            "explicit": np.array([self.explicit not in row.texts for row in test], bool),
            "bare": np.array([self.bare(row) is None for row in test], bool),
        }
        found: Results = {}
        for suffix, scores in (("", after), ("_before", before)):
            for place, (name, absent) in enumerate(missing.items()):
                found[name + suffix] = np.where(absent, np.nan, results_of(test, scores[..., place]))
        tuples = [None if row.p == 0.5 else self.tuple_of(row) for row in rows]
        return found | {"bag_of_words": bag_results(tuples, *parts)}

    def report(self, rows: Sequence[Preference], found: Results, by: str | None, split: bool) -> dict[str, Any]:
        """Return `validation` (tuned model and base), `controls`, and `by`: all measures by the column and by split."""
        texts = [row.caption for row in rows]
        own = {name: found[name] for name in ("accuracy", "accuracy_before")}
        others = {name: values for name, values in found.items() if name not in own}
        gain = {"gain": found["accuracy"] - found["accuracy_before"]}
        groups = {by: [row.texts.get(by, (UNKNOWN,))[0] for row in rows]} if by else {}
        if split:
            groups["split"] = [row.split for row in rows]
        return {
            "validation": estimates(own | gain, texts),
            "controls": {"chance": CHANCE} | estimates(others, texts),
            "by": {name: grouped(found, texts, values) for name, values in groups.items()},
        }


def results_of(rows: Sequence[Preference], scores: Any) -> np.ndarray:
    """Rate each row's scores [N, 2]: 1 if the better image scores higher, 0.5 for equal scores, else 0; NaN for a tie."""
    gaps = (scores[:, 0] - scores[:, 1]).double().tolist()
    return np.array(
        [
            np.nan if row.p == 0.5 else 0.5 if gap == 0 else float((gap > 0) == (row.p > 0.5))
            for row, gap in zip(rows, gaps)
        ]
    )


def accuracy(rows: Sequence[Preference], scores: Any) -> dict[str, Any]:
    """Estimate the accuracy of scores [N, 2] on the rows with a winner."""
    return estimates({"accuracy": results_of(rows, scores)}, [row.caption for row in rows])["accuracy"]


def bag_results(
    tuples: Sequence[Tuple | None], train: Sequence[int], validation: Sequence[int], test: Sequence[int]
) -> np.ndarray:
    """Return the bag of words' results on the test rows [N]; NaN for rows without a tuple. tuples: one per row."""
    known = [n for n in test if tuples[n] is not None]
    parts = [[row for n in part if (row := tuples[n]) is not None] for part in (train, validation, known)]
    found = dict(zip(known, predictions(*parts))) if parts[0] else {}
    return np.array([found.get(n, np.nan) for n in test])


def estimates(results: Results, texts: Sequence[str]) -> dict[str, Any]:
    """Return {measure: {mean, low, high, n}} with 95 % intervals over prompts.

    With fewer than 6 prompts, low and high are None. A missing mean or interval has a `reason`.
    """
    found: dict[str, Any] = {}
    for name, values in results.items():
        known = np.isfinite(values)
        own = [text for text, ok in zip(texts, known) if ok]
        found[name] = clustered(values[known].tolist(), own)
        prompts = len(set(map(caption_key, own)))
        if prompts < FEW:
            few = f"no interval: {prompts} prompt{'s are' if prompts != 1 else ' is'} too few (at least {FEW})"
            found[name] |= {"low": None, "high": None, "reason": few}
        if not known.any():
            found[name]["reason"] = REASONS.get(name.removesuffix("_before"), "no test pair has a winner")
    return found


def grouped(results: Results, texts: Sequence[str], groups: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return {group: `estimates` of its pairs}. groups: one name per pair."""
    names = np.array(groups)
    return {
        group: estimates(
            {name: values[names == group] for name, values in results.items()},
            [text for text, own in zip(texts, groups) if own == group],
        )
        for group in sorted(set(groups))
    }
