"""A checklist: yes/no questions with weights, in a JSON file.

    {"alignment": 2.35, "intercept": 0.0, "questions": [
        {"question": "Are there human hands in the image?", "weight": 0},
        {"question": "Are the human hands perfect?", "weight": 0.07, "only_if": "Are there human hands in the image?"}]}

`alignment` and `intercept` may be missing (0). A question with `only_if` counts only if that question, which may have the
weight 0, is answered with yes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefkit.errors import UsageError

MOST = 1e9  # absolute value of a weight
ALIGNMENT = "alignment"  # aspect with the agreement of image and prompt


@dataclass(frozen=True)
class Entry:
    question: str
    weight: float
    only_if: str | None = None


@dataclass(frozen=True)
class Checklist:
    """alignment: weight of the agreement of image and prompt, from 0 to 1."""

    entries: tuple[Entry, ...]
    alignment: float = 0.0
    intercept: float = 0.0

    def counted(self, answers: Mapping[str, bool | None]) -> dict[str, bool | None]:
        """Return the answers that count: those of questions without `only_if`, or whose condition is not "no".

        If the condition has no answer (None), its question has none either.
        """
        found: dict[str, bool | None] = {}
        for entry in self.entries:
            condition = answers[entry.only_if] if entry.only_if is not None else True
            if condition is not False:
                found[entry.question] = answers[entry.question] if condition else None
        return found

    def value(self, counted: Mapping[str, bool | None], alignment: float) -> float:
        """Return intercept + alignment weight * alignment + sum of the counted questions' weights, negative for "no"."""
        signs = {question: 1 if answer else -1 for question, answer in counted.items()}
        terms = (entry.weight * signs.get(entry.question, 0) for entry in self.entries)
        return math.fsum([self.intercept, self.alignment * alignment, *terms])

    def range(self) -> tuple[float, float]:
        """Return bounds of the value."""
        most = math.fsum(abs(entry.weight) for entry in self.entries)
        ends = sorted((0.0, self.alignment))
        return self.intercept + ends[0] - most, self.intercept + ends[1] + most


def read_checklist(path: str, where: str) -> Checklist:
    """Read a checklist. where: the scorer's name, for messages. Raises UsageError."""
    try:
        found = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{where}: the checklist {path} could not be read: {error}") from error
    rows = found.get("questions") if isinstance(found, dict) else None
    if not isinstance(rows, list) or not rows:
        raise UsageError(f"{where}: the checklist {path} has no list `questions`; docs/scorers.md has an example.")
    if unknown_keys := set(found) - {"alignment", "intercept", "questions"}:
        raise UsageError(
            f"{where}: the checklist {path} has the unknown key {min(unknown_keys)!r}; its keys are alignment, intercept "
            "and questions."
        )
    entries = tuple(_entry(row, number, f"{where}: the checklist {path}") for number, row in enumerate(rows, 1))
    names = [entry.question for entry in entries]
    unknown = {entry.only_if for entry in entries if entry.only_if is not None} - {
        entry.question for entry in entries if entry.only_if is None
    }
    if unknown:
        raise UsageError(
            f"{where}: the checklist {path}: `only_if` is {min(unknown)!r}; it must be a question of the list that has no "
            "`only_if` itself."
        )
    if repeated := [name for number, name in enumerate(names) if name in names[:number]]:
        raise UsageError(f"{where}: the checklist {path} has the question {repeated[0]!r} twice.")
    numbers = [
        _number(found.get(key, 0.0), f"{where}: the checklist {path}: {key}") for key in ("alignment", "intercept")
    ]
    return Checklist(entries, *numbers)


def _entry(row: Any, number: int, where: str) -> Entry:
    where = f"{where}: question {number}"
    if not isinstance(row, dict) or set(row) - {"question", "weight", "only_if"}:
        raise UsageError(f"{where} must be an object with question, weight and, if needed, only_if.")
    question, condition = row.get("question"), row.get("only_if")
    if not isinstance(question, str) or not question.strip() or not (condition is None or isinstance(condition, str)):
        raise UsageError(f"{where}: question and only_if must be strings.")
    if question == ALIGNMENT:
        raise UsageError(f"{where}: {ALIGNMENT!r} is the name of the agreement with the prompt. Reword the question.")
    return Entry(question, _number(row.get("weight"), f"{where}: weight"), condition)


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= MOST:
        raise UsageError(f"{where} is {repr(value)[:50]}; it must be a number from -{MOST:g} to {MOST:g}.")
    return float(value)
