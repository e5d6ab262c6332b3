"""Measure how far words alone go: a linear bag of words that guesses the look, and the picture, from the implicit prompt.

    python pipelines/science/blind.py [--laws rust,melting]

Two logistic regressions (L2, one per law) on the words of the training prompts:
look      features: the prompt's words. Classes: the law's looks. It is right if the right look has the largest probability
picture   the same probabilities, compared between the right and the wrong look of a tuple: chance is .5
Test rows are reported by what is held out, and separately where the right look is not the usual one (`contradicts`). Where a law
has exceptions, neither should come near 1 on `subject`: a bag of words does not know which unseen subjects are exceptions. Then
follows the balance: how often each look is the right one, of all pictures that show it.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence

import numpy as np
from laws import LAWS
from tuples import HELD_OUT, TRAIN, Tuple, named
from tuples import tuples as all_tuples

from prefkit.errors import PrefkitError

L2, STEPS, RATE = 1e-3, 300, 2.0


class WordBag:
    """Softmax regression on the presence of words; a word that training lacks is ignored."""

    def __init__(self, texts: Sequence[str], classes: Sequence[str]) -> None:
        self.words = {word: i for i, word in enumerate(sorted({w for text in texts for w in text.lower().split()}))}
        self.classes = list(dict.fromkeys(classes))
        x, y = self.features(texts), np.eye(len(self.classes))[[self.classes.index(c) for c in classes]]
        self.weights = np.zeros((x.shape[1], y.shape[1]))
        speed = np.zeros_like(self.weights)
        for _ in range(STEPS):
            slope = x.T @ (_softmax(x @ self.weights) - y) / len(x) + L2 * self.weights
            speed = 0.9 * speed - RATE / 10 * slope
            self.weights += speed

    def features(self, texts: Sequence[str]) -> np.ndarray:
        """Return the presence of each word, and a constant: float [N, W + 1]."""
        x = np.zeros((len(texts), len(self.words) + 1))
        x[:, -1] = 1
        for row, text in zip(x, texts):
            row[[self.words[w] for w in text.lower().split() if w in self.words]] = 1
        return x

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        return _softmax(self.features(texts) @ self.weights)


def _softmax(values: np.ndarray) -> np.ndarray:
    grown = np.exp(values - values.max(1, keepdims=True))
    return grown / grown.sum(1, keepdims=True)


def guesses(law: str) -> list[tuple[Tuple, float, float]]:
    """Return (tuple, look, picture) for the held-out tuples of a law: 1 for a right guess, 0.5 for a tie, else 0."""
    made = list(all_tuples([law]))
    train = [one for one in made if one.split == TRAIN]
    bag = WordBag([one.implicit for one in train], [one.look for one in train])
    test = [one for one in made if one.split != TRAIN]
    found = []
    for one, row in zip(test, bag.probabilities([one.implicit for one in test])):
        chance = dict(zip(bag.classes, row))
        right, wrong = chance.get(one.look, 0.0), [chance.get(look, 0.0) for look in one.wrong]
        found.append((one, float(right == row.max()), float(np.mean(0.5 + 0.5 * np.sign(right - np.array(wrong))))))
    return found


def balance(law: str) -> dict[str, float]:
    """Return look -> how often it is the right one, of the pictures that show it."""
    right, wrong = Counter[str](), Counter[str]()
    for one in all_tuples([law]):
        right[one.look] += len(one.wrong)
        wrong.update(one.wrong)
    return {look: right[look] / (right[look] + wrong[look]) for look in LAWS[law].looks}


def row(law: str) -> str:
    """Return a row of the table: look / picture per held-out kind, the picture where the law contradicts, and the balance."""
    found, cells = guesses(law), []
    for kind in HELD_OUT:
        part = [(look, picture) for one, look, picture in found if one.split == kind]
        cells.append(" / ".join(f"{value:.2f}" for value in np.mean(part, 0)) if part else "-")
    part = [picture for one, _, picture in found if one.split == "subject" and not one.usual]
    cells.append(f"{np.mean(part):.2f}" if part else "-")
    subjects = LAWS[law].kind_of
    share = sum(kind in LAWS[law].exceptions for kind in subjects.values()) / len(subjects)
    cells.append(f"{share:.2f}" if share else "-")
    cells.append(", ".join(f"{look} {value:.2f}" for look, value in balance(law).items()))
    return f"| {law} | {' | '.join(cells)} |"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--laws", default=",".join(LAWS))
    args = parser.parse_args(arguments)
    try:
        list(all_tuples(named(args.laws)))
        print(
            f"| law | {' | '.join(HELD_OUT)} | subject, contradicts | exceptions | right of all pictures |\n|{'---|' * 8}"
        )
        for law in named(args.laws):
            print(row(law), flush=True)
    except PrefkitError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
