"""Training of the outfit_compat head: outfits as padded index arrays, negatives, training loop and metrics."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import logsigmoid

from prefkit.errors import TrainingError, UsageError
from prefkit.fit.epochs import best_epoch
from prefkit.tables import id_text
from prefkit.types import digest

if TYPE_CHECKING:
    import pandas as pd

    from prefkit.score.embed.outfit_head import OutfitHead

BATCH = 512
MAX_NEGATIVES = 100  # per outfit, for its AUC


@dataclass
class Catalogue:
    """N items. files: their images; category: their category indices, [N] int64; of: each category's item indices."""

    files: list[str]
    category: np.ndarray
    of: list[np.ndarray]


@dataclass
class Outfits:
    """O outfits of up to L items. members: [O, L] item indices; rows of shorter outfits are padded with -1."""

    members: np.ndarray

    def __len__(self) -> int:
        return len(self.members)


def read_outfits(table: pd.DataFrame, shares: tuple[float, float]) -> tuple[Catalogue, dict[str, Outfits], int]:
    """Return the catalogue, outfits by split, and the number of outfits left out for having fewer than two items.

    The table's column `split` (train, validation, test) assigns the split. Without a value, a hash of the outfit's
    name assigns it, with `shares` as the fractions for validation and test. Raises UsageError.
    """
    table = table.assign(item=(table["item"] if "item" in table else table["image"]).map(id_text))
    first = table.drop_duplicates("item")
    clash = table.groupby("item")["category"].nunique()
    if (clash > 1).any():
        raise UsageError(f"outfit_compat.outfits: item {clash.index[clash > 1][0]} has two categories; give it one.")
    categories = sorted(set(first["category"].astype(str)))
    number = {name: row for row, name in enumerate(first["item"])}
    category = first["category"].astype(str).map({c: i for i, c in enumerate(categories)}).to_numpy(np.int64)
    catalogue = Catalogue(
        [str(image) for image in first["image"]],
        category,
        [np.flatnonzero(category == c) for c in range(len(categories))],
    )
    splits: dict[str, list[list[int]]] = {"train": [], "validation": [], "test": []}
    short = 0
    for outfit, rows in table.groupby("outfit", sort=True):
        members = list(dict.fromkeys(number[item] for item in rows["item"]))
        if len(members) < 2:
            short += 1
            continue
        split = _split_of(rows, str(outfit), shares)
        if split not in splits:
            raise UsageError(
                f"outfit_compat.outfits: outfit {outfit} has split {split!r}. Use train, validation or test."
            )
        splits[split].append(members)
    empty = [split for split, rows in splits.items() if not rows]
    if empty:
        raise UsageError(
            f"outfit_compat.outfits: no outfit of two or more items is in the split {', '.join(empty)}. Add outfits."
        )
    return catalogue, {split: Outfits(_padded(rows)) for split, rows in splits.items()}, short


def _split_of(rows: pd.DataFrame, outfit: str, shares: tuple[float, float]) -> str:
    names = {str(value) for value in rows["split"] if value is not None} if "split" in rows else set()
    if len(names) > 1:
        raise UsageError(
            f"outfit_compat.outfits: outfit {outfit} has several splits ({', '.join(sorted(names))}). Give it one."
        )
    if names:
        return names.pop()
    number = int(digest("outfit", outfit, length=8), 16) / 16**8
    return "test" if number < shares[1] else "validation" if number < sum(shares) else "train"


