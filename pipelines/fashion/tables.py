"""Tables of outfits, users and histories that prefkit reads; `convert.py` and `world.py` both write them.

requests.jsonl     personalised fill-in-the-blank (PFITB): one row per outfit, whose item at `position` is blank
gor.jsonl          generative outfit recommendation (GOR): four rows per outfit, all blank, with the same `outfit_id`
history.csv        user, image, category, item: for the scorer `personalization`
items.csv          item, image, category: for `prefkit fit vbpr`
interactions.csv   user, item, time: for `prefkit fit vbpr`; time is the row's position in the user's history
outfits.csv        outfit, image, category, item: training outfits, for `prefkit fit outfit_compat`

Columns of a request: request_id, outfit_id, prompt, split, user, category (of the blank), position, outfit (images of the
other items; empty for GOR), items (ids, null where blank), truth and truth_image (the blank item), history (images of the
latest MOST items that the user has of this category, or of any category if there are none; without the truth). Set
`requests.split_column: split`, because a prompt alone does not identify a request.

Two users may have the same outfit; outfits.csv has it once. An item that only held-out outfits have is not in outfits.csv, where it could only be a negative.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MOST = 10  # items of a request's history, as in DiFashion
TRAIN = "train"


@dataclass(frozen=True)
class Item:
    image: str
    category: str


@dataclass(frozen=True)
class Outfit:
    """An outfit of a user. blank: position of the item that PFITB asks for; prompt: its prompt.

    prompts: those of all items without an outfit, for GOR. extra: more columns of the PFITB row; shared: of all rows.
    """

    name: str
    user: str
    split: str
    items: tuple[str, ...]
    categories: tuple[str, ...]
    blank: int
    prompt: str
    prompts: tuple[str, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)
    shared: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Wardrobe:
    """Content of the tables. history: split -> user -> items, oldest first. pool: more outfits for outfits.csv.

    negatives: items that no outfit has and that `fit outfit_compat` may compare an outfit's items with. chosen: users
    chose their training outfits, so that these count as interactions.
    """

    items: dict[str, Item]
    outfits: list[Outfit]
    history: dict[str, dict[str, list[str]]]
    pool: dict[str, tuple[str, ...]] = field(default_factory=dict)
    negatives: Sequence[str] = ()
    chosen: bool = True

    def liked(self, splits: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Yield (user, item) of the histories of these splits, each once, in the order of the splits."""
        yield from dict.fromkeys(
            (user, item) for split in splits for user, items in self.history.get(split, {}).items() for item in items
        )

    def interactions(self) -> Iterator[tuple[str, str]]:
        """Yield (user, item) of the training history, then of the training outfits if they were chosen, each once."""
        outfits = [outfit for outfit in self.outfits if outfit.split == TRAIN and self.chosen]
        worn = ((outfit.user, item) for outfit in outfits for item in outfit.items)
        yield from dict.fromkeys([*self.liked([TRAIN]), *worn])

    def worn(self) -> Iterator[tuple[str, str]]:
        """Yield (outfit, item) of the different training outfits, and of the negatives as outfits of one item."""
        train = {outfit.name: outfit.items for outfit in self.outfits if outfit.split == TRAIN}
        different = {frozenset(items): name for name, items in reversed((train | self.pool).items())}
        for items, name in reversed(different.items()):
            yield from ((name, item) for item in sorted(items))
        yield from ((f"only {item}", item) for item in self.negatives)


def write(wardrobe: Wardrobe, folder: Path) -> dict[str, int]:
    """Write all tables into `folder`. Returns the number of rows of each."""
    items = wardrobe.items
    interactions = list(wardrobe.interactions())
    seen: dict[str, int] = {}
    times = [seen.setdefault(user, 0) for user, _ in interactions]
    for row, (user, _) in enumerate(interactions):
        times[row] = seen[user]
        seen[user] += 1
    known = dict.fromkeys(item for _, item in interactions)
    return {
        "requests.jsonl": _lines(folder / "requests.jsonl", (pfitb(o, wardrobe) for o in wardrobe.outfits)),
        "gor.jsonl": _lines(
            folder / "gor.jsonl",
            (gor(o, wardrobe, place) for o in wardrobe.outfits for place in range(len(o.items))),
        ),
        "history.csv": _table(
            folder / "history.csv",
            ("user", "image", "category", "item"),
            ((user, items[i].image, items[i].category, i) for user, i in wardrobe.liked(wardrobe.history)),
        ),
        "items.csv": _table(
            folder / "items.csv", ("item", "image", "category"), ((i, items[i].image, items[i].category) for i in known)
        ),
        "interactions.csv": _table(
            folder / "interactions.csv",
            ("user", "item", "time"),
            ((*row, time) for row, time in zip(interactions, times, strict=True)),
        ),
        "outfits.csv": _table(
            folder / "outfits.csv",
            ("outfit", "image", "category", "item"),
            ((name, items[i].image, items[i].category, i) for name, i in wardrobe.worn()),
        ),
    }


def pfitb(outfit: Outfit, wardrobe: Wardrobe) -> dict[str, Any]:
    """Return the fill-in-the-blank request of an outfit."""
    others = [item for place, item in enumerate(outfit.items) if place != outfit.blank]
    shown = [None if place == outfit.blank else item for place, item in enumerate(outfit.items)]
    row = _request(outfit, wardrobe, outfit.blank, outfit.prompt)
    return {
        "request_id": outfit.name,
        **row,
        "outfit": [wardrobe.items[i].image for i in others],
        "items": shown,
        **outfit.extra,
    }


def gor(outfit: Outfit, wardrobe: Wardrobe, place: int) -> dict[str, Any]:
    """Return one of the requests of an outfit that is wholly blank."""
    row = _request(outfit, wardrobe, place, outfit.prompts[place])
    return {"request_id": f"{outfit.name}-{place}", **row, "outfit": [], "items": [None] * len(outfit.items)}


def _request(outfit: Outfit, wardrobe: Wardrobe, place: int, prompt: str) -> dict[str, Any]:
    items, truth, category = wardrobe.items, outfit.items[place], outfit.categories[place]
    liked = [item for item in wardrobe.history.get(outfit.split, {}).get(outfit.user, []) if item != truth]
    same = [item for item in liked if items[item].category == category]
    return {
        "outfit_id": outfit.name,
        "prompt": prompt,
        "split": outfit.split,
        "user": outfit.user,
        "category": category,
        "position": place,
        "truth": truth,
        "truth_image": items[truth].image,
        "history": [items[item].image for item in (same or liked)[-MOST:]],
        **outfit.shared,
    }


def _lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    count = 0
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def _table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> int:
    count = 0
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        for row in rows:
            table.writerow(row)
            count += 1
    return count
