"""Write a synthetic world of users, outfits and histories with exact rules, as the tables of `tables.py`.

    python pipelines/fashion/world.py OUT [--users 60] [--requests 4] [--outfits 2000] [--seed 0]
    python pipelines/fashion/world.py OUT --measure        # the exact shares of samplers.py

Each user has a palette of three of seven colours and two favourite parts of an outfit. A history has 10 to 40 items, 80 % of
them in the palette. An outfit has four items of different parts, in two or three colours of one of six FAMILIES. The rule
(rule.py): the missing item goes with the other three and is not neutral. The prompt names one of the three: `a handbag to go
with a red dress on a plain mint background`. A picture in the named colour obeys the rule.

**The rule cannot be won blind.** Any three items of an outfit have at least two colours, and the colours that go with them
are exactly the outfit's family. All families have equally many requests in each split (if that number is a multiple of six),
and no colour is in more than two families. Therefore one fixed colour obeys in at most 1/3 of the requests, and so does any
mixture of colours that does not depend on the outfit: seven colours at random obey in .310, all ten in .217. The family is
drawn independently of the user, so that a user's palette does not reveal it. samplers.py computes these shares.

Held out are a quarter of the users, and 30 % of the (item, colour) pairs, which only test outfits have, and which these
alone consist of. The embedded generator was trained without the captions of the test requests, but not without those of the
training requests (`captions.held_out_outfit`). Histories cover all users and pairs, as in DiFashion's data, with pictures of
their own. The columns `colours` (of the other items) and `palette` are for evaluation. Neutral items are in outfits.csv as
outfits of one item, so that `fit outfit_compat` compares with them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
from rule import COLOURED
from samplers import report
from tables import TRAIN, Item, Outfit, Wardrobe, write

from prefkit.errors import PrefkitError, UsageError
from prefkit.fit.wardrobe import name_of
from prefkit.store.folders import whole_folder
from prefkit.tiny.captions import Asked, held_out_outfit, phrase
from prefkit.tiny.domain import BACKGROUNDS, COLOURS, ITEMS, Scene
from prefkit.tiny.rules import NEUTRAL
from prefkit.types import digest

TEST = "test"
#: colours that go with each other; a colour is in at most two families, and two colours of one are in no other
FAMILIES = (
    ("red", "orange"),
    ("orange", "yellow", "blue"),
    ("blue", "purple"),
    ("purple", "green"),
    ("green", "pink"),
    ("pink", "red"),
)
PARTS = tuple(dict.fromkeys(ITEMS.values()))
DIFFERENCES = (0, 1, 3)  # modulo 7, each difference from 1 to 6 occurs once
EXTRAS = ("bag", "hat", "accessory")
WITH_DRESS = 0.25  # of outfits; the others have a top and a bottom
HELD_OUT = 0.3  # of (item, colour) pairs
TEST_USERS = 0.25
IN_PALETTE, IN_FAVOURITES = 0.8, 0.6  # of the items of a history
LIKED, WORN = (0, 1), (2, 3)  # copies of an item that are in histories, and in outfits

Piece = tuple[str, str]  # item, colour


@dataclass(frozen=True)
class User:
    name: str
    palette: tuple[str, ...]
    favourites: tuple[str, ...]
    split: str


@cache
def pool(split: str) -> dict[tuple[str, str], list[str]]:
    """Return (part, colour) -> items in this colour that outfits of the split may have; the two splits share no piece."""
    found: dict[tuple[str, str], list[str]] = {}
    for part, colour in product(PARTS, COLOURED):
        items = sorted((i for i in ITEMS if ITEMS[i] == part), key=lambda item: digest("piece", item, colour))
        if len(items) > 1:
            count = max(1, round(HELD_OUT * len(items)))
        else:  # the dress
            count = int(int(digest("piece", *items, colour, length=8), 16) / 16**8 < HELD_OUT)
        found[part, colour] = items[:count] if split == TEST else items[count:]
    return found


def draw_users(count: int, rng: np.random.Generator) -> list[User]:
    """Draw users. In seven successive users of a split, each colour is in three palettes, and each two in one."""
    test = max(1, round(TEST_USERS * count))
    users: list[User] = []
    for split, share in ((TRAIN, count - test), (TEST, test)):
        for number in range(share):
            if number % len(COLOURED) == 0:
                colours = [COLOURED[i] for i in rng.permutation(len(COLOURED))]
            palette = tuple(colours[(number + step) % len(COLOURED)] for step in DIFFERENCES)
            favourites = tuple(str(part) for part in rng.choice(PARTS, 2, replace=False))
            users.append(User(f"user{len(users):03d}", palette, favourites, split))
    return users


def draw_history(user: User, rng: np.random.Generator) -> list[str]:
    """Draw the ids of 10 to 40 different items that the user likes."""
    others = [colour for colour in COLOURS if colour not in user.palette]
    wanted, liked = int(rng.integers(10, 41)), {}
    while len(liked) < wanted:
        part = str(rng.choice(user.favourites if rng.random() < IN_FAVOURITES else PARTS))
        item = str(rng.choice([i for i in ITEMS if ITEMS[i] == part]))
        colour = str(rng.choice(user.palette if rng.random() < IN_PALETTE else others))
        liked[name_of(item, colour, int(rng.choice(LIKED)))] = None
    return list(liked)


def draw_pieces(split: str, family: Sequence[str], rng: np.random.Generator) -> tuple[Piece, ...]:
    """Draw four pieces of different parts in the family's colours, each colour at most twice."""
    while True:
        if rng.random() < WITH_DRESS:
            parts = ["dress", "shoes", "bag", str(rng.choice(["hat", "accessory"]))]
        else:
            parts = ["top", "bottom", "shoes", str(rng.choice(EXTRAS))]
        colours = [str(colour) for colour in rng.permutation([*family, *family])[:4]]
        choices = [pool(split)[part, colour] for part, colour in zip(parts, colours)]
        if all(choices):
            return tuple((str(rng.choice(items)), colour) for items, colour in zip(choices, colours))


