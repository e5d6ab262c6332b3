"""Preferences between two images of a prompt, from a pair dataset or from votes; images are read when needed.

A pair dataset is a folder of Parquet files (FOLDER/train/*.parquet, as `prefkit pair` writes them, or *.parquet) with
columns jpg_0, jpg_1, label_0, label_1 and caption. An optional column p holds the probability that the label is right.
Votes are the comparisons of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prefkit.errors import UsageError
from prefkit.images import rgb
from prefkit.output import message
from prefkit.store import Store
from prefkit.store.checksums import file_sum
from prefkit.store.reader import CandidateReader, run_of
from prefkit.store.seal import open_sealed
from prefkit.types import caption_key, digest

if TYPE_CHECKING:
    from PIL.Image import Image

REQUIRED = ("jpg_0", "jpg_1", "label_0", "label_1", "caption")
#: outcome -> probability that image 0 (id_a) is better
PROBABILITY = {"a": 1.0, "b": 0.0, "tie": 0.5}


@dataclass(frozen=True)
class Preference:
    """One comparison of two images.

    p: probability that image 0 is better; 0.5 is a tie. images: the images' keys for `Preferences.open`. texts: column
    -> the wordings of an additional text, at least one. split: of its request.
    """

    caption: str
    p: float
    images: tuple[Any, Any]
    texts: Mapping[str, tuple[str, ...]]
    split: str = "train"


@dataclass(frozen=True)
class Preferences:
    """The preferences of a data set. encoded: image key -> the image's bytes. content: digest of rows and images."""

    rows: list[Preference]
    encoded: Callable[[Any], bytes]
    content: str

    def open(self, image: Any) -> Image:
        """Decode the image with the key `image` as upright RGB. Raises UsageError if it cannot be read."""
        try:
            return rgb(self.encoded(image))
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(f"an image of the pairs cannot be read: {message(str(error), 200)}.") from error


def read_preferences(
    fit: str, pairs: str, run: str, votes: str, columns: Sequence[str] = (), optional: Sequence[str] = ()
) -> Preferences:
    """Read preferences from the pair dataset `pairs`, or from the comparisons called `votes` of the run folder `run`.

    columns: columns with additional texts, which each row must have; a text may be a list of wordings. optional:
    further ones, which rows may lack. Raises UsageError.
    """
    if bool(pairs) == bool(run and votes) or bool(run) != bool(votes):
        raise UsageError(f"{fit}: give --pairs FOLDER, or --run FOLDER with --votes NAME (of its comparisons).")
    if pairs:
        preferences = _from_pairs(fit, pairs, columns, optional)
    else:
        preferences = _from_votes(fit, run, votes, columns, optional)
    if not preferences.rows:
        raise UsageError(f"{fit}: {pairs or f'{run}, comparisons {votes},'} contains no pairs.")
    return preferences


