"""Measure the embedded judge on held-out pictures, through prefkit's scorers `mllm` and `vqascore` and `compare`.

    python pipelines/tiny/judge_gate.py prefkit/tiny/judge --seeds 1 2

Yes or no: half of the questions are true. On generated pictures (20 steps, guidance 3), the truth is what the program
prefkit/tiny/truth.py recognizes. Ratings: Spearman's correlation of `mllm`'s value with the label, per kind of damage and over
all trained kinds. Comparisons: two pictures of one scene whose labels (severities) differ by more than .15; right if each of
both orders is right. `flips`: pairs whose two orders contradict each other. Noise, swap and JPEG are kinds that were never trained.
Exits with 1 if a required value is missed. Takes about 2 minutes on one thread for two seeds.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from itertools import count
from typing import Any

import numpy as np
from judge_pictures import TRAINED, UNSEEN, Pictures, damaged, generated, latent_noise, rendered, scene_at
from judge_questions import YES_NO, about
from machine import Machine
from PIL import Image
from scenes import indices
from scipy.stats import spearmanr

from prefkit.score.scorers.mllm import Mllm, MllmOptions
from prefkit.score.scorers.vqascore import Vqascore, VqascoreOptions
from prefkit.tiny import PIPELINE
from prefkit.tiny.captions import caption, training_caption
from prefkit.tiny.domain import Scene
from prefkit.tiny.truth import read_many
from prefkit.types import Candidate

RENDERS, GENERATED, RATED, COMPARED = 300, 128, 150, 60  # pictures, pictures, pictures per kind, scenes per kind
GAP = 0.15
REQUIRED = {"item": 0.97, "colour": 0.97, "background": 0.97, "vqascore": 0.95}
RATING, RATING_UNSEEN, RIGHT, FLIPS = 0.85, 0.80, 0.95, 0.10
_numbers = count()


def candidate(image: np.ndarray, prompt: str, **extra: str) -> Candidate:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    number = next(_numbers)
    return Candidate(str(number), "gate", number, 0, prompt, file.getvalue(), extra=extra)


class Judge:
    """The model behind prefkit's scorers."""

    def __init__(self, folder: str) -> None:
        self.asking = Vqascore(VqascoreOptions(model=folder, template="{question}"))
        self.rating = Mllm(MllmOptions(model=folder))
        for scorer in (self.asking, self.rating):
            scorer.load("cpu", "float32")

    def accuracy(self, pictures: Pictures, kind: str, rng: np.random.Generator) -> float:
        """Fraction of questions of a kind answered right, half of them to be answered with yes."""
        true = rng.permutation(np.arange(len(pictures)) % 2 == 0)
        asked = [about(kind, scene_at(pictures, i), bool(t), rng).text for i, t in enumerate(true)]
        batch = [candidate(image, "", question=text) for image, text in zip(pictures.images, asked)]
        scores = [score for part in _parts(batch) for score in self.asking.score(part)]
        said = [s.value is not None and 2 * s.value + (s.aspects or {})["leftover"] > 1 for s in scores]
        return float(np.mean(np.array(said) == true))

    def ratings(self, pictures: Pictures, rng: np.random.Generator) -> list[float | None]:
        """Return the expected rating of each picture."""
        texts = [training_caption(scene_at(pictures, i), rng) for i in range(len(pictures))]
        batch = [candidate(image, text) for image, text in zip(pictures.images, texts)]
        return [score.value for part in _parts(batch) for score in self.rating.score(part)]

    def compared(self, one: Pictures, two: Pictures) -> np.ndarray:
        """For each pair whose severities differ by more than GAP: [right, decided in both orders, flipped], bool [N, 3]."""
        chosen = np.flatnonzero(abs(one.severity - two.severity) > GAP)
        texts = [caption(scene_at(one, i)) for i in chosen]
        pairs = [(candidate(one.images[i], t), candidate(two.images[i], t)) for i, t in zip(chosen, texts)]
        results = []
        for part, numbers in zip(_parts(pairs), _parts(chosen)):
            verdicts = self.rating.compare(part)
            for i, row, ab, ba in zip(numbers, verdicts.rows, verdicts.shown[::2], verdicts.shown[1::2]):
                better = "a" if one.severity[i] < two.severity[i] else "b"
                both = {ab.outcome, ba.outcome} <= {"a", "b"}
                results.append((row.outcome == better, both, both and ab.outcome != ba.outcome))
        return np.array(results)


