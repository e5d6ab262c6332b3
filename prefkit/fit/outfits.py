"""Outfits as padded arrays, negatives of the same category outside the outfit, and the head's training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import logsigmoid

from prefkit.errors import TrainingError, UsageError
from prefkit.output import Progress
from prefkit.tables import id_text
from prefkit.types import digest

if TYPE_CHECKING:
    import pandas as pd

    from prefkit.score.embed.outfit_head import OutfitHead

AT_ONCE = 512
MOST_AGAINST = 100  # items of the same category that an AUC is measured against, at most


@dataclass
class Catalogue:
    """Items as row numbers. `category` [N] int64; `of` lists the items of each category."""

    files: list[str]
    category: np.ndarray
    of: list[np.ndarray]


@dataclass
class Outfits:
    """`members` [O, L] item numbers, -1 where an outfit is shorter."""

    members: np.ndarray

    def __len__(self) -> int:
        return len(self.members)


def read_outfits(table: pd.DataFrame, shares: tuple[float, float]) -> tuple[Catalogue, dict[str, Outfits], int]:
    """Catalogue, outfits by split, and how many outfits were left out (fewer than two items). The split is the table's
    column `split` (train, validation, test) or by a hash of the outfit's name. Raises UsageError."""
    names = (table["item"] if "item" in table else table["image"]).map(id_text)
    first = table.assign(item=names).drop_duplicates("item")
    clash = table.assign(item=names).groupby("item")["category"].nunique()
    if (clash > 1).any():
        raise UsageError(f"outfit_compat.outfits: item {clash.index[clash > 1][0]} has two categories; it needs one.")
    categories = sorted(set(first["category"].astype(str)))
    number = {name: row for row, name in enumerate(first["item"])}
    category = first["category"].astype(str).map({c: i for i, c in enumerate(categories)}).to_numpy(np.int64)
    catalogue = Catalogue(
        [str(image) for image in first["image"]],
        category,
        [np.flatnonzero(category == c) for c in range(len(categories))],
    )
    found: dict[str, list[list[int]]] = {"train": [], "validation": [], "test": []}
    short = 0
    for outfit, rows in table.assign(item=names).groupby("outfit", sort=True):
        members = list(dict.fromkeys(number[item] for item in rows["item"]))
        if len(members) < 2:
            short += 1
            continue
        split = _own_split(rows, str(outfit)) or _split_of(str(outfit), shares)
        if split not in found:
            raise UsageError(
                f"outfit_compat.outfits: outfit {outfit} is of split {split!r}: train, validation or test."
            )
        found[split].append(members)
    empty = [split for split, rows in found.items() if not rows]
    if empty:
        raise UsageError(f"outfit_compat.outfits: no outfit of two items or more is for {', '.join(empty)}; give more.")
    return catalogue, {split: Outfits(_padded(rows)) for split, rows in found.items()}, short


def _own_split(rows: pd.DataFrame, outfit: str) -> str | None:
    """What the column says of one outfit; None where it says nothing. Raises UsageError where its rows disagree."""
    said = {str(value) for value in rows["split"] if value is not None} if "split" in rows else set()
    if len(said) > 1:
        raise UsageError(f"outfit_compat.outfits: outfit {outfit} is of several splits ({', '.join(sorted(said))}).")
    return next(iter(said), None)


def _split_of(outfit: str, shares: tuple[float, float]) -> str:
    at = int(digest("outfit", outfit, length=8), 16) / 16**8
    return "test" if at < shares[1] else "validation" if at < sum(shares) else "train"


def _padded(rows: list[list[int]]) -> np.ndarray:
    found = np.full((len(rows), max(map(len, rows))), -1, np.int64)
    for i, row in enumerate(rows):
        found[i, : len(row)] = row
    return found


def blanks(outfits: Outfits, rng: np.random.Generator) -> np.ndarray:
    """[O]: a position of each outfit, uniform over those that exist."""
    lengths = (outfits.members >= 0).sum(1)
    return (rng.random(len(outfits)) * lengths).astype(np.int64)