def _from_pairs(fit: str, pairs: str, columns: Sequence[str], optional: Sequence[str]) -> Preferences:
    import datasets
    import pyarrow as pa

    folder = Path(pairs).expanduser()
    files = sorted(folder.glob("train/*.parquet")) or sorted(folder.glob("*.parquet"))
    if not files:
        raise UsageError(f"{fit}.pairs: {pairs} contains no Parquet files (train/*.parquet or *.parquet).")
    try:  # memory-mapped: the images stay on disk
        for file in files:
            open_sealed(file).close()  # `datasets` does not verify prefkit's checksums
        table: Any = datasets.load_dataset("parquet", data_files=[str(f) for f in files], split="train")
    except (pa.ArrowException, OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UsageError(f"{fit}.pairs: {pairs} cannot be read: {message(str(error), 200)}.") from error
    missing = [name for name in (*REQUIRED, *columns) if name not in table.column_names]
    if missing:
        raise UsageError(f"{fit}.pairs: {pairs} has no column {', '.join(missing)}; it has {table.column_names}.")
    for name in ("jpg_0", "jpg_1"):
        if isinstance(table.features[name], datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
    run = run_of(folder)
    reader = lru_cache(1)(CandidateReader)
    names = dict.fromkeys((*REQUIRED[2:], "p", *columns, *optional))
    rows = []
    for n, row in enumerate(table.select_columns([name for name in names if name in table.column_names]).to_list()):
        texts = _texts(row, columns, optional, f"{fit}.pairs: row {n} of {pairs}")
        rows.append(Preference(row["caption"], _probability(fit, n, row), ((n, 0), (n, 1)), texts))

    def encoded(image: tuple[int, int]) -> bytes:
        row, side = table[image[0]], image[1]
        value = row[f"jpg_{side}"]
        value = value["bytes"] if isinstance(value, dict) else value
        if value is None and run is not None and row.get(f"candidate_{side}"):  # the pairs were written without images
            value = reader(run).image(row[f"candidate_{side}"])
        if value is None:
            raise UsageError(f"{fit}: {folder}, row {image[0]} has no image {side}. Remove the row, or add the image.")
        return value

    return Preferences(rows, encoded, digest(list(map(file_sum, files))))


def _texts(
    values: Mapping[str, Any], columns: Sequence[str], optional: Sequence[str], where: str
) -> dict[str, tuple[str, ...]]:
    """Return column -> wordings, for the columns with a text or a list with texts. Raises UsageError for `columns`."""
    found = {}
    for name in dict.fromkeys((*columns, *optional)):
        value = values.get(name)
        words = value if isinstance(value, (list, tuple)) else [value]
        if texts := tuple(word for word in words if isinstance(word, str) and word.strip()):
            found[name] = texts
    missing = [name for name in columns if name not in found]
    if missing:
        raise UsageError(f"{where} has no text under {', '.join(missing)}.")
    return found


def _probability(fit: str, number: int, row: Mapping[str, Any]) -> float:
    """Return the probability that image 0 is better: 0.5 for equal labels; else the winner has p (default 1)."""
    first, second, p = row["label_0"], row["label_1"], row.get("p")
    p = 1.0 if p is None else p
    if not isinstance(row["caption"], str) or not {first, second} <= {0, 0.5, 1} or not 0 <= p <= 1:
        raise UsageError(
            f"{fit}.pairs, row {number} has caption {row['caption']!r}, labels {first} and {second}, and p {p}. The "
            "caption must be text, each label 0, 0.5 or 1, and p from 0 to 1."
        )
    return 0.5 if first == second else p if first > second else 1 - p


def _from_votes(fit: str, run: str, votes: str, columns: Sequence[str], optional: Sequence[str]) -> Preferences:
    store = open_run(f"{fit}.votes", run, "comparisons", votes)
    frame = store.comparisons(votes).frame(["id", "id_a", "id_b", "outcome", "probability"])
    rejected = rejected_ids(store)
    requests = {request.request_id: request for request in store.requests()}
    reader = CandidateReader(store)
    rows, content = [], []
    for _, a, b, outcome, probability in frame.sort_values("id").itertuples(index=False):
        if outcome not in PROBABILITY or {a, b} & rejected:
            continue
        request = requests[reader[a]["request_id"]]
        texts = _texts(request.extra, columns, optional, f"{fit}: request {request.request_id} of {run}")
        known = probability is not None and np.isfinite(probability)
        p = float(probability) if known else PROBABILITY[outcome]
        rows.append(Preference(request.prompt, p, (a, b), texts, request.split))
        content.append([request.prompt, p, reader[a]["sha256"], reader[b]["sha256"], texts])

    def encoded(cid: str) -> bytes:
        image = reader.image(cid)
        if image is None:
            raise UsageError(f"{fit}: candidate {cid} of {run} has no image, so its votes cannot be used.")
        return image

    return Preferences(rows, encoded, digest(content))


def open_run(option: str, run: str, kind: str, name: str) -> Store:
    """Open a run. Raises UsageError naming `option` if it has no comparisons or scores (`kind`) called `name`."""
    store = Store(Path(run).expanduser())
    store.check_single()
    names = store.names(kind)
    if name not in names:
        raise UsageError(f"{option}: {run} has no {kind} {name!r} (it has {', '.join(names) or 'none'}).")
    return store


def rejected_ids(store: Store) -> set[str]:
    """Return the ids of candidates that decisions.csv rejects or removes."""
    decisions = store.decisions()
    return set(decisions.loc[decisions["verdict"].isin(("reject", "remove")), "id"])


def split_preferences(
    fit: str, rows: Sequence[Preference], test_splits: Sequence[str], shares: tuple[float, float], seed: int
) -> tuple[list[int], list[int], list[int]]:
    """Split rows into indices for training, validation and test, by `split_by_text`.

    test_splits: if given, exactly the rows in these splits are the test rows; rows elsewhere with a prompt of theirs are
    left out. shares: fractions of the prompts for validation and test. Raises UsageError for a split without rows.
    """
    if not test_splits:
        return split_by_text(fit, [row.caption for row in rows], *shares, seed)
    splits = sorted({row.split for row in rows})
    if unknown := [name for name in test_splits if name not in splits]:
        raise UsageError(f"{fit}.test_splits: no pair is in split {unknown[0]!r}; the splits are {', '.join(splits)}.")
    test = [n for n, row in enumerate(rows) if row.split in test_splits]
    held = {caption_key(rows[n].caption) for n in test}
    rest = [n for n, row in enumerate(rows) if row.split not in test_splits and caption_key(row.caption) not in held]
    keys = [caption_key(rows[n].caption) for n in rest]
    order = sorted(set(keys), key=lambda key: digest("split", seed, key))
    validation = set(order[: max(1, round(shares[0] * len(order)))])
    if len(order) < 2:
        raise UsageError(f"{fit}.test_splits: {len(order)} prompts are left for training and validation. Add prompts.")
    train = [n for n, key in zip(rest, keys) if key not in validation]
    return train, [n for n, key in zip(rest, keys) if key in validation], test


def split_by_text(
    fit: str, texts: Sequence[str], validation: float, test: float, seed: int
) -> tuple[list[int], list[int], list[int]]:
    """Split rows into indices for training, validation and test; rows with equal texts stay together.

    Case and spacing are ignored. validation, test: fractions of the distinct texts. Raises UsageError if there are too
    few distinct texts.
    """
    keys = [caption_key(text) for text in texts]
    order = sorted(set(keys), key=lambda key: digest("split", seed, key))
    n_test, n_validation = (max(1, round(fraction * len(order))) for fraction in (test, validation))
    if len(order) < n_test + n_validation + 1:
        raise UsageError(f"{fit}: {len(order)} different prompts are too few to split in three. Add prompts.")
    split = {key: 2 if n < n_test else 1 if n < n_test + n_validation else 0 for n, key in enumerate(order)}
    train, val, held_out = ([n for n, key in enumerate(keys) if split[key] == part] for part in range(3))
    return train, val, held_out
