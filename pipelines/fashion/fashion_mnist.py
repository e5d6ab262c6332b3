"""Fit `outfit_compat` and `vbpr` on a planted rule over real photographs, and compare with the best possible values.

    python pipelines/fashion/fashion_mnist.py FOLDER OUT [--encoder torchvision:mobilenet_v2 --pretrained FILE] [--seed 0]

FOLDER has the four files of Fashion-MNIST (*-ubyte.gz). On Debian, the package dataset-fashion-mnist has them in
/usr/share/datasets/fashion-mnist; their licence is MIT.

**Outfits**: one item of each of three parts, and a class of each part for each of three STYLES. An item has the outfit's style
with probability 1 - NOISE. **Users**: each likes three of the nine classes; a liked item is of these with probability TASTE.
Nobody can predict a random draw, so the best possible AUC and share of right answers are below 1; ceilings.py computes them.

The catalogue consists of training pictures. The metrics of `prefkit fit` are on held-out outfits and on the last item of
each user, whose pictures occur elsewhere in training. requests.jsonl has held-out outfits of test pictures, which the scorers
rate as they rate generated images. `candidates` and `offered` are four items each; the first is the outfit's missing item, or one
that the user likes. OUT gets the tables of tables.py, the fitted models and results.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ceilings import best_on, outfit_ceiling
from idx import CLASSES, read_split
from tables import TRAIN, Item, Outfit, Wardrobe, write

from prefkit.errors import PrefkitError, UsageError
from prefkit.fit.statistics import estimate
from prefkit.store.folders import whole_folder
from prefkit.types import Candidate

#: part -> its class of each style
STYLES = {"top": (0, 2, 4), "other": (1, 3, 8), "shoes": (5, 7, 9)}
LEVEL = {label: style for labels in STYLES.values() for style, label in enumerate(labels)}  # class -> style
USED = sorted(LEVEL)
NOISE = 0.1
TASTE, LIKES = 0.8, 3  # share of liked items that are of the user's classes; number of these classes
CHOICES = 4
BATCH = 32


@dataclass(frozen=True)
class Size:
    train: int = 80  # pictures of each class in the catalogue
    test: int = 40  # pictures of each class in the requests
    outfits: int = 4000
    users: int = 600
    history: int = 30  # items of a user
    requests: int = 600


def choose(labels: np.ndarray, count: int, split: str, rng: np.random.Generator) -> dict[str, int]:
    """Draw `count` pictures of each used class. Returns item id -> index of the picture."""
    chosen: dict[str, int] = {}
    for label in USED:
        rows = np.flatnonzero(labels == label)
        if len(rows) < count:
            raise UsageError(f"{split} has {len(rows):,} pictures of the class {CLASSES[label]}; {count:,} are needed.")
        drawn = rng.choice(rows, count, replace=False)
        chosen |= {f"{split}-{label}-{row:05d}": int(row) for row in drawn}
    return chosen


def label_of(item: str) -> int:
    return int(item.split("-")[1])


def part_of(item: str) -> str:
    return next(part for part, labels in STYLES.items() if label_of(item) in labels)


def by_label(items: dict[str, int]) -> dict[int, list[str]]:
    return {label: [item for item in items if label_of(item) == label] for label in USED}


def draw_outfit(items: dict[int, list[str]], rng: np.random.Generator) -> tuple[str, ...]:
    """Draw an item of each part."""
    count = len(STYLES["top"])
    style, drawn = int(rng.integers(count)), []
    for labels in STYLES.values():
        own = style if rng.random() >= NOISE else (style + int(rng.integers(1, count))) % count
        drawn.append(str(rng.choice(items[labels[own]])))
    return tuple(drawn)


def tastes(users: int, rng: np.random.Generator) -> dict[str, list[int]]:
    """Return the classes that each user likes. Every class is liked by almost equally many users."""
    found = {}
    for number in range(users):
        if number % len(USED) == 0:
            order = rng.permutation(USED)
        found[f"user{number:04d}"] = [int(order[(number + step) % len(USED)]) for step in range(LIKES)]
    return found


def draw_liked(liked: list[int], items: dict[int, list[str]], without: set[str], rng: np.random.Generator) -> str:
    """Draw an item that the user likes and that is not in `without`."""
    of_taste = rng.random() < TASTE
    pool = [item for label in USED if (label in liked) == of_taste for item in items[label] if item not in without]
    return str(rng.choice(pool))


def draw_history(liked: list[int], items: dict[int, list[str]], count: int, rng: np.random.Generator) -> list[str]:
    history: dict[str, None] = {}
    while len(history) < count:
        history[draw_liked(liked, items, set(history), rng)] = None
    return list(history)


def draw_request(
    number: int, user: str, liked: list[int], items: dict[int, list[str]], rng: np.random.Generator
) -> Outfit:
    """Draw a held-out outfit with its candidates, and items that are offered to its user."""
    outfit, blank = draw_outfit(items, rng), int(rng.integers(len(STYLES)))
    truth, first = outfit[blank], draw_liked(liked, items, set(), rng)
    everything = [item for label in USED for item in items[label]]
    same = [item for item in everything if part_of(item) == part_of(truth) and item != truth]
    others = [item for item in everything if item != first]
    extra = {
        "candidates": [truth, *rng.choice(same, CHOICES - 1, replace=False).tolist()],
        "offered": [first, *rng.choice(others, CHOICES - 1, replace=False).tolist()],
    }
    prompts = tuple(f"a photo of an item of the kind {part}" for part in STYLES)
    return Outfit(f"test-{number:04d}", user, "test", outfit, tuple(STYLES), blank, prompts[blank], prompts, extra)


def plant(pictures: dict[str, dict[str, int]], size: Size, rng: np.random.Generator) -> tuple[Wardrobe, dict[str, Any]]:
    """Draw outfits, histories and requests. pictures: of train and test. Returns also the tastes of the users."""
    liked = tastes(size.users, rng)
    train, test = by_label(pictures["train"]), by_label(pictures["test"])
    pool = {f"outfit{number:05d}": draw_outfit(train, rng) for number in range(size.outfits)}
    history = {user: draw_history(labels, train, size.history, rng) for user, labels in liked.items()}
    names = list(liked)
    requests = [draw_request(n, u := names[n % len(names)], liked[u], test, rng) for n in range(size.requests)]
    items = {item: Item(f"images/{item}.png", part_of(item)) for items in pictures.values() for item in items}
    unused = sorted(set(pictures["train"]) - {item for outfit in pool.values() for item in outfit})
    return Wardrobe(items, requests, {TRAIN: history, "test": history}, pool, unused, chosen=False), liked


def ceilings(wardrobe: Wardrobe, liked: dict[str, list[int]], size: Size) -> dict[str, dict[str, float]]:
    """Return the best possible values of both scorers, on the catalogue and on the requests."""
    others, styles = len(STYLES) - 1, len(STYLES["top"])
    known = {item for _, item in wardrobe.interactions()}
    per_user = []
    for user, labels in liked.items():
        unseen = known - set(wardrobe.history[TRAIN][user][:-1])
        of_taste = sum(label_of(item) in labels for item in unseen)
        per_user.append(best_on({0: 1 - TASTE, 1: TASTE}, {0: len(unseen) - of_taste, 1: of_taste}, CHOICES)["auc"])
    offered = {0: (len(USED) - LIKES) * size.test, 1: LIKES * size.test}
    return {
        "outfits": outfit_ceiling(styles, others, NOISE, [size.train] * styles, CHOICES),
        "outfits, new pictures": outfit_ceiling(styles, others, NOISE, [size.test] * styles, CHOICES),
        "users": {"auc": float(np.mean(per_user))},
        "users, new pictures": best_on({0: 1 - TASTE, 1: TASTE}, offered, CHOICES),
    }


def fit(name: str, folder: Path, *options: str) -> dict[str, Any]:
    """Run `prefkit fit`. Returns its measured values."""
    command = [sys.executable, "-m", "prefkit", "fit", name, *options, "--out", str(folder)]
    if subprocess.run(command).returncode:
        raise UsageError(f"`prefkit fit {name}` failed; its message is above.")
    return dict(json.loads((folder / "spec.json").read_text(encoding="utf-8"))["validation"])


def class_features(out: Path) -> Path:
    """Write the class of each item of items.csv as its features, for comparison. Noise of .01 avoids equal scores."""
    with open(out / "items.csv", newline="", encoding="utf-8") as file:
        items = [row["item"] for row in csv.DictReader(file)]
    known = np.array([np.equal(USED, label_of(item)) for item in items])
    noise = 0.01 * np.random.default_rng(0).normal(size=known.shape)
    np.save(out / "classes.npy", (known + noise).astype(np.float32))
    (out / "classes.txt").write_text("\n".join(items) + "\n", encoding="utf-8")
    return out / "classes.npy"


def opened(out: Path, name: str, **options: str) -> Any:
    """Return a loaded scorer with the fitted model."""
    from prefkit.score.core import make_scorer

    scorer = make_scorer(name, {"model": str(out / "fitted" / name), **options})
    scorer.load("cpu", "float32")
    return scorer


def rate(scorer: Any, out: Path, column: str) -> dict[str, Any]:
    """Rate four items per request. Returns auc and fitb, the first item against the three others."""
    rows = [json.loads(line) for line in (out / "requests.jsonl").read_text(encoding="utf-8").splitlines()]
    items = [(row, place, out / "images" / f"{item}.png") for row in rows for place, item in enumerate(row[column])]
    batch = [
        Candidate(f"{row['request_id']}-{place}", row["request_id"], place, 0, image=path.read_bytes(), extra=row)
        for row, place, path in items
    ]
    scores = [score for start in range(0, len(batch), BATCH) for score in scorer.score(batch[start : start + BATCH])]
    missing = [score.error for score in scores if score.value is None]
    if missing:
        raise UsageError(f"{len(missing)} of {len(scores)} scores are missing: {missing[0]}")
    values = np.array([score.value for score in scores]).reshape(len(rows), CHOICES)
    below = values[:, 1:] < values[:, :1]
    return {"auc": estimate(below.mean(1)), "fitb": estimate(below.all(1).astype(float))}


def embed(encoder: Any, out: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the unit embeddings [N, D] of the test pictures, and their classes [N]. Rated pictures are cached."""
    files = sorted((out / "images").glob("test-*.png"))
    batch = [Candidate(path.stem, path.stem, 0, 0, image=path.read_bytes()) for path in files]
    rows = [encoder.candidates(batch[start : start + BATCH]).numpy() for start in range(0, len(batch), BATCH)]
    return np.concatenate(rows).astype(float), np.array([label_of(path.stem) for path in files])


