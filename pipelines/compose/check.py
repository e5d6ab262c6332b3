"""Measure the scorer geneval on composed scenes, whose garments are known, with the rule-based stand-in detector.

    python pipelines/compose/check.py --n 100 --seed 0 --out WORK/compose.csv

For each of GenEval's six kinds of prompts, `n` requests with two scenes each: one that shows the request, and one with
a single fault (another item, one garment more or less, another colour, another side, the two colours exchanged).
Precision: of the images (or conditions) that the scorer calls right, the fraction that is right. Recall: of the right
ones, the fraction that the scorer calls right. `--detector boxes` leaves out the masks; `--texts published` names
colours by GenEval's texts instead of `a {colour} {name}`, although the embedded CLIP does not know all of their words;
`--blur` applies a Gaussian blur of this radius in px, to resemble a decoder's output. A value without any image to
measure it on is nan. One minute on one core.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter
from scenes import DIRECTIONS, Garment, anything, compose

from prefkit.score.core import make_scorer
from prefkit.score.scorers.geneval import TEXTS
from prefkit.tiny.domain import COLOURS, ITEMS
from prefkit.types import Candidate

FOLDER = Path(__file__).parent
KINDS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLUMNS = (
    "detector",
    "texts",
    "blur",
    "kind",
    "of",
    "number",
    "right",
    "called right",
    "precision",
    "recall",
    "accuracy",
)


@dataclass(frozen=True)
class Case:
    """A scene with a request and the truth. held: {aspect: whether the scene fulfils it}."""

    tag: str
    extra: dict[str, Any]
    image: Image.Image
    held: dict[str, bool]


def other(rng: np.random.Generator, names: Any, *without: str) -> str:
    """Draw a name that is not one of `without`."""
    return str(rng.choice([name for name in names if name not in without]))


def cases(rng: np.random.Generator, tag: str) -> Iterator[Case]:
    """Yield a right and a wrong scene for a new request of the kind `tag`."""
    (item, colour), side = anything(rng), str(rng.choice(list(DIRECTIONS)))
    second = (other(rng, ITEMS, item), other(rng, COLOURS, colour))
    third, count = other(rng, ITEMS, item, second[0]), int(rng.integers(2, 5))
    any_colour = [str(name) for name in rng.choice(list(COLOURS), 5)]
    one, two, wrong_side = {"class": item, "count": 1}, {"class": second[0], "count": 1}, other(rng, DIRECTIONS, side)
    pair, include, exclude, sides = [(item, colour), second], [one, two], [], (None, None)
    if tag == "single_object":
        include, scenes = [one], ([(item, colour)], [(third, colour)])
    elif tag == "two_object":
        replaced = [(item, colour), (third, second[1])]
        scenes = (pair, replaced if rng.random() < 0.5 else [(third, colour), second])
    elif tag == "counting":
        include, exclude = [{"class": item, "count": count}], [{"class": item, "count": count + 1}]
        numbers = (count, count + int(rng.choice([-1, 1])))
        scenes = tuple([(item, name) for name in any_colour[:number]] for number in numbers)
    elif tag == "colors":
        include, scenes = [one | {"color": colour}], ([(item, colour)], [(item, second[1])])
    elif tag == "position":
        include, sides = [two, one | {"position": [side, 0]}], (side, wrong_side)
        scenes = (pair, pair)
    else:
        include, exchanged = (
            [one | {"color": colour}, two | {"color": second[1]}],
            [(item, second[1]), (second[0], colour)],
        )
        scenes = (pair, exchanged)
    for wanted, relation in zip(scenes, sides):
        image, garments = compose(rng, wanted, relation)
        extra = {"tag": tag, "include": include, "exclude": exclude}
        yield Case(tag, extra, image, truth(extra, garments, relation))


def truth(extra: dict[str, Any], garments: list[Garment], relation: str | None) -> dict[str, bool]:
    """Return the truth of each aspect of geneval. relation: side of the first garment, seen from the second."""
    held = {}
    for number, clause in enumerate(extra["include"]):
        mine = [one for one in garments if one.item == clause["class"]]
        name = f"{number} {clause['class']}"
        held[f"{name} count"] = len(mine) >= clause["count"]
        if "color" in clause:
            held[f"{name} color"] = sum(one.colour == clause["color"] for one in mine) >= clause["count"]
        if "position" in clause:
            held[f"{name} position"] = relation == clause["position"][0]
    for number, clause in enumerate(extra["exclude"]):
        mine = [one for one in garments if one.item == clause["class"]]
        held[f"exclude {number} {clause['class']}"] = len(mine) < clause["count"]
    return held


def measured(
    drawn: list[Case], detector: str, texts: str = "short", counting_threshold: float = 0.9
) -> list[tuple[str, str, bool, bool]]:
    """Return (kind, image or condition, whether it is right, whether the scorer calls it right) for all cases."""
    options = {"detector": f"{FOLDER / 'detector.py'}:{detector}", "model": "tiny", "value": "all"}
    options |= {"texts": TEXTS} if texts == "published" else {"texts": ("a {colour} {name}",)}
    scorer = make_scorer("geneval", options | {"counting_threshold": counting_threshold})
    scorer.load("cpu", "float32")
    rows = []
    for number, case in enumerate(drawn):
        candidate = Candidate(str(number), "r", 0, 0, "", decoded=case.image, extra=case.extra)
        (score,) = scorer.score([candidate])
        assert score.value is not None, score.error
        rows.append((case.tag, "image", all(case.held.values()), score.value == 1))
        for name, held in case.held.items():
            kind = "exclude" if name.startswith("exclude") else name.rpartition(" ")[2]
            rows.append((case.tag, kind, held, bool((score.aspects or {}).get(name, 0.0))))
    return rows


def table(rows: list[tuple[str, str, bool, bool]]) -> list[list[Any]]:
    """Return (kind, of, number, right, called right, precision, recall, accuracy) for each kind, and for all."""
    groups: dict[tuple[str, str], list[tuple[bool, bool]]] = {}
    for kind, of, right, called in rows:
        groups.setdefault((kind, of), []).append((right, called))
        groups.setdefault(("all", of), []).append((right, called))
    result = []
    for (kind, of), answers in sorted(groups.items(), key=lambda group: [*KINDS, "all"].index(group[0][0])):
        right, called = np.array(answers).T
        both = (right & called).sum()
        shares = (
            fraction(both, called.sum()),
            fraction(both, right.sum()),
            fraction((right == called).sum(), len(right)),
        )
        result.append([kind, of, len(answers), int(right.sum()), int(called.sum()), *shares])
    return result


def fraction(part: int, whole: int) -> float:
    """Return part / whole with three digits, nan if whole is 0."""
    return round(float(part) / float(whole), 3) if whole else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100, help="requests per kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--detector", default="garments", choices=("garments", "boxes"))
    parser.add_argument("--texts", default="short", choices=("short", "published"))
    parser.add_argument("--counting-threshold", type=float, default=0.9)
    parser.add_argument("--blur", type=float, default=0.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    drawn = [case for tag in KINDS for _ in range(args.n) for case in cases(rng, tag)]
    if args.blur:
        soft = ImageFilter.GaussianBlur(args.blur)
        drawn = [Case(case.tag, case.extra, case.image.filter(soft), case.held) for case in drawn]
    answers = measured(drawn, args.detector, args.texts, args.counting_threshold)
    rows = [[args.detector, args.texts, args.blur, *row] for row in table(answers)]
    for row in [list(COLUMNS), *rows]:
        print("  ".join(f"{value!s:>13}" for value in row))
    if args.out:
        with args.out.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([COLUMNS, *rows])


if __name__ == "__main__":
    main()
