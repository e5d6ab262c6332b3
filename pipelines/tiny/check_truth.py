"""Measure the accuracy of the recognition program on new renders, for every kind of request.

    python pipelines/tiny/check_truth.py --n 1000 [--seed 1]

For each kind, n requests are rendered as requested (unspecified attributes are random), and again with one specified
attribute changed. `met` is the fraction of the renders as requested that score 1, `caught` the fraction of the changed
renders in which exactly the changed aspect is 0. The accuracy per attribute is measured on the renders as requested,
including unspecified attributes.
"""

from __future__ import annotations

import argparse

import numpy as np

from prefkit.score.scorers.attributes import met
from prefkit.tiny.captions import Asked
from prefkit.tiny.domain import BACKGROUNDS, COLOURS, ITEMS, PATTERNS, Scene
from prefkit.tiny.scene import render
from prefkit.tiny.truth import read_many

CHOICES = {"item": list(ITEMS), "colour": list(COLOURS), "background": list(BACKGROUNDS), "pattern": list(PATTERNS)}
NAMED = {
    "full": ("item", "colour", "background", "pattern"),
    "colour open": ("item", "background", "pattern"),
    "background open": ("item", "colour"),
    "outfit": ("item", "background", "pattern"),
}


def measure(kind: str, n: int, seed: int) -> dict[str, float]:
    """Return the accuracies per attribute, `met` and `caught` (see above) for one kind, measured on n requests."""
    rng = np.random.default_rng([seed, *kind.encode()])
    shown = [{name: str(rng.choice(names)) for name, names in CHOICES.items()} for _ in range(n)]
    changed = [str(rng.choice(NAMED[kind])) for _ in shown]
    broken = [s | {c: str(rng.choice([v for v in CHOICES[c] if v != s[c]]))} for s, c in zip(shown, changed)]
    beside = ("dress", "red") if kind == "outfit" else None
    wanted = [Asked(**{a: s[a] for a in NAMED[kind]}, beside=beside) for s in shown]
    right = read_many([render(Scene(**s), int(rng.integers(2**31))) for s in shown])
    wrong = read_many([render(Scene(**s), int(rng.integers(2**31))) for s in broken])
    shares = {a: float(np.mean([getattr(seen, a) == s[a] for seen, s in zip(right, shown)])) for a in CHOICES}
    shares["met"] = float(np.mean([all(met(w, seen).values()) for w, seen in zip(wanted, right)]))
    missed = [{a for a, value in met(w, seen).items() if not value} for w, seen in zip(wanted, wrong)]
    shares["caught"] = float(np.mean([m == {c} for m, c in zip(missed, changed)]))
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    for kind in NAMED:
        print(
            f"{kind:16}", "  ".join(f"{name} {share:.3f}" for name, share in measure(kind, args.n, args.seed).items())
        )


if __name__ == "__main__":
    main()
