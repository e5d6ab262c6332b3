"""Write prompt tuples of the small world, and their pictures.

    python pipelines/science/tuples.py OUT [--laws rust,melting] [--images] [--seed 0]

OUT/tuples.jsonl has a row per implicit prompt and wrong picture: id, law, subject, implicit, explicit, superficial, split and
held_out, and for evaluation the condition, the setting, the right look, the wrong look, and `usual`: true if the right look is
the usual one. With --images, the columns explicit_image and superficial_image name rendered pictures in OUT/images.
OUT/requests.jsonl has a row per implicit prompt, which is the column `prompt`.

Rows with `split: train` have seen subjects, pairs and wordings. Test rows are held out in one way each, to be reported apart:
`subject` (30 % of the subjects of each kind; another subject has the same trait), `pair` (a seen subject under a seen
condition, in a combination that training lacks), `wording` (known words, recombined) and `word` (phrases with words that occur
in no training prompt; eight a condition).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from laws import LAWS, Law, chance
from words import TAILS, described, heads, joined

from prefkit.errors import PrefkitError, UsageError
from prefkit.store.folders import whole_folder

TRAIN, TEST = "train", "test"
HELD_OUT = ("subject", "pair", "wording", "word")
SUBJECTS, PAIRS = 0.3, 0.2  # held-out fractions
PROMPTS = 6  # per subject and condition, of the eight training phrases; neutral conditions have one
MORE = 2  # per subject and condition, of the eight phrases of `wording`, and of the eight of `word`


@dataclass(frozen=True)
class Tuple:
    """One implicit prompt with one of its wrong pictures."""

    law: str
    subject: str
    condition: str
    setting: str
    look: str
    wrong: str
    implicit: str
    explicit: str
    superficial: str
    held_out: str | None
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
    for kind, subjects in law.kinds.items():
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


def _of_pair(law: Law, subject: str, condition: str) -> Iterator[Tuple]:
    """Yield the tuples of a subject under a condition. A lamp of the subject's own colour has twice as many as another."""
    known = phrases(law.name, condition)
    count = 1 if condition in law.neutral else PROMPTS
    if law.name == "absorption" and law.right(subject, condition) == "dark":
        count = PROMPTS // 2
    if subject in held_out_subjects(law.name):
        parts = [("subject", known[TRAIN], count)]
    elif (subject, condition) in held_out_pairs(law.name):
        parts = [("pair", known[TRAIN], count)]
    else:
        more = MORE if count > 1 else 1
        parts = [("", known[TRAIN], count), ("wording", known["wording"], more), ("word", known["word"], more)]
    for held_out, choices, number in parts:
        chosen = sorted(choices, key=lambda text: chance("phrase", law.name, subject, held_out, text))[:number]
        for phrase in chosen:
            for wrong in law.wrong(subject, condition):
                yield _tuple(law, subject, condition, phrase, wrong, held_out or None)


def _tuple(law: Law, subject: str, condition: str, phrase: str, wrong: str, held_out: str | None) -> Tuple:
    right, setting = law.right(subject, condition), law.settings.get(condition, "")
    form = int(chance("form", law.name, subject, phrase) < 0.5)
    explicit, superficial = (described(law.name, subject, look, setting, form) for look in (right, wrong))
    usual = right == law.usual[law.kind_of[subject]]
    return Tuple(law.name, subject, condition, setting, right, wrong, joined(subject, phrase), explicit, superficial, held_out, usual)


def rows(names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of tuples.jsonl, without pictures."""
    made = []
    for number, one in enumerate(tuples(names)):
        row = {"id": f"{one.law}-{number:05d}", "split": TEST if one.held_out else TRAIN} | asdict(one)
        made.append(row)
    return made


def requests(made: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a request per implicit prompt: the first row of each, with the column `prompt`."""
    first: dict[str, dict[str, Any]] = {}
    for row in made:
        first.setdefault(row["implicit"], {"prompt": row["implicit"], **row})
    return list(first.values())


def render_all(made: Sequence[dict[str, Any]], folder: Path, seed: int) -> None:
    """Render a right and a wrong picture of each row, and add their columns explicit_image and superficial_image."""
    from looks import Scene, render

    (folder / "images").mkdir()
    for number, row in enumerate(made):
        for offset, (column, look) in enumerate((("explicit_image", "look"), ("superficial_image", "wrong"))):
            path = f"images/{row['id']}-{column.split('_')[0]}.png"
            scene = Scene(row["law"], row["subject"], row[look], row["setting"])
            render(scene, seed * 1_000_003 + 2 * number + offset).save(folder / path)
            row[column] = path


def write(out: Path, names: Sequence[str], images: bool, seed: int) -> dict[str, int]:
    """Write the tables and pictures. Returns the number of rows of each table."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists. Name a new folder, or remove this one.")
    made = rows(names)
    with whole_folder(out, manifest=False) as folder:
        if images:
            render_all(made, folder, seed)
        tables = {"tuples.jsonl": made, "requests.jsonl": requests(made)}
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
