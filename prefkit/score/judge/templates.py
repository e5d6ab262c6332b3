"""Question templates for judges. Their {placeholders} are filled with the prompt and columns of the request.

A column that holds input images is shown as these images. {image} is the image to judge; a template without it is
shown below that image.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from prefkit.types import Candidate

PLACEHOLDER = re.compile(r"\{(\w+)\}")
IMAGE = "image"

RATING = (
    "An image generator was asked for: {prompt}\n"
    "Rate the image above{aspect}. Answer with one of {scale}, where {worst} is the worst and {best} the best. "
    "Answer with that alone."
)
#: about an edit: the column `source` holds the image before it
EDIT = (
    "The image before the edit:\n{source}\nThe image after the edit:\n{image}\nThe edit that was asked for: {prompt}\n"
    "Rate the edit{aspect}: it is good if everything that was asked for was done and everything else is unchanged. "
    "Answer with one of {scale}, where {worst} is the worst and {best} the best. Answer with that alone."
)
#: replaces {aspect} in RATING and EDIT
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


def shown(template: str, candidate: Candidate, values: Mapping[str, Any]) -> tuple[str | Candidate, ...]:
    """Return the parts of a question about a candidate: texts and images in the order in which the judge sees them.

    values: texts for placeholders; by default those of the request's columns.
    """
    values = {**candidate.extra, **values}
    parts: list[str | Candidate] = [] if IMAGE in placeholders(template) else [candidate]
    text = ""
    for number, piece in enumerate(PLACEHOLDER.split(template)):  # odd pieces are names
        images = ([candidate] if piece == IMAGE else candidate.input_images(piece)) if number % 2 else []
        if images:
            parts += [*([text] if text.strip() else []), *images]
            text = ""
        else:
            text += str(values.get(piece, f"{{{piece}}}")) if number % 2 else piece
    return (*parts, *([text] if text.strip() else []))