def negatives(
    catalogue: Catalogue, outfits: Outfits, blank: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """[O, count]: different items of the blank's category that are not in the outfit; -1 where there are too few."""
    found = np.full((len(outfits), count), -1, np.int64)
    truth = outfits.members[np.arange(len(outfits)), blank]
    for row, (members, item) in enumerate(zip(outfits.members, truth)):
        pool = catalogue.of[catalogue.category[item]]
        pool = pool[~np.isin(pool, members)]
        drawn = rng.choice(pool, min(count, len(pool)), replace=False) if len(pool) else pool
        found[row, : len(drawn)] = drawn
    return found


def one_negative(catalogue: Catalogue, outfits: Outfits, blank: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[O]: as `negatives` with one each, for all outfits at once; -1 where the category has no other item."""
    truth = outfits.members[np.arange(len(outfits)), blank]
    sizes = np.array([len(pool) for pool in catalogue.of])
    flat, begin = np.concatenate(catalogue.of), np.cumsum(sizes) - sizes
    category = catalogue.category[truth]
    inside = (outfits.members >= 0) & (catalogue.category[outfits.members] == category[:, None])
    open_ = np.flatnonzero(sizes[category] > inside.sum(1))
    found = np.full(len(outfits), -1, np.int64)
    while len(open_):
        at = begin[category[open_]] + (rng.random(len(open_)) * sizes[category[open_]]).astype(np.int64)
        drawn = flat[at]
        fresh = ~(outfits.members[open_] == drawn[:, None]).any(1)
        found[open_[fresh]] = drawn[fresh]
        open_ = open_[~fresh]
    return found


def contexts(
    head: OutfitHead, features: torch.Tensor, outfits: Outfits, blank: np.ndarray, rows: np.ndarray
) -> torch.Tensor:
    """[len(rows), out] of the outfits without their blank."""
    members = outfits.members[rows].copy()
    members[np.arange(len(rows)), blank[rows]] = -1
    there = torch.from_numpy(members >= 0).float()
    return head.context(features[torch.from_numpy(members.clip(min=0))], there)


def train(
    head: OutfitHead, features: torch.Tensor, catalogue: Catalogue, splits: dict[str, Outfits], settings: Any
) -> tuple[OutfitHead, dict[str, Any]]:
    """Epochs of mean -ln sigmoid(score of the truth - score of the negative), until the validation AUC has not risen for
    `patience` of them; the best head is kept. settings: learning_rate, weight_decay, batch_size, epochs, patience, seed.
    Raises UsageError where nothing can be measured."""
    for split, held in splits.items():
        if split != "train" and not len(measure(head, features, catalogue, held, 4, settings.seed)[0]):
            raise UsageError(
                f"outfit_compat: no {split} outfit has an item with another of its category to tell it from."
            )
    rng = np.random.default_rng(settings.seed)
    optimizer = torch.optim.AdamW(head.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    outfits, kept, best, since = splits["train"], {}, -1.0, 0
    curve: list[float] = []
    with Progress("fit outfit_compat", settings.epochs) as progress:
        for _ in range(settings.epochs):
            blank = blanks(outfits, rng)
            against = one_negative(catalogue, outfits, blank, rng)
            order = rng.permutation(np.flatnonzero(against >= 0))
            if not len(order):
                raise UsageError("outfit_compat: no category has two items, so there is no negative to learn from.")
            total = 0.0
            for at in range(0, len(order), settings.batch_size):
                rows = order[at : at + settings.batch_size]
                items = np.stack([outfits.members[rows, blank[rows]], against[rows]], 1)
                scores = head(contexts(head, features, outfits, blank, rows), features[torch.from_numpy(items)])
                loss = -logsigmoid(scores[:, 0] - scores[:, 1]).mean()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                total += loss.item() * len(rows)
            if not math.isfinite(total):
                raise TrainingError("outfit_compat: the loss is no longer finite. Lower --learning_rate.")
            now = float(measure(head, features, catalogue, splits["validation"], 4, settings.seed)[0].mean())
            curve.append(round(now, 6))
            since += 1
            if now > best:
                best, since = now, 0
                kept = {name: value.detach().clone() for name, value in head.state_dict().items()}
            progress.update(1, loss=total / len(order), auc=now)
            if since >= settings.patience:
                break
    head.load_state_dict(kept)
    return head, {"epochs": len(curve), "best_epoch": int(np.argmax(curve)) + 1, "auc_by_epoch": curve}


def measure(
    head: OutfitHead, features: torch.Tensor, catalogue: Catalogue, outfits: Outfits, choices: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(AUC, hit) an outfit, with one blank each, the same at every call of one seed.

    AUC: share of up to 100 other items of the category that score below the truth; hit: 1 where the truth scores above
    `choices` - 1 of them. Ties count against. Outfits whose category has too few other items are in neither.
    """
    rng = np.random.default_rng([seed, 1])
    blank = blanks(outfits, rng)
    against = negatives(catalogue, outfits, blank, MOST_AGAINST, rng)
    truth = outfits.members[np.arange(len(outfits)), blank]
    shares, hits = [], []
    with torch.no_grad():
        for at in range(0, len(outfits), AT_ONCE):
            rows = np.arange(at, min(at + AT_ONCE, len(outfits)))
            items = np.concatenate([truth[rows, None], against[rows]], 1)
            context = contexts(head, features, outfits, blank, rows)
            scores = head(context, features[torch.from_numpy(items.clip(min=0))]).numpy()
            below, there = scores[:, 1:] < scores[:, :1], items[:, 1:] >= 0
            enough = there.any(1)
            shares.append((below & there).sum(1)[enough] / there.sum(1)[enough])
            full = there[:, : choices - 1].all(1) & (there.shape[1] >= choices - 1)
            hits.append(below[full, : choices - 1].all(1).astype(np.float64))
    return np.concatenate(shares), np.concatenate(hits)
