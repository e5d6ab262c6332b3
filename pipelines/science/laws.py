"""The laws of the small world: subjects, what decides, and the look that follows from each condition.

A law has kinds of subjects. `truth[kind, condition]` is the look of a subject of this kind under this condition. In a law
with exceptions, about half of the subjects do not follow the law: an anchor rusts at sea, a crown does not. The deciding
property is never in an implicit prompt. It can be learned from the base captions, which name a subject's `trait` (`a crown of
gold`) and show its usual look.

This module imports only the standard library.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True)
class Law:
    """A law of the world.

    kinds: kind -> {subject: trait}. truth: (kind, condition) -> look. usual: kind -> the look that a bare name has in base
    captions. exceptions: kinds that do not follow the law. settings: condition -> what is visible of the condition itself (the
    lamp's colour, the liquid), in all pictures of a tuple. neutral: conditions under which all kinds look alike; they get
    fewer tuples. scorer_only: not drawn by the base generator.
    """

    name: str
    looks: tuple[str, ...]
    kinds: Mapping[str, Mapping[str, str]]
    truth: Mapping[tuple[str, str], str]
    usual: Mapping[str, str]
    exceptions: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    neutral: tuple[str, ...] = ()
    scorer_only: bool = False

    @cached_property
    def conditions(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(condition for _, condition in self.truth))

    @cached_property
    def kind_of(self) -> dict[str, str]:
        return {subject: kind for kind, subjects in self.kinds.items() for subject in subjects}

    @cached_property
    def trait_of(self) -> dict[str, str]:
        return {subject: trait for subjects in self.kinds.values() for subject, trait in subjects.items()}

    def right(self, subject: str, condition: str) -> str:
        return self.truth[self.kind_of[subject], condition]

    def wrong(self, subject: str, condition: str) -> tuple[str, ...]:
        """Return the looks of the wrong pictures: the tempting ones.

        With two looks, the other one; with three, both others. With more, the usual look where it is wrong, and else what the
        other kinds do. A law without exceptions (flame) has two wrong looks, and for half of the subjects the usual one is not
        among them: it would else be wrong in every tuple but its own.
        """
        kind, right = self.kind_of[subject], self.right(subject, condition)
        others = [look for look in self.looks if look != right]
        if len(self.looks) <= 3:
            return tuple(others)
        order = sorted(others, key=lambda look: chance(self.name, subject, condition, look))
        if not self.exceptions and chance("usual", self.name, subject, condition) < 0.5:
            return tuple(look for look in order if look != self.usual[kind])[:2]
        tempting = [self.usual[kind], *(self.truth[other, condition] for other in self.kinds)]
        return tuple(dict.fromkeys(look for look in (*tempting, *order) if look != right))[
            : 1 if self.exceptions else 2
        ]


def chance(*content: str) -> float:
    """Return a number in 0..1 that depends only on `content`."""
    return int.from_bytes(hashlib.sha256("|".join(("science 1", *content)).encode()).digest()[:8], "big") / 2**64


def traits(**groups: str) -> dict[str, str]:
    """Return subject -> trait. groups: trait with _ for a space -> subjects, separated by commas."""
    return {name.strip(): trait.replace("_", " ") for trait, names in groups.items() for name in names.split(",")}


def always(kind: str, look: str, conditions: tuple[str, ...]) -> dict[tuple[str, str], str]:
    return {(kind, condition): look for condition in conditions}


SEASONS = ("winter", "spring", "summer", "autumn")
FLAMES = {
    "plain": "orange",
    "copper": "green",
    "sodium": "yellow",
    "potassium": "violet",
    "lithium": "red",
    "caesium": "blue",
}
LIQUIDS = ("alcohol", "water", "mercury")
COLOURS = ("red", "green", "blue")
FLOATS_ON = {"very light": LIQUIDS, "light": LIQUIDS[1:], "heavy": LIQUIDS[2:], "very heavy": ()}

RIPENESS = Law(
    "ripeness",
    ("green", "coloured"),
    {
        "turns": traits(
            a_fruit="banana, strawberry, mango, apple, lemon, orange, peach, cherries", a_vegetable="tomato, chili"
        ),
        "stays green": traits(
            a_vegetable="cucumber, pea pod, broccoli, lettuce", a_fruit="avocado, kiwi, olive, melon"
        ),
    },
    {("turns", "early"): "green", ("turns", "ready"): "coloured"} | always("stays green", "green", ("early", "ready")),
    {"turns": "coloured", "stays green": "green"},
    ("stays green",),
    neutral=("early",),
)
SEASON = Law(
    "season",
    ("green", "bare", "blossom", "orange"),
    {
        "sheds": traits(with_broad_leaves="oak, maple, birch, cherry tree, poplar, beech, chestnut, willow"),
        "evergreen": traits(with_needles="spruce, pine, fir, cypress, cedar, yew", with_palm_leaves="palm tree"),
    },
    {("sheds", s): look for s, look in zip(SEASONS, ("bare", "blossom", "green", "orange"))}
    | always("evergreen", "green", SEASONS),
    {"sheds": "green", "evergreen": "green"},
    ("evergreen",),
    neutral=("summer",),
)
RUST = Law(
    "rust",
    ("clean", "rusty"),
    {
        "rusts": traits(of_iron="gear, wrench, hammer, bolt, chain, axe, saw, anchor, hook"),
        "lasts": traits(
            of_gold="crown, trophy, medal, coin", of_wood="guitar, chair, log", of_cloth="teddy bear, rosette"
        ),
    },
    {("rusts", "wet"): "rusty", ("rusts", "dry"): "clean"} | always("lasts", "clean", ("wet", "dry")),
    {"rusts": "clean", "lasts": "clean"},
    ("lasts",),
    neutral=("dry",),
)
MELTING = Law(
    "melting",
    ("solid", "puddle"),
    {
        "melts": traits(
            of_ice="snowman, ice cube, shaved ice",
            of_fat="butter, cheese, chocolate bar",
            of_sugar="lollipop, candy, ice cream",
        ),
        "lasts": traits(of_stone="rock, statue, brick", of_iron="gear, hammer, wrench", of_wood="guitar, log, chair"),
    },
    {("melts", "hot"): "puddle", ("melts", "cold"): "solid"} | always("lasts", "solid", ("hot", "cold")),
    {"melts": "solid", "lasts": "solid"},
    ("lasts",),
    neutral=("cold",),
)
LIGHT = Law(
    "light",
    ("green", "pale"),
    {
        "pales": traits(a_plant="potted plant, seedling, fern, clover, sunflower, tulip, rose, lettuce, daisy"),
        "lasts": traits(an_animal="frog, turtle, crocodile, snake, lizard", a_toy="dinosaur, dragon, textbook"),
    },
    {("pales", "dark"): "pale", ("pales", "bright"): "green"} | always("lasts", "green", ("dark", "bright")),
    {"pales": "green", "lasts": "green"},
    ("lasts",),
    neutral=("bright",),
)
WATERING = Law(
    "watering",
    ("upright", "withered"),
    {
        "withers": traits(a_plant="potted plant, seedling, fern, clover, sunflower, tulip, rose, daisy, hibiscus"),
        "lasts": traits(
            of_stone="statue, rock, brick",
            of_cloth="teddy bear, rosette",
            of_rubber="toy duck, basketball",
            storing_water="cactus",
        ),
    },
    {("withers", "drought"): "withered", ("withers", "watered"): "upright"}
    | always("lasts", "upright", ("drought", "watered")),
    {"withers": "upright", "lasts": "upright"},
    ("lasts",),
    neutral=("watered",),
)
CIRCUIT = Law(
    "circuit",
    ("lit", "dark"),
    {
        "mains": traits(
            with_a_plug="light bulb, television, traffic light, computer, floor lamp, christmas tree, radio, slot machine"
        ),
        "own power": traits(
            with_a_battery="laptop, phone, flashlight, robot", with_a_flame="candle, oil lamp, campfire, lantern"
        ),
    },
    {("mains", "off"): "dark", ("mains", "on"): "lit"} | always("own power", "lit", ("off", "on")),
    {"mains": "lit", "own power": "lit"},
    ("own power",),
    neutral=("on",),
)
FLAME = Law(
    "flame",
    tuple(FLAMES.values()),
    {"burns": traits(a_holder="burner, torch, spoon, bowl, stove, spirit lamp, match, stick")},
    {("burns", salt): colour for salt, colour in FLAMES.items()},
    {"burns": "orange"},
)
BUOYANCY = Law(
    "buoyancy",
    ("floats", "sinks"),
    {
        "very light": traits(full_of_air="toy duck, basketball", of_wood="log, guitar, chair"),
        "light": traits(of_wax="candle, crayon", of_fat="butter", of_ice="ice cube"),
        "heavy": traits(of_iron="anchor, hammer, gear", of_stone="rock, brick, statue"),
        "very heavy": traits(of_gold="crown, trophy, medal, coin"),
    },
    {(kind, liquid): "floats" if liquid in on else "sinks" for kind, on in FLOATS_ON.items() for liquid in LIQUIDS},
    {"very light": "floats", "light": "floats", "heavy": "sinks", "very heavy": "sinks"},
    settings={liquid: liquid for liquid in LIQUIDS},
)
ABSORPTION = Law(
    "absorption",
    ("bright", "dark"),
    {
        "red": traits(red="apple, tomato, strawberry, cherries, chili"),
        "green": traits(green="clover, broccoli, lettuce, frog, cactus"),
        "blue": traits(blue="blueberries, jeans, gem, notebook, whale"),
    },
    {(kind, lamp): "bright" if kind == lamp else "dark" for kind in COLOURS for lamp in COLOURS},
    {colour: "bright" for colour in COLOURS},
    settings={colour: colour for colour in COLOURS},
)
LAYERS = Law(
    "layers",
    ("above", "below", "mixed"),
    {
        "oily": traits(an_oil="olive oil, petrol, paraffin, sunflower oil, diesel"),
        "heavy": traits(a_heavy_liquid="mercury, tar, chloroform, bromine, molasses"),
        "watery": traits(a_watery_liquid="orange juice, milk, ink, red wine, tea"),
    },
    {("oily", "poured"): "above", ("heavy", "poured"): "below", ("watery", "poured"): "mixed"},
    {"oily": "above", "heavy": "below", "watery": "mixed"},
    scorer_only=True,
)
DIFFUSION = Law(
    "diffusion",
    ("drop", "spread", "bottom"),
    {
        "dissolves": traits(a_dye="red ink, blue ink, coffee, green dye, beet juice, violet dye, cola"),
        "grains": traits(of_grains="sand, gravel, glass beads, pebbles, gold dust, iron filings, coal dust"),
    },
    {
        ("dissolves", "at once"): "drop",
        ("dissolves", "later"): "spread",
        ("grains", "at once"): "drop",
        ("grains", "later"): "bottom",
    },
    {"dissolves": "drop", "grains": "drop"},
    neutral=("at once",),
    scorer_only=True,
)
_ALL = (RIPENESS, SEASON, RUST, MELTING, LIGHT, WATERING, CIRCUIT, FLAME, BUOYANCY, ABSORPTION, LAYERS, DIFFUSION)
LAWS: dict[str, Law] = {law.name: law for law in _ALL}