def _padded(rows: list[list[int]]) -> np.ndarray:
    padded = np.full((len(rows), max(map(len, rows))), -1, np.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded


def blanks(outfits: Outfits, rng: np.random.Generator) -> np.ndarray:
    """Draw for each outfit the position of the item to blank, uniformly over its items: [O]."""
    lengths = (outfits.members >= 0).sum(1)
    return (rng.random(len(outfits)) * lengths).astype(np.int64)


def negatives(
    catalogue: Catalogue, outfits: Outfits, blank: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw up to `count` items of the blanked item's category from outside each outfit: [O, count]; -1: none."""
    items = np.full((len(outfits), count), -1, np.int64)
    truth = outfits.members[np.arange(len(outfits)), blank]
    for row, (members, item) in enumerate(zip(outfits.members, truth)):
        pool = catalogue.of[catalogue.category[item]]
        pool = pool[~np.isin(pool, members)]
        drawn = rng.choice(pool, min(count, len(pool)), replace=False) if len(pool) else pool
        items[row, : len(drawn)] = drawn
    return items


def one_negative(catalogue: Catalogue, outfits: Outfits, blank: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw one item of the blanked item's category from outside each outfit: [O]; -1 if there is none."""
    truth = outfits.members[np.arange(len(outfits)), blank]
    sizes = np.array([len(pool) for pool in catalogue.of])
    flat, begin = np.concatenate(catalogue.of), np.cumsum(sizes) - sizes
    category = catalogue.category[truth]
    inside = (outfits.members >= 0) & (catalogue.category[outfits.members] == category[:, None])
    pending = np.flatnonzero(sizes[category] > inside.sum(1))
    items = np.full(len(outfits), -1, np.int64)
    while len(pending):
        drawn = flat[begin[category[pending]] + (rng.random(len(pending)) * sizes[category[pending]]).astype(np.int64)]
        outside = ~(outfits.members[pending] == drawn[:, None]).any(1)
        items[pending[outside]] = drawn[outside]
        pending = pending[~outside]
    return items


def contexts(
    head: OutfitHead, features: torch.Tensor, outfits: Outfits, blank: np.ndarray, rows: np.ndarray
) -> torch.Tensor:
    """Compute the head's context of the outfits `rows`, each without its blanked item: [len(rows), out]."""
    members = outfits.members[rows].copy()
    members[np.arange(len(rows)), blank[rows]] = -1
    mask = torch.from_numpy(members >= 0).float()
    return head.context(features[torch.from_numpy(members.clip(min=0))], mask)


def train(
    head: OutfitHead, features: torch.Tensor, catalogue: Catalogue, splits: dict[str, Outfits], settings: Any
) -> tuple[OutfitHead, dict[str, Any]]:
    """Train until the validation AUC has not risen for `patience` epochs. Returns the best head, and the AUC by epoch.

    Loss: mean of -ln sigmoid(score of the blanked item - score of a negative). settings: learning_rate, weight_decay,
    batch_size, epochs, patience, seed. Raises UsageError if a split has no negatives, so that no AUC can be measured.
    """
    for split, outfits in splits.items():
        if split != "train" and not len(measure(head, features, catalogue, outfits, 4, settings.seed)[0]):
            raise UsageError(
                f"outfit_compat: the {split} outfits cannot be evaluated: none has a negative (an item of the blanked "
                "item's category that is not in the outfit). Add items."
            )
    rng = np.random.default_rng(settings.seed)
    optimizer = torch.optim.AdamW(head.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)

    def epoch() -> tuple[float, float]:
        loss = _epoch(head, optimizer, features, catalogue, splits["train"], settings.batch_size, rng)
        return loss, float(measure(head, features, catalogue, splits["validation"], 4, settings.seed)[0].mean())

    def snapshot() -> dict[str, torch.Tensor]:
        return {name: value.detach().clone() for name, value in head.state_dict().items()}

    weights, course = best_epoch("fit outfit_compat", settings, epoch, snapshot)
    head.load_state_dict(weights)
    return head, course


def _epoch(
    head: OutfitHead,
    optimizer: torch.optim.Optimizer,
    features: torch.Tensor,
    catalogue: Catalogue,
    outfits: Outfits,
    batch_size: int,
    rng: np.random.Generator,
) -> float:
    """Train for one epoch with new random blanks and negatives. Returns the mean loss."""
    blank = blanks(outfits, rng)
    negative = one_negative(catalogue, outfits, blank, rng)
    order = rng.permutation(np.flatnonzero(negative >= 0))
    if not len(order):
        raise UsageError("outfit_compat: no category has two items, so there are no negatives. Add items.")
    total = 0.0
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        items = np.stack([outfits.members[rows, blank[rows]], negative[rows]], 1)
        scores = head(contexts(head, features, outfits, blank, rows), features[torch.from_numpy(items)])
        loss = -logsigmoid(scores[:, 0] - scores[:, 1]).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(rows)
    if not math.isfinite(total):
        raise TrainingError("outfit_compat: the loss is no longer finite. Lower --learning_rate.")
    return total / len(order)


def measure(
    head: OutfitHead, features: torch.Tensor, catalogue: Catalogue, outfits: Outfits, choices: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return each outfit's AUC and hit for one blanked item, whose choice depends on `seed` alone.

    AUC: fraction of up to 100 negatives (items of the same category) that score below the blanked item. hit: 1 if the
    item scores above `choices` - 1 negatives. Ties count as misses. Each array omits outfits with too few negatives.
    """
    rng = np.random.default_rng([seed, 1])
    blank = blanks(outfits, rng)
    others = negatives(catalogue, outfits, blank, MAX_NEGATIVES, rng)
    truth = outfits.members[np.arange(len(outfits)), blank]
    aucs, hits = [], []
    with torch.no_grad():
        for start in range(0, len(outfits), BATCH):
            rows = np.arange(start, min(start + BATCH, len(outfits)))
            items = np.concatenate([truth[rows, None], others[rows]], 1)
            context = contexts(head, features, outfits, blank, rows)
            scores = head(context, features[torch.from_numpy(items.clip(min=0))]).numpy()
            below, mask = scores[:, 1:] < scores[:, :1], items[:, 1:] >= 0
            enough = mask.any(1)
            aucs.append((below & mask).sum(1)[enough] / mask.sum(1)[enough])
            full = mask[:, : choices - 1].all(1) & (mask.shape[1] >= choices - 1)
            hits.append(below[full, : choices - 1].all(1).astype(np.float64))
    return np.concatenate(aucs), np.concatenate(hits)
