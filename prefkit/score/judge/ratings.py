"""A judge's rating as a number: the expected value over a scale, or the level that a written answer names."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from prefkit.errors import UsageError

NUMBER = r"\d+(?:\.\d+)?"
#: words that introduce a rating, such as `Final score is`
LEAD = r"(?:overall\s+|final\s+|the\s+|my\s+)*(?:score|rating|category|level|answer|grade)\b(?:\s+(?:is|of|would be))?"


@dataclass(frozen=True)
class Scale:
    """The levels of a rating, from worst to best. names: words in answers such as `7-Good`; may be empty."""

    labels: tuple[str, ...]
    values: tuple[float, ...]
    names: tuple[str, ...] = ()

    def number(self, text: str) -> float | None:
        """Return the number in `text` if it is the value of a level, else None."""
        return float(text) if float(text) in self.values else None


def scale_of(levels: Sequence[str], where: str) -> Scale:
    """Return a scale of numbers, or of words with the values 1, 2, ... Raises UsageError for invalid levels."""
    labels = tuple(level.strip() for level in levels)
    if len(labels) < 2 or len({label.casefold() for label in labels}) < len(labels) or not all(labels):
        raise UsageError(f"{where}: scale {list(levels)} must be two or more different levels, from worst to best.")
    try:
        values = tuple(float(label) for label in labels)
    except ValueError:
        return Scale(labels, tuple(float(i + 1) for i in range(len(labels))), labels)
    if not all(math.isfinite(v) for v in values) or sorted(values) != list(values):
        raise UsageError(f"{where}: scale {list(levels)}: its numbers must rise from worst to best.")
    return Scale(labels, values)


def prefix_clash(labels: Sequence[str]) -> tuple[str, str] | None:
    """Return a label and a longer one that starts with it, else None. Many tokenizers split 10 into 1 and 0."""
    for short in labels:
        for long in labels:
            if short != long and long.casefold().startswith(short.casefold()):
                return short, long
    return None


def expected(masses: Sequence[float], values: Sequence[float]) -> tuple[float | None, float]:
    """Return the expected value over the levels, sum p v / sum p, and the remaining probability, 1 - sum p."""
    total = math.fsum(masses)
    if total <= 0:
        return None, 1.0
    return math.fsum(m * v for m, v in zip(masses, values)) / total, max(0.0, 1.0 - total)


def parse(text: str, scale: Scale) -> float | None:
    """Return the value of the level that an answer names, or None if it does not name exactly one level.

    Accepted are JSON with "score" or "rating"; `7`, `7/10`, `7-Good` or `7. Because ...` at the start; `Score: 7`
    anywhere; `7-Good` anywhere if the scale has the name; and a name alone. Any other number is not a rating.
    """
    text = text.strip().strip("`").removeprefix("json").strip()
    if text.startswith("{"):
        return _from_json(text, scale)
    plain = re.sub(r"[*_\"'“”]", "", text).strip()
    top = re.escape(f"{scale.values[-1]:g}")
    rated = rf"(-?{NUMBER})(?:\s*(?:/|out of)\s*{top}\b)?"
    names = sorted(scale.names, key=len, reverse=True)
    single = len(set(re.findall(NUMBER, re.sub(rf"(?:/|\bout of)\s*{top}\b", "", plain)))) < 2
    forms = [
        rf"^\(?{rated}\)?\s*(?:points?|stars?)?[\s.!]*$",
        rf"^{rated}\s*[-–—]\s*[^\W\d].*$" if single else None,
        rf"^{rated}\s*[.:,;\n](?!\d).*$" if single else None,
        rf"\b{LEAD}\s*[:=]*\s*{rated}(?![\d/])",
        rf"(?<![\w.-]){rated}\s*[-–—]\s*(?:{'|'.join(map(re.escape, names))})\b" if names else None,
    ]
    for form in filter(None, forms):
        numbers = {match.group(1) for match in re.finditer(form, plain, re.IGNORECASE | re.DOTALL)}
        if numbers:
            return scale.number(numbers.pop()) if len(numbers) == 1 else None
    bare = re.sub(rf"^{LEAD}\s*[:=]*\s*", "", plain, flags=re.IGNORECASE).rstrip(".!").strip().casefold()
    return next((value for name, value in zip(scale.names, scale.values) if name.casefold() == bare), None)


def _from_json(text: str, scale: Scale) -> float | None:
    try:
        answer = json.loads(text)
    except ValueError:
        return None
    ratings = [answer[key] for key in ("score", "rating") if isinstance(answer, dict) and key in answer]
    if len(ratings) != 1 or isinstance(ratings[0], bool):
        return None
    rating = ratings[0]
    if isinstance(rating, str):
        return parse(rating, scale) if not rating.lstrip().startswith("{") else None
    return float(rating) if isinstance(rating, (int, float)) and float(rating) in scale.values else None
