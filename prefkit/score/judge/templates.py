"""Question templates for judges. Their {placeholders} are filled with the prompt and columns of the request."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

PLACEHOLDER = re.compile(r"\{(\w+)\}")

RATING = (
    "An image generator was asked for: {prompt}\n"
    "Rate the image above{aspect}. Answer with one of {scale}, where {worst} is the worst and {best} the best. "
    "Answer with that alone."
)
#: replaces {aspect} in RATING
ASPECT = ", looking at nothing but its {aspect}"

#: FashionDPO's question (arXiv 2504.12900, section 4.2), reworded
FASHIONDPO = (
    "You judge product photos made for a fashion shop. This one is meant to show: {category}.\n"
    "Judge its quality: are all elements of such an item there and complete, and does it follow the principles of "
    "design?\n"
    "The categories, from worst to best, are: {scale}.\n"
    "Answer with one category exactly as listed. Do not explain."
)
FASHIONDPO_NAMES = tuple(
    [
        "Unusable",
        "Very Poor",
        "Poor",
        "Below Average",
        "Average",
        "Above Average",
        "Good",
        "Very Good",
        "Excellent",
        "Outstanding",
    ]
)


def placeholders(template: str) -> set[str]:
    return set(PLACEHOLDER.findall(template))


def fill(template: str, values: Mapping[str, Any]) -> str:
    """Replace each {name} that `values` has, in one pass, so that braces in an inserted prompt are kept."""
    return PLACEHOLDER.sub(lambda match: str(values.get(match.group(1), match.group(0))), template)
