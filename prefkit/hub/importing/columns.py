"""Reads the mapping of a table's columns (--map) from their names, if it is unambiguous."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

#: names of the column with the prompt, best first; those of one rank are equally good
PROMPTS = (("prompt",), ("caption", "text"))
#: names of a winner's and a loser's image
DECIDED = (
    ("chosen", "rejected"),
    ("winner", "loser"),
    ("win", "lose"),
    ("winning", "losing"),
    ("preferred", "dispreferred"),
    ("preferred", "rejected"),
    ("w", "l"),
    ("better", "worse"),
)
#: names of two images that a further column compares
COMPARED = (("a", "b"), ("1", "2"), ("0", "1"), ("left", "right"))
LABELS = tuple((f"label_{a}", f"label_{b}") for a, b in COMPARED)
VERDICTS = ("winner", "preference", "preferred", "best", "choice", "label", "verdict")
ALONE = ("image", "file_name", "filename", "path", "file", "img", "picture")
#: words that say that a column holds an image
IMAGE = re.compile(r"(?:^|_)(?:image|img|picture|photo|jpg|png|file|path|file_?name|base64|b64|bytes)(?=_|\d|$)")
#: places of --map that columns of the same name fill
EXACT = ("votes_a", "votes_b", "probability", "model_a", "model_b", "seed_a", "seed_b", "judge", "aspect", "split")


@dataclass(frozen=True)
class Mapping:
    """places: place of --map -> column. doubts: sentences about what the names leave open; () if nothing."""

    places: dict[str, str]
    doubts: tuple[str, ...] = ()

    def flag(self) -> str:
        return "--map " + ",".join(f"{place}={column}" for place, column in self.places.items())


def mapping_of(columns: Iterable[str]) -> Mapping:
    """Return the mapping that the names of a table's columns suggest. Images are found as pairs first, then alone."""
    names = list(columns)
    places, doubts = {}, []
    for rank in PROMPTS:
        if fitting := [name for name in names if _plain(name) in rank]:
            places["prompt"] = fitting[0]
            doubts += _doubt("the prompt", fitting)
            break
    images, doubt = _images([name for name in names if name not in places.values()])
    places |= images
    doubts += doubt
    missing = [what for what, known in (("a prompt", "prompt" in places), ("images", bool(images))) if not known]
    doubts += [f"no column is named like {what}" for what in missing]
    if "image_b" in places:
        places |= {name: name for name in EXACT if name in names and name not in places.values()}
    elif "split" in names:
        places["split"] = "split"
    return Mapping(places, tuple(doubts))


def _images(names: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return (places of the images and of the verdict, doubts)."""
    decided = _pairs(names, DECIDED) or _with_loser(names)
    compared = _pairs(
        [name for name in names if IMAGE.search(_plain(name)) or _core(name) in ("left", "right")], COMPARED
    )
    compared = [pair for pair in compared if not set(pair) & {name for other in decided for name in other}]
    if decided and not compared:
        # `image, win, lose`: the pair may be counts
        other = [] if _form(decided[0][0]) else [name for name in names if _form(name)]
        found = [" and ".join(pair) for pair in decided] + other[:1]
        return dict(zip(("chosen", "rejected"), decided[0])), _doubt("the pair", found)
    if compared:
        a, b = compared[0]
        verdicts = [name for name in names if _plain(name) in VERDICTS]
        doubts = _doubt("the pair", [" and ".join(pair) for pair in (*compared, *decided)]) + _doubt(
            "the verdict", verdicts
        )
        if not verdicts and _pairs([name for name in names if _plain(name).startswith("label_")], LABELS):
            doubts.append("no column is named like a verdict, but label_... columns may hold it")
        return {"image_a": a, "image_b": b} | ({"winner": verdicts[0]} if verdicts else {}), doubts
    alone = [name for name in names if _plain(name) in ALONE or (IMAGE.search(_plain(name)) and not _core(name))]
    return ({"image_a": alone[0]} if alone else {}), _doubt("the image", alone)


def _pairs(names: list[str], known: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the (first, second) columns whose names differ only by a known pair of words."""
    return [
        (first, second)
        for one, two in known
        for first in names
        for second in names
        if (_core(first), _core(second)) == (one, two) and _form(first) == _form(second)
    ]


def _with_loser(names: list[str]) -> list[tuple[str, str]]:
    """Return the (winner, loser) columns called `image` and `lose_image`, as in DiffSynth-Studio's DPO."""
    return [
        (win, lose) for win in names for lose in names if _plain(win) in ALONE and _plain(lose) == f"lose_{_plain(win)}"
    ]


def _plain(name: str) -> str:
    return re.sub(r"[\s.-]+", "_", name.strip().casefold())


def _core(name: str) -> str:
    """Return a column's name without the words for an image: `chosen` for `image_chosen` and `chosen_path`."""
    return IMAGE.sub("", _plain(name)).strip("_")


def _form(name: str) -> str:
    return "".join(IMAGE.findall(_plain(name)))


def _doubt(what: str, candidates: list[str]) -> list[str]:
    return [f"{what} may be in {' or in '.join(candidates)}"] if len(candidates) > 1 else []
