"""Questions and answers about pictures of the wardrobe, in the words of prefkit's judge scorers and in shorter ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from negatives import CHOICES

from prefkit.score.judge.compare import TEMPLATE as PAIRWISE
from prefkit.score.judge.templates import RATING, fill
from prefkit.score.scorers.vqascore import VqascoreOptions
from prefkit.tiny.captions import Asked, phrase, training_caption
from prefkit.tiny.captions import asked as parsed
from prefkit.tiny.domain import Scene

LEVELS = ("1", "2", "3", "4", "5")
SHOWS, IS_COLOUR, IS_GROUND = "Does this show {}?", "Is the item {}?", "Is the background {}?"
RATE = "Rate this picture."
#: open question -> attribute that answers it
OPEN = {"What is the item?": "item", "What colour is the item?": "colour"}
OPEN |= {"What colour is the background?": "background", "What is the pattern of the background?": "pattern"}
VQA = VqascoreOptions().template
EQUAL = 0.05  # pictures whose severities differ by less are a tie


@dataclass(frozen=True)
class Question:
    """answer: the words to learn. levels: probabilities of the five ratings, for a rating, whose answer is the likeliest."""

    text: str
    answer: str
    levels: tuple[float, ...] | None = None


def rating(text: str, severity: float) -> Question:
    """Ask for the rating 5 - 4 x severity, as two neighbouring levels with this mean."""
    value = 4 - 4 * float(severity)
    low = min(int(value), 3)
    levels = tuple(max(0.0, 1 - abs(value - level)) for level in range(5))
    return Question(text, LEVELS[low if value - low < 0.5 else low + 1], levels)


def long_rating(caption: str, severity: float) -> Question:
    """Ask as `mllm` does by default."""
    values = {"prompt": caption, "aspect": "", "scale": ", ".join(LEVELS), "worst": "1", "best": "5"}
    return rating(fill(RATING, values), severity)


def yes(text: str, true: bool) -> Question:
    return Question(text, "yes" if true else "no")


def about(kind: str, scene: Scene, true: bool, rng: np.random.Generator) -> Question:
    """Ask a question of a kind in `YES_NO`, to be answered with yes if `true`, about a picture of the scene."""
    return yes(YES_NO[kind](scene, true, rng), true)


def other(name: str, scene: Scene, true: bool, rng: np.random.Generator) -> str:
    """Return the scene's value of an attribute if `true`, else another value."""
    value = getattr(scene, name)
    if true:
        return value
    values = [v for v in CHOICES[name] if v != value]
    return values[rng.integers(len(values))]


def _caption(scene: Scene, true: bool, rng: np.random.Generator) -> str:
    """Write the question of `vqascore` with a caption as the generator's training has them, or with one attribute wrong."""
    wanted = parsed(training_caption(scene, rng))
    if not true:
        named = [name for name in CHOICES if getattr(wanted, name) is not None]
        name = named[rng.integers(len(named))]
        wanted = replace(wanted, **{name: other(name, scene, False, rng)})
    return fill(VQA, {"prompt": phrase(wanted)})


#: kind -> text of a question that is true or false of the scene
YES_NO: dict[str, Callable[[Scene, bool, np.random.Generator], str]] = {
    "item": lambda s, t, rng: SHOWS.format(phrase(Asked(other("item", s, t, rng)))),
    "pair, item": lambda s, t, rng: SHOWS.format(phrase(Asked(other("item", s, t, rng), s.colour))),
    "pair, colour": lambda s, t, rng: SHOWS.format(phrase(Asked(s.item, other("colour", s, t, rng)))),
    "colour": lambda s, t, rng: IS_COLOUR.format(other("colour", s, t, rng)),
    "background": lambda s, t, rng: IS_GROUND.format(other("background", s, t, rng)),
    "pattern": lambda s, t, rng: IS_GROUND.format(other("pattern", s, t, rng)),
    "vqascore": _caption,
}
SHORT = tuple(kind for kind in YES_NO if kind != "vqascore")


def short(scene: Scene, severity: float, clear: bool, rng: np.random.Generator) -> Question:
    """Draw a short question: 15 % ratings, 30 % open, 55 % yes or no. If not `clear`, only the rating can be told."""
    draw = rng.random()
    if not clear or draw < 0.15:
        return rating(RATE, severity)
    if draw < 0.45:
        text = list(OPEN)[rng.integers(len(OPEN))]
        return Question(text, getattr(scene, OPEN[text]))
    return about(SHORT[rng.integers(len(SHORT))], scene, bool(rng.random() < 0.5), rng)


def long(scene: Scene, severity: float, clear: bool, rng: np.random.Generator) -> Question:
    """Draw a question of `vqascore` or, in a third of the cases, of `mllm`."""
    if not clear or rng.random() < 1 / 3:
        return long_rating(training_caption(scene, rng), severity)
    return about("vqascore", scene, bool(rng.random() < 0.5), rng)


def comparison(caption: str, first: float, second: float) -> Question:
    """Ask `compare`'s question about two pictures of these severities."""
    answer = "tie" if abs(first - second) < EQUAL else "A" if first < second else "B"
    return Question(fill(PAIRWISE, {"prompt": caption, "aspect": ""}), answer)


def texts() -> list[str]:
    """Return the text of all questions, without captions, for the vocabulary."""
    plain = [SHOWS, IS_COLOUR, IS_GROUND, RATE, *OPEN, RATING, PAIRWISE, VQA, "Image A: Image B:"]
    return [fill(text, {"prompt": "", "aspect": "", "scale": "1, 2, 3, 4, 5", "worst": 1, "best": 5}) for text in plain]
