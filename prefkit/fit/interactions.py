"""User-item interactions as arrays: one held-out item per user for validation, one for testing, and negatives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from prefkit.errors import UsageError
from prefkit.fit.tables import times

MIN_ITEMS = 3  # users with fewer items have none held out


@dataclass
class Interactions:
    """Pairs (user index, item index): `train` [M, 2]; `validation` and `test` [*, 2], at most one row per user.

    keys: the sorted numbers user * n_items + item of all three splits; train_keys: those of `train` alone.
    """

    users: list[str]
    items: list[str]
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    keys: np.ndarray
    train_keys: np.ndarray

    def seen(self, users: np.ndarray, items: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Return a bool array [M]: True where the pair (user, item) is among `keys`."""
        wanted = users.astype(np.int64) * len(self.items) + items
        positions = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
        return keys[positions] == wanted

    def negatives(self, users: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw for each user an item, uniformly from the items that are not in the user's training items: [M]."""
        items = rng.integers(0, len(self.items), len(users))
        rejected = np.flatnonzero(self.seen(users, items, self.train_keys))
        while len(rejected):
            items[rejected] = rng.integers(0, len(self.items), len(rejected))
            rejected = rejected[self.seen(users[rejected], items[rejected], self.train_keys)]
        return items


def split(table: pd.DataFrame, items: list[str], seed: int) -> Interactions:
    """Split interactions into train, validation and test; repeated (user, item) rows count once.

    For each user with three items or more, the last item by `time` is for testing and the one before it for validation
    (without `time`, two random items). Raises UsageError if there are no negatives or no test items.
    """
    frame = pd.DataFrame({"user": table["user"].astype(str), "item": table["item"].astype(str)})
    rng = np.random.default_rng(seed)
    frame["at"] = times(table, "time", "vbpr.interactions:") if "time" in table else rng.random(len(frame))
    frame = frame.drop_duplicates(["user", "item"]).sort_values(["user", "at"], kind="stable", ignore_index=True)
    users = sorted(set(frame["user"]))
    u = frame["user"].map({name: row for row, name in enumerate(users)}).to_numpy(np.int64)
    i = frame["item"].map({name: row for row, name in enumerate(items)}).to_numpy(np.int64)
    counts = np.bincount(u, minlength=len(users))
    if (counts == len(items)).any():
        raise UsageError(
            f"vbpr: user {users[int(counts.argmax())]} has every item, so there are no negatives. Remove the user."
        )
    from_end = counts[u] - 1 - (np.arange(len(u)) - (np.cumsum(counts) - counts)[u])
    enough = counts[u] >= MIN_ITEMS
    rows = np.stack([u, i], 1)
    test, validation = rows[enough & (from_end == 0)], rows[enough & (from_end == 1)]
    train = rows[~enough | (from_end > 1)]
    if not len(test):
        raise UsageError(f"vbpr: no user has {MIN_ITEMS} items, so none can be held out for the test. Add rows.")
    return Interactions(users, items, train, validation, test, _keys(rows, len(items)), _keys(train, len(items)))


def _keys(rows: np.ndarray, items: int) -> np.ndarray:
    return np.sort(rows[:, 0] * items + rows[:, 1])