def read_shares(features: np.ndarray, labels: np.ndarray, folds: int = 5) -> dict[str, float]:
    """Return the share of pictures of each part whose class a linear classifier tells from the part's other classes.

    The classifier is a ridge regression on the classes, tested on the fold that it was not fitted on.
    """
    fold = np.random.default_rng(0).permutation(len(labels)) % folds
    right: dict[str, float] = {}
    for part, classes in STYLES.items():
        wanted, hits = np.isin(labels, classes), 0
        for number in range(folds):
            train, test = wanted & (fold != number), wanted & (fold == number)
            middle = features[train].mean(0)
            x, y = features[train] - middle, (labels[train, None] == classes) - 1 / len(classes)
            products = x @ x.T
            weights = x.T @ np.linalg.solve(products + 0.1 * products.trace() / len(x) * np.eye(len(x)), y)
            hits += (np.array(classes)[((features[test] - middle) @ weights).argmax(1)] == labels[test]).sum()
        right[part] = float(hits / wanted.sum())
    return right


def compare(out: Path, encoder: list[str], best: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Fit and rate. Returns `rows`, one for each measured value, and `read`, the shares of read_shares."""
    outfits = ("--outfits", str(out / "outfits.csv"), "--validation_share", "0.15", "--test_share", "0.25")
    compat = fit("outfit_compat", out / "fitted" / "outfit_compat", *outfits, *encoder)
    liked = ("--interactions", str(out / "interactions.csv"), "--k", "1")
    taste = fit("vbpr", out / "fitted" / "vbpr", *liked, "--items", str(out / "items.csv"), *encoder)
    control = fit("vbpr", out / "fitted" / "classes", *liked, "--features", str(class_features(out)))
    scorer = opened(out, "outfit_compat", images=str(out))
    new, offered = rate(scorer, out, "candidates"), rate(opened(out, "vbpr"), out, "offered")
    measured = [
        ("outfit_compat", "outfits", "auc", compat["auc"]),
        ("outfit_compat", "outfits", "fitb", compat["fitb"]),
        ("outfit_compat", "outfits, new pictures", "auc", new["auc"]),
        ("outfit_compat", "outfits, new pictures", "fitb", new["fitb"]),
        ("vbpr", "users", "auc", taste["auc"]),
        ("vbpr, visual terms", "users", "auc", taste["auc_visual"]),
        ("vbpr, classes as features", "users", "auc", control["auc"]),
        ("vbpr, visual terms", "users, new pictures", "auc", offered["auc"]),
        ("vbpr, visual terms", "users, new pictures", "fitb", offered["fitb"]),
    ]
    rows = [
        {"scorer": name, "data": data, "metric": metric, "best": float(best[data][metric]), **value}
        for name, data, metric, value in measured
    ]
    return {"rows": rows, "read": read_shares(*embed(scorer.encoder, out))}


def shown(results: dict[str, Any]) -> str:
    """Return a Markdown table, and a line about the encoder."""
    lines = ["| scorer | held out | metric | best possible | measured [95 %] | n |", "|---|---|---|---|---|---|"]
    for row in results["rows"]:
        value = f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        lines.append(
            f"| {row['scorer']} | {row['data']} | {row['metric']} | {row['best']:.3f} | {value} | {row['n']:,} |"
        )
    read = ", ".join(f"{part} {share:.2f}" for part, share in results["read"].items())
    return "\n".join([*lines, "", f"Share of test pictures whose class a linear classifier reads: {read}."])


def write_tables(source: Path, out: Path, size: Size, seed: int) -> dict[str, dict[str, float]]:
    """Write the tables and pictures. Returns the best possible values."""
    from PIL import Image

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists. Name a new folder, or remove this one.")
    rng = np.random.default_rng(seed)
    data = {split: read_split(source, split) for split in ("train", "test")}
    counts = {"train": size.train, "test": size.test}
    chosen = {split: choose(data[split][1], counts[split], split, rng) for split in data}
    wardrobe, liked = plant(chosen, size, rng)
    with whole_folder(out, manifest=False) as folder:
        (folder / "images").mkdir()
        for split, items in chosen.items():
            for item, row in items.items():
                Image.fromarray(data[split][0][row]).save(folder / "images" / f"{item}.png")
        write(wardrobe, folder)
    return ceilings(wardrobe, liked, size)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="FOLDER", help="folder with the four files of Fashion-MNIST")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument("--encoder", default="tiny", help="image encoder, as for `prefkit fit vbpr` (default: tiny)")
    parser.add_argument("--pretrained", help="weights of the encoder")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    encoder = ["--encoder", args.encoder, *(["--pretrained", args.pretrained] if args.pretrained else [])]
    try:
        best = write_tables(args.source, args.out, Size(), args.seed)
        results = compare(args.out, encoder, best)
    except PrefkitError as error:
        print(error, file=sys.stderr)
        return 2
    (args.out / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    print(shown(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
