"""Clauses of a prompt in the form of GenEval's (2310.11513): "a photo of two dogs", "a red car and a blue bench",
"a photo of a dog left of a cat". An article means at least one object, a number exactly that many."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from prefkit.score.scorers._clauses import COLOURS, RELATIONS

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
START = re.compile(r"an? (?:photo|picture|image) of ")
POSITION = re.compile(rf"(.+?) (?:(?:to|on) the )?({'|'.join(RELATIONS)}) (.+)")
PHRASE = re.compile(rf"(an?|{'|'.join(NUMBERS)}) (.+)")
#: ending of a plural -> endings of the singular
ENDINGS = {"s": ("",), "es": ("",), "ies": ("y",), "ves": ("f", "fe"), "people": ("person",), "mice": ("mouse",)}


def clauses_in(prompt: str, known: Callable[[str], bool]) -> dict[str, Any]:
    """Return the columns tag, include and exclude of GenEval's metadata, as far as the prompt has them.

    known: whether the detector knows a class. Raises ValueError for a prompt of another form.
    """
    text = START.sub("", " ".join(prompt.casefold().split()).rstrip("."), count=1)
    if match := POSITION.fullmatch(text):
        first, relation, other = match.groups()
        include = [_clause(other, known), _clause(first, known) | {"position": [relation, 0]}]
    else:
        include = [_clause(phrase, known) for phrase in text.split(" and ")]
    names = [clause["class"] for clause in include]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"the prompt names {twice[0]} twice, so prefkit cannot distinguish its clauses")
    exclude = [{"class": c["class"], "count": c["count"] + 1} for c in include if "count" in c]
    return {"include": include, **({"tag": "counting", "exclude": exclude} if exclude else {})}


def _clause(phrase: str, known: Callable[[str], bool]) -> dict[str, Any]:
    """Return the clause of an article or number, perhaps a colour, and a class. `count` is set only by a number."""
    match = PHRASE.fullmatch(phrase)
    if match is None:
        raise ValueError(f"{phrase!r} does not start with a, an or a number from one to ten")
    amount, words = match.groups()
    count = NUMBERS.index(amount) + 1 if amount in NUMBERS else None
    for colour, name in _readings(words):
        for form in _singulars(name) if count is not None and count > 1 else (name,):
            if known(form):
                clause: dict[str, Any] = {"class": form} | ({"count": count} if count else {})
                return clause | ({"color": colour} if colour else {})
    raise ValueError(f"the detector knows no class for {words!r}")


def _readings(words: str) -> Iterator[tuple[str, str]]:
    """Yield (colour or "", name of the class): the colour orange is also a class."""
    yield "", words
    colour, _, rest = words.partition(" ")
    if colour in COLOURS and rest:
        yield colour, rest


def _singulars(name: str) -> Iterator[str]:
    """Yield the name, which may be its own plural (scissors), and the possible singulars."""
    yield name
    for plural, endings in ENDINGS.items():
        if name.endswith(plural):
            yield from (name.removesuffix(plural) + ending for ending in endings)
