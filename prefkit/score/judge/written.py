"""Scores in the written answers of published reward models. A missing, repeated or invalid score gives no scores at all."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

AXES = ("alignment", "coherence", "style")
NUMBER = r"(-?\d+(?:\.\d+)?)"
TEXT_RENDERING = "Text Rendering"
T2I_SECTIONS = ("Text Faithfulness", "Physical and Visual Quality", TEXT_RENDERING)
EDIT_SECTIONS = ("Text Faithfulness", "Image Faithfulness", "Physical and Visual Quality", TEXT_RENDERING)


def written(text: str, low: float, high: float) -> dict[str, float]:
    """Return the scores of UnifiedReward's answer by axis, or {"final": score}; {} if one is missing or invalid."""
    found: dict[str, float] = {}
    for axis in (*AXES, "final"):
        pattern = rf"\b{axis}(?:\s+score)?(?:\s*\([^)\n]*\))?\s*[:=]\s*\**\s*{NUMBER}"
        numbers = {float(number) for number in re.findall(pattern, text, re.IGNORECASE)}
        if len(numbers) > 1 or not all(low <= number <= high for number in numbers):
            return {}
        if numbers:
            found[axis] = numbers.pop()
    axes = {axis: found[axis] for axis in AXES if axis in found}
    if not axes:
        return found
    return axes if len(axes) == len(AXES) else {}


def listed(text: str, low: float, high: float) -> list[float]:
    """Return the numbers of `"score": [...]` in an answer with one JSON object; [] if they are missing or invalid."""
    match = re.search(r"\{.*\}", text, re.DOTALL)
    try:
        answer = json.loads(match.group(0)) if match else None
    except ValueError:
        return []
    values = answer.get("score") if isinstance(answer, dict) else None
    values = values if isinstance(values, list) else [values]
    numbers = [float(v) for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    valid = len(numbers) == len(values) and all(low <= number <= high for number in numbers)
    return numbers if valid else []


def sectioned(text: str, sections: Sequence[str], low: float, high: float) -> dict[str, float]:
    """Return the scores of RationalRewards' answer by section, with lower-case names; {} if one is missing or invalid.

    A section starts with a line such as `1. Text Faithfulness:` and has one line such as `## Score: 3.5`. Text Rendering
    may have the score N/A, and is then left out. What follows `# Summary` is not read.
    """
    text = re.split(r"^\W*summary\b", text, maxsplit=1, flags=re.IGNORECASE | re.MULTILINE)[0]
    names = "|".join(map(re.escape, sections))
    pieces = re.split(rf"^[\W\d]*({names})\b(?=\W)", text, flags=re.IGNORECASE | re.MULTILINE)
    found: dict[str, float] = {}
    seen = [name.casefold() for name in pieces[1::2]]
    if seen != [name.casefold() for name in sections]:
        return {}
    for name, body in zip(seen, pieces[2::2]):
        scores = set(
            re.findall(
                r"^[#*\s-]*score\s*\**\s*[:=]\s*\**\s*(n/?a\b|-?\d+(?:\.\d+)?)", body, re.IGNORECASE | re.MULTILINE
            )
        )
        if len(scores) != 1:
            return {}
        score = scores.pop()
        if score[0] in "nN":
            if name != TEXT_RENDERING.casefold():
                return {}
        elif low <= float(score) <= high:
            found[name] = float(score)
        else:
            return {}
    return found


def yes_or_no(text: str) -> bool | None:
    """Return True for an answer that starts with yes, False for one that starts with no, None for any other."""
    match = re.match(r"\W*(yes|no)\b(?!\s*(?:/|,?\s*and\b|,?\s*or\b)\s*(?:yes|no)\b)", text, re.IGNORECASE)
    return None if match is None else match.group(1).casefold() == "yes"
