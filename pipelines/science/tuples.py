"""Write prompt tuples of the small world, and their pictures.

    python pipelines/science/tuples.py OUT [--laws rust,melting] [--images] [--seed 0]

OUT/tuples.jsonl has a row per implicit prompt, in the layout of Science-T2I (arXiv 2504.13129): implicit_prompt,
explicit_prompt, superficial_prompt (a list), law, subject, split, and with --images explicit_image and superficial_image (a
list), rendered into OUT/images. `category` is `contradicts` if the right look is not the subject's usual one, else `usual`.
OUT/requests.jsonl has the same prompts as requests: prompt, explicit, superficial, and for judge.py the right look and setting.

The split `train` has seen subjects, pairs and wordings. Each other split holds out one thing, to be reported separately:
subject   30 % of the subjects of each kind; a training subject of the same kind has the same trait
pair      a seen subject under a seen condition, in a combination that training lacks
wording   known words, recombined: eight phrases a condition
word      eight phrases a condition with words that occur in no training prompt
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from laws import LAWS, Law, chance
from words import TAILS, described, heads, joined

from prefkit.errors import PrefkitError, UsageError
from prefkit.store.folders import whole_folder

TRAIN = "train"
HELD_OUT = ("subject", "pair", "wording", "word")
SUBJECTS, PAIRS = 0.3, 0.2  # held-out fractions
#: prompts per subject and condition: of the eight phrases of `train`, and of the eight of `wording` and of `word`. The numbers
#: balance the looks: where a law has exceptions, its effect is the right look about as often as the usual look
PROMPTS = {"follows": (6, 4), "excepted": (5, 2), "neutral": (1, 2), "excepted, neutral": (1, 0)}
NO_SETTING = "none"
REQUEST = ("split", "law", "subject", "explicit", "superficial", "condition", "setting", "look")


@dataclass(frozen=True)
class Tuple:
    """One implicit prompt, with the looks and descriptions of the right picture and of the wrong ones."""

    law: str
    subject: str
    condition: str
    setting: str
    look: str
    wrong: tuple[str, ...]
    implicit: str
    explicit: str
    superficial: tuple[str, ...]
    split: str
    usual: bool


@cache
def held_out_subjects(name: str) -> frozenset[str]:
    """Return the held-out subjects of a law: of each kind 30 %, but only where another subject of the kind has the trait."""
    law, chosen = LAWS[name], []
    for kind, subjects in law.kinds.items():
        left, wanted = dict(subjects), round(SUBJECTS * len(subjects))
        for subject in sorted(subjects, key=lambda s: chance("subject", name, kind, s)):
            if wanted and list(left.values()).count(subjects[subject]) > 1:
                del left[subject]
                chosen.append(subject)
                wanted -= 1
    return frozenset(chosen)


@cache
def held_out_pairs(name: str) -> frozenset[tuple[str, str]]:
    """Return held-out (subject, condition): a fifth of each condition's seen subjects of each kind, at most one per two conditions."""
    law, chosen = LAWS[name], set[tuple[str, str]]()
    if len(law.conditions) < 2:
        return frozenset()
    for subjects in law.kinds.values():
        seen = [s for s in subjects if s not in held_out_subjects(name)]
        for condition in law.conditions:
            if condition in law.neutral:
                continue
            free = [s for s in seen if sum(pair[0] == s for pair in chosen) < len(law.conditions) // 2]
            count = max(1, round(PAIRS * len(seen))) if len(seen) > 2 else 0
            chosen |= {(s, condition) for s in sorted(free, key=lambda s: chance("pair", name, condition, s))[:count]}
    return frozenset(chosen)


@cache
def phrases(name: str, condition: str) -> dict[str, tuple[str, ...]]:
    """Return the eight phrases of `train`, `wording` and `word`."""
    known, new = heads(name, condition)
    tails = TAILS[name]
    combined = {(i, j): f"{head} {tail}".strip() for i, head in enumerate(known) for j, tail in enumerate(tails)}
    return {
        TRAIN: tuple(text for (i, j), text in combined.items() if (i + j) % 2 == 0),
        "wording": tuple(text for (i, j), text in combined.items() if (i + j) % 2),
        "word": new,
    }


def tuples(names: Sequence[str] = tuple(LAWS)) -> Iterator[Tuple]:
    """Yield all tuples of the laws. Raises UsageError for an empty list or an unknown law."""
    if not names:
        raise UsageError(f"No law given. Laws: {', '.join(LAWS)}.")
    if unknown := [name for name in names if name not in LAWS]:
        raise UsageError(f"Unknown law {unknown[0]!r}. Laws: {', '.join(LAWS)}.")
    for name in names:
        for subject in LAWS[name].kind_of:
            for condition in LAWS[name].conditions:
                yield from _of_pair(LAWS[name], subject, condition)


def numbers(law: Law, subject: str, condition: str) -> tuple[int, int]:
    """Return how many prompts a subject has under a condition. A lamp of another colour has half: two others, one own."""
    excepted, neutral = law.kind_of[subject] in law.exceptions, condition in law.neutral
    train, more = PROMPTS[", ".join(["excepted"] * excepted + ["neutral"] * neutral) or "follows"]
    if law.name == "absorption" and law.right(subject, condition) == "dark":
        return train // 2, more // 2
    return train, more


def _of_pair(law: Law, subject: str, condition: str) -> Iterator[Tuple]:
    """Yield the tuples of a subject under a condition."""
    known = phrases(law.name, condition)
    train, more = numbers(law, subject, condition)
    if subject in held_out_subjects(law.name):
        parts = {"subject": (known[TRAIN], train)}
    elif (subject, condition) in held_out_pairs(law.name):
        parts = {"pair": (known[TRAIN], train)}
    else:
        parts = {TRAIN: (known[TRAIN], train), "wording": (known["wording"], more), "word": (known["word"], more)}
    alike = [s for s in law.kinds[law.kind_of[subject]] if (s in held_out_subjects(law.name)) == ("subject" in parts)]
    for split, (choices, number) in parts.items():
        for turn in range(number):  # successive subjects use successive phrases
            yield _tuple(
                law, subject, condition, choices[(alike.index(subject) * max(number, 3) + turn) % len(choices)], split
            )


def _tuple(law: Law, subject: str, condition: str, phrase: str, split: str) -> Tuple:
    right, wrong = law.right(subject, condition), law.wrong(subject, condition)
    setting = law.settings.get(condition, "")
    form = int(chance("form", law.name, subject, phrase) < 0.5)
    explicit, *superficial = (described(law.name, subject, look, setting, form) for look in (right, *wrong))
    usual = right == law.usual[law.kind_of[subject]]
    implicit = joined(subject, phrase)
    return Tuple(
        law.name, subject, condition, setting, right, wrong, implicit, explicit, tuple(superficial), split, usual
    )


def row_of(number: int, one: Tuple) -> dict[str, Any]:
    """Return a row of tuples.jsonl, without pictures."""
    return {
        "id": f"{one.law}-{number:05d}",
        "split": one.split,
        "law": one.law,
        "category": "usual" if one.usual else "contradicts",
        "subject": one.subject,
        "implicit_prompt": one.implicit,
        "explicit_prompt": one.explicit,
        "superficial_prompt": list(one.superficial),
    }


def request_of(one: Tuple) -> dict[str, Any]:
    """Return a row of requests.jsonl. setting: NO_SETTING where the law has none, since an empty text counts as missing."""
    row = {"prompt": one.implicit, "category": "usual" if one.usual else "contradicts"}
    return row | {name: getattr(one, name) for name in REQUEST} | {"setting": one.setting or NO_SETTING}


def render_all(row: dict[str, Any], one: Tuple, folder: Path, seed: Sequence[int]) -> dict[str, Any]:
    """Render the right picture and the wrong ones. Returns the columns explicit_image and superficial_image."""
    from looks import Scene, render

    paths = []
    for number, look in enumerate((one.look, *one.wrong)):
        paths.append(f"images/{row['id']}-{number}.png")
        scene = Scene(one.law, one.subject, look, one.setting)
        render(scene, int(np.random.default_rng([*seed, number]).integers(2**31))).save(folder / paths[-1])
    return {"explicit_image": paths[0], "superficial_image": paths[1:]}


def write(out: Path, names: Sequence[str], images: bool, seed: int) -> dict[str, int]:
    """Write the tables and pictures. Returns the number of rows of each table."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists. Name a new folder, or remove this one.")
    made = list(tuples(names))
    rows = [row_of(number, one) for number, one in enumerate(made)]
    with whole_folder(out, manifest=False) as folder:
        if images:
            (folder / "images").mkdir()
            rows = [row | render_all(row, one, folder, (seed, n)) for n, (row, one) in enumerate(zip(rows, made))]
        tables = {"tuples.jsonl": rows, "requests.jsonl": [request_of(one) for one in made]}
        for name, content in tables.items():
            (folder / name).write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return {name: len(content) for name, content in tables.items()}


def named(text: str) -> tuple[str, ...]:
    """Split a list of laws at commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument("--laws", default=",".join(LAWS), help="separated by commas; default all")
    parser.add_argument("--images", action="store_true", help="render the pictures too")
    parser.add_argument("--seed", type=int, default=0, help="of the pictures")
    args = parser.parse_args(arguments)
    try:
        if args.seed < 0:
            raise UsageError("--seed must not be negative.")
        for name, count in write(args.out, named(args.laws), args.images, args.seed).items():
            print(f"{args.out / name}: {count:,} rows")
    except PrefkitError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