def _parts(items: Any) -> list[Any]:
    return [items[start : start + 64] for start in range(0, len(items), 64)]


def recognized(pictures: Pictures) -> Pictures:
    """Return the pictures in which the program recognizes an item, with the recognized scenes."""
    seen = read_many([Image.fromarray(image) for image in pictures.images])
    known = [i for i, s in enumerate(seen) if s.item]
    rows = [indices(Scene(s.item, s.colour, s.background, s.pattern)) for s in seen if s.item and s.colour]
    return Pictures(pictures.images[known], np.array(rows), pictures.severity[known], pictures.kind[known])


def of_kind(kind: str, clean: Pictures, seed: int, machine: Machine) -> Pictures:
    """Return pictures of the clean ones' scenes, with damage of a kind."""
    if kind == "few":
        return generated(_scenes(clean), kind, str(PIPELINE), seed, machine)
    return latent_noise(clean, str(PIPELINE), seed, machine) if kind == "latent" else damaged(clean, kind, seed)


def measure(judge: Judge, seed: int, machine: Machine) -> dict[str, dict[str, float]]:
    """Return rows of the three tables."""
    rng = np.random.default_rng([seed, 7])
    renders = rendered(RENDERS, 1000 + seed)
    drawn = _scenes(_first(renders, GENERATED))
    sampled = recognized(generated(drawn, "good", str(PIPELINE), 1000 + seed, machine))
    rows = {
        f"{name} ({len(pictures)})": {kind: judge.accuracy(pictures, kind, rng) for kind in YES_NO}
        for name, pictures in (("renders", renders), ("generated", sampled))
    }
    kinds = (*TRAINED, *UNSEEN)
    two = {
        kind: [of_kind(kind, _first(renders, RATED), 10 * seed + part, machine) for part in (1001, 1002)]
        for kind in kinds
    }
    rated = {kind: (judge.ratings(one, rng), 5 - 4 * one.severity) for kind, (one, _) in two.items()}
    rated["trained"] = tuple(np.concatenate([rated[kind][part] for kind in TRAINED]) for part in (0, 1))
    rows["rating"] = {kind: float(spearmanr(*both).statistic) for kind, both in rated.items()}
    compared = {
        kind: judge.compared(_first(one, COMPARED), _first(other, COMPARED)) for kind, (one, other) in two.items()
    }
    compared["trained"] = np.concatenate([compared[kind] for kind in TRAINED])
    rows["compare"] = {kind: float(hits[:, 0].mean()) for kind, hits in compared.items()}
    rows["flips"] = {kind: float(hits[:, 2].sum() / max(hits[:, 1].sum(), 1)) for kind, hits in compared.items()}
    return rows


def _scenes(pictures: Pictures) -> list[Scene]:
    return [scene_at(pictures, i) for i in range(len(pictures))]


def _first(pictures: Pictures, n: int) -> Pictures:
    return Pictures(*(values[:n] for values in vars(pictures).values()))


def missed(rows: dict[str, dict[str, float]]) -> list[str]:
    """Return what falls short of the required values."""
    wrong = []
    for name, values in rows.items():
        for kind, value in values.items():
            if name == "rating":
                short = kind != "jpeg" and not value >= (RATING_UNSEEN if kind in UNSEEN else RATING)
            elif name in ("compare", "flips"):
                short = kind == "trained" and (value < RIGHT if name == "compare" else value > FLIPS)
            else:
                short = not value >= REQUIRED.get(kind, 0)
            wrong += [f"{name}, {kind}: {value:.3f}"] if short else []
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    machine, began, wrong = Machine(1), time.monotonic(), []
    judge = Judge(args.model)
    for seed in args.seeds:
        rows = measure(judge, seed, machine)
        for name, values in rows.items():
            print(
                f"seed {seed}  {name:16}" + "  ".join(f"{kind} {value:.3f}" for kind, value in values.items()),
                flush=True,
            )
        wrong += [f"seed {seed}, {text}" for text in missed(rows)]
    print(f"{time.monotonic() - began:.0f} s")
    if wrong:
        sys.exit("required values missed: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