def draw_blank(
    pieces: Sequence[Piece], palette: Sequence[str], split: str, rng: np.random.Generator
) -> tuple[int, int] | None:
    """Draw (position of the blank, position of the item that the prompt names); None if no prompt is of this split.

    A blank in a colour of the user's palette is preferred.
    """
    possible = [
        (blank, named)
        for blank, named in product(range(len(pieces)), repeat=2)
        if blank != named and held_out_outfit(pieces[blank][0], *pieces[named]) == (split == TEST)
    ]
    liked = [pair for pair in possible if pieces[pair[0]][1] in palette]
    chosen = liked or possible
    return chosen[rng.integers(len(chosen))] if chosen else None


def draw_outfit(user: User, number: int, family: Sequence[str], rng: np.random.Generator) -> Outfit:
    while True:
        pieces = draw_pieces(user.split, family, rng)
        places = draw_blank(pieces, user.palette, user.split, rng)
        if places is not None:
            break
    blank, named = places
    background = str(rng.choice(list(BACKGROUNDS)))
    return Outfit(
        f"{user.name}-{number}",
        user.name,
        user.split,
        worn(pieces, rng),
        tuple(ITEMS[item] for item, _ in pieces),
        blank,
        phrase(Asked(pieces[blank][0], None, background, "plain", pieces[named])),
        tuple(phrase(Asked(item, None, background, "plain")) for item, _ in pieces),
        {"colours": [colour for place, (_, colour) in enumerate(pieces) if place != blank]},
        {"palette": list(user.palette)},
    )


def worn(pieces: Iterable[Piece], rng: np.random.Generator) -> tuple[str, ...]:
    return tuple(name_of(*piece, int(rng.choice(WORN))) for piece in pieces)


def make(users: int, requests: int, outfits: int, seed: int) -> tuple[Wardrobe, list[User]]:
    """Draw a world without its pictures. requests: per user; outfits: further ones, for `fit outfit_compat`."""
    if users < 2 or requests < 1 or outfits < 0 or seed < 0:
        raise UsageError("--users must be at least 2, --requests at least 1, --outfits and --seed not negative.")
    rng = np.random.default_rng(seed)
    people = draw_users(users, rng)
    items = {name_of(*piece): Item(f"images/{name_of(*piece)}.png", ITEMS[piece[0]]) for piece in catalogue()}
    history = {user.name: draw_history(user, rng) for user in people}
    drawn = []
    for split in (TRAIN, TEST):
        rows = [(user, number) for user in people if user.split == split for number in range(requests)]
        families = np.arange(len(rows)) % len(FAMILIES)
        for (user, number), family in zip(rows, rng.permutation(families)):
            drawn.append(draw_outfit(user, number, FAMILIES[family], rng))
    more = {
        f"outfit{number:05d}": worn(draw_pieces(TRAIN, FAMILIES[number % len(FAMILIES)], rng), rng)
        for number in range(outfits)
    }
    neutral = [name_of(*piece) for piece in catalogue() if piece[1] in NEUTRAL and piece[2] in WORN]
    return Wardrobe(items, drawn, {TRAIN: history, TEST: history}, more, neutral, chosen=False), people


@cache
def catalogue() -> tuple[tuple[str, str, int], ...]:
    return tuple(product(ITEMS, COLOURS, (*LIKED, *WORN)))


def render_all(names: Iterable[str], folder: Path, seed: int) -> None:
    """Render the items of these ids; the four copies of an item are on different plain backgrounds."""
    from prefkit.tiny.scene import render

    folder.mkdir()
    wanted, grounds = set(names), list(BACKGROUNDS)
    for number, (item, colour, copy) in enumerate(catalogue()):
        name = name_of(item, colour, copy)
        if name in wanted:
            background = grounds[(number // 4 + 2 * copy + number // 40) % len(grounds)]
            render(Scene(item, colour, background), seed * 1000 + number).save(folder / f"{name}.png")


def write_world(out: Path, users: int = 60, requests: int = 4, outfits: int = 2000, seed: int = 0) -> dict[str, int]:
    """Write the tables and the pictures that they name. Returns the number of rows of each table."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists. Name a new folder, or remove this one.")
    wardrobe, people = make(users, requests, outfits, seed)
    used = {item for _, item in [*wardrobe.liked(wardrobe.history), *wardrobe.worn()]}
    used |= {item for outfit in wardrobe.outfits for item in outfit.items}
    with whole_folder(out, manifest=False) as folder:
        render_all(used, folder / "images", seed)
        counts = write(wardrobe, folder)
        truth = {user.name: {"palette": user.palette, "favourites": user.favourites} for user in people}
        (folder / "users.json").write_text(json.dumps(truth, indent=1), encoding="utf-8")
    return counts


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write, or to measure")
    parser.add_argument("--users", type=int, default=60)
    parser.add_argument("--requests", type=int, default=4, help="per user")
    parser.add_argument("--outfits", type=int, default=2000, help="further outfits, for `prefkit fit outfit_compat`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure", action="store_true", help="print the share that each kind of sampler reaches")
    args = parser.parse_args(arguments)
    try:
        if args.measure:
            print(report(args.out))
        else:
            counts = write_world(args.out, args.users, args.requests, args.outfits, args.seed)
            print("\n".join(f"{args.out / name}: {count:,} rows" for name, count in counts.items()))
    except PrefkitError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
