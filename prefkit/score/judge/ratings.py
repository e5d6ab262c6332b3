"""From a judge's words or probabilities to a number: expected values over a scale, and a parser that never guesses."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from prefkit.errors import UsageError

NUMBER = r"\d+(?:\.\d+)?"
#: words that announce the answer itself
LEAD = r"(?:overall\s+|final\s+|the\s+|my\s+)*(?:score|rating|category|level|answer|grade)\b(?:\s+(?:is|of|would be))?"


@dataclass(frozen=True)
class Scale:
    """Levels from worst to best. `names` go with numbers in `7-Good`; they may be empty."""

    labels: tuple[str, ...]
    values: tuple[float, ...]
    names: tuple[str, ...] = ()

    def number(self, text: str) -> float | None:
        """The level whose value it is; a number between two levels, or beyond them, is none."""
        return float(text) if float(text) in self.values else None


def scale_of(levels: Sequence[str], where: str) -> Scale:
    """Numbers are their own values; words count 1, 2, ... from the worst. Raises UsageError."""
    labels = tuple(level.strip() for level in levels)
    if len(labels) < 2 or len({label.casefold() for label in labels}) < len(labels) or not all(labels):
        raise UsageError(f"{where}: scale {list(levels)} must be two or more different levels, from worst to best.")
    try:
        values = tuple(float(label) for label in labels)
    except ValueError:
        return Scale(labels, tuple(float(i + 1) for i in range(len(labels))), labels)
    if not all(math.isfinite(v) for v in values) or sorted(values) != list(values):
        raise UsageError(f"{where}: scale {list(levels)}: numbers must rise from worst to best.")
    return Scale(labels, values)


def prefix_clash(labels: Sequence[str]) -> tuple[str, str] | None:
    """Two labels of which one begins as the other does: many tokenizers split 10 into 1 and 0."""
    for short in labels:
        for long in labels:
            if short != long and long.casefold().startswith(short.casefold()):
                return short, long
    return None


def expected(masses: Sequence[float], values: Sequence[float]) -> tuple[float | None, float]:
    """(sum p v / sum p, 1 - sum p): the expected value over the levels, and the probability of anything else."""
    total = math.fsum(masses)
    if total <= 0:
        return None, 1.0
    return math.fsum(m * v for m, v in zip(masses, values)) / total, max(0.0, 1.0 - total)


def parse(text: str, scale: Scale) -> float | None:
    """The one level that an answer names, else None: no level, two levels, a number outside the scale or between.

    Understood: JSON with "score" or "rating"; `7`, `7/10`, `7-Good`, `7. Because ...` at the start; `Score: 7` anywhere;
    `7-Good` with a name of the scale anywhere; a name alone. A number elsewhere in a sentence is not a rating.
    """
    text = text.strip().strip("`").removeprefix("json").strip()
    if text.startswith("{"):
        return _from_json(text, scale)
    plain = re.sub(r"[*_\"'“”]", "", text).strip()
    top = re.escape(f"{scale.values[-1]:g}")
    rated = rf"(-?{NUMBER})(?:\s*(?:/|out of)\s*{top}\b)?"
    names = sorted(scale.names, key=len, reverse=True)
    forms = [
        rf"^\(?{rated}\)?\s*(?:points?|stars?)?[\s.!]*$",
        rf"^{rated}\s*[-–—]\s*[^\W\d].*$" if not _more_numbers(plain, top) else None,
        rf"^{rated}\s*[.:,;\n](?!\d).*$" if not _more_numbers(plain, top) else None,
        rf"\b{LEAD}\s*[:=]*\s*{rated}(?![\d/])",
        rf"(?<![\w.-]){rated}\s*[-–—]\s*(?:{'|'.join(map(re.escape, names))})\b" if names else None,
    ]
    for form in filter(None, forms):
        found = {match.group(1) for match in re.finditer(form, plain, re.IGNORECASE | re.DOTALL)}
        if found:
            return scale.number(found.pop()) if len(found) == 1 else None
    bare = re.sub(rf"^{LEAD}\s*[:=]*\s*", "", plain, flags=re.IGNORECASE).rstrip(".!").strip().casefold()
    named = [value for name, value in zip(scale.names, scale.values) if name.casefold() == bare]
    return named[0] if named else None


def _more_numbers(text: str, top: str) -> bool:
    """Whether there are numbers that differ from the first, "out of 10" not counted."""
    return len(set(re.findall(NUMBER, re.sub(rf"(?:/|\bout of)\s*{top}\b", "", text)))) > 1


def _from_json(text: str, scale: Scale) -> float | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    given = [found[key] for key in ("score", "rating") if isinstance(found, dict) and key in found]
    if len(given) != 1 or isinstance(given[0], bool):
        return None
    if isinstance(given[0], str):
        return parse(given[0], scale) if not given[0].lstrip().startswith("{") else None
    return float(given[0]) if isinstance(given[0], (int, float)) and float(given[0]) in scale.values else None
