"""Which of two images is better for its prompt: pair datasets and votes, as rows whose images are read when needed.

A pair dataset is a folder of Parquet files (FOLDER/train/*.parquet, as `prefkit pair` writes them, or *.parquet) with jpg_0,
jpg_1, label_0, label_1 and caption; where a column p says how sure the label is, it is taken. Votes are a run's comparisons.
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
from prefkit.store.checksums import file_sum
from prefkit.store.reader import CandidateReader, run_of
from prefkit.store.seal import open_sealed
from prefkit.types import caption_key, digest

if TYPE_CHECKING:
    from PIL.Image import Image

NEEDED = ("jpg_0", "jpg_1", "label_0", "label_1", "caption")
REFUSED = ("reject", "remove")
#: probability of image 0 (id_a), by outcome
CERTAIN = {"a": 1.0, "b": 0.0, "tie": 0.5}


@dataclass(frozen=True)
class Preference:
    """p: probability that image 0 is the better one; 0.5 is a tie. images: what `Preferences.open` knows them by.
    texts: further prompts of the row, by column."""

    caption: str
    p: float
    images: tuple[Any, Any]
    texts: Mapping[str, str]


@dataclass(frozen=True)
class Preferences:
    rows: list[Preference]
    encoded: Callable[[Any], bytes]
    content: str

    def open(self, image: Any) -> Image:
        """RGB, upright. Raises UsageError for what is no image."""
        try:
            return rgb(self.encoded(image))
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(f"an image of the pairs cannot be read: {' '.join(str(error).split())[:200]}.") from error


def read_preferences(fit: str, pairs: str, run: str, votes: str, columns: Sequence[str] = ()) -> Preferences:
    """From one of the two sources. columns: further prompts that each row must have. Raises UsageError."""
    if bool(pairs) == bool(run and votes) or bool(run) != bool(votes):
        raise UsageError(f"{fit}: give --pairs FOLDER, or --run FOLDER with --votes NAME (under its comparisons).")
    found = _from_pairs(fit, pairs, columns) if pairs else _from_votes(fit, run, votes, columns)
    if not found.rows:
        raise UsageError(f"{fit}: there is not one pair in {pairs or f'{run}, comparisons {votes}'}.")
    return found


def _from_pairs(fit: str, pairs: str, columns: Sequence[str]) -> Preferences:
    import datasets
    import pyarrow as pa

    folder = Path(pairs).expanduser()
    files = sorted(folder.glob("train/*.parquet")) or sorted(folder.glob("*.parquet"))
    if not files:
        raise UsageError(f"{fit}.pairs: {pairs} holds no Parquet files (looked for train/*.parquet and *.parquet).")
    try:  # memory-mapped: the images stay on disk
        for file in files:
            open_sealed(file).close()  # datasets does not look at prefkit's checksums
        table: Any = datasets.load_dataset("parquet", data_files=[str(f) for f in files], split="train")
    except (pa.ArrowException, OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UsageError(f"{fit}.pairs: {pairs} cannot be read: {' '.join(str(error).split())[:200]}.") from error
    lacking = [name for name in (*NEEDED, *columns) if name not in table.column_names]
    if lacking:
        raise UsageError(f"{fit}.pairs: {pairs} has no column {', '.join(lacking)}; it has {table.column_names}.")
    for name in ("jpg_0", "jpg_1"):
        if isinstance(table.features[name], datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
    run = run_of(folder)
    reader = lru_cache(1)(CandidateReader)
    wanted = [name for name in (*NEEDED[2:], "p", *columns) if name in table.column_names]
    rows = [
        Preference(row["caption"], _side(fit, n, row), ((n, 0), (n, 1)), {name: row[name] for name in columns})
        for n, row in enumerate(table.select_columns(wanted).to_list())
    ]

    def encoded(image: tuple[int, int]) -> bytes:
        row, side = table[image[0]], image[1]
        value = row[f"jpg_{side}"]
        value = value["bytes"] if isinstance(value, dict) else value
        if value is None and run is not None and row.get(f"candidate_{side}"):  # ids and scalars only
            return reader(run).image(row[f"candidate_{side}"])
        return value

    return Preferences(rows, encoded, digest(list(map(file_sum, files))))


def _side(fit: str, number: int, row: Mapping[str, Any]) -> float:
    """Probability of image 0. label 1 and 0 with p, the winner's probability; 0.5 and 0.5, or both alike, is a tie."""
    first, second, p = row["label_0"], row["label_1"], row.get("p")
    p = 1.0 if p is None else p
    if not isinstance(row["caption"], str) or not {first, second} <= {0, 0.5, 1} or not 0 <= p <= 1:
        raise UsageError(
            f"{fit}.pairs, row {number}: caption {row['caption']!r}, labels {first} and {second}, p {p}; a text, labels of 0, "
            "0.5 or 1 and a probability are needed."
        )
    return 0.5 if first == second else p if first > second else 1 - p


def _from_votes(fit: str, run: str, votes: str, columns: Sequence[str]) -> Preferences:
    from prefkit.store import Store

    store = Store(Path(run).expanduser())
    if votes not in store.names("comparisons"):
        known = ", ".join(store.names("comparisons")) or "none"
        raise UsageError(f"{fit}.votes: {run} has no comparisons {votes!r} (it has {known}).")
    frame = store.comparisons(votes).frame(["id", "id_a", "id_b", "outcome", "probability"])
    decided = store.decisions()
    refused = set(decided.loc[decided["verdict"].isin(REFUSED), "id"])
    requests = {request.request_id: request for request in store.requests()}
    reader = CandidateReader(store)
    rows, content = [], []
    for _, a, b, outcome, probability in frame.sort_values("id").itertuples(index=False):
        if outcome not in CERTAIN or {a, b} & refused:
            continue
        request = requests[reader[a]["request_id"]]
        lacking = [name for name in columns if not isinstance(request.extra.get(name), str)]
        if lacking:
            raise UsageError(f"{fit}: request {request.request_id} of {run} has no text {', '.join(lacking)}.")
        sure = probability is not None and np.isfinite(probability)
        p = float(probability) if sure else CERTAIN[outcome]
        rows.append(Preference(request.prompt, p, (a, b), {name: str(request.extra[name]) for name in columns}))
        content.append([request.prompt, p, reader[a]["sha256"], reader[b]["sha256"], dict(rows[-1].texts)])
    return Preferences(rows, reader.image, digest(content))


def split_by_text(
    fit: str, texts: Sequence[str], validation: float, test: float, seed: int
) -> tuple[list[int], list[int], list[int]]:
    """Rows to train on, to validate with, to test with; the same text (whatever its case and spacing) never in two."""
    keys = [caption_key(text) for text in texts]
    order = sorted(set(keys), key=lambda key: digest("split", seed, key))
    n_test, n_validation = (max(1, round(share * len(order))) for share in (test, validation))
    if len(order) < n_test + n_validation + 1:
        raise UsageError(f"{fit}: {len(order)} different prompts are too few to train, validate and test on.")
    part = {key: 2 if n < n_test else 1 if n < n_test + n_validation else 0 for n, key in enumerate(order)}
    train, val, held = ([n for n, key in enumerate(keys) if part[key] == own] for own in range(3))
    return train, val, held


def clustered(values: Sequence[float], texts: Sequence[str], seed: int = 0, resamples: int = 1000) -> dict[str, Any]:
    """Mean with its 95 % percentile bootstrap interval over prompts: rows of one prompt are not independent."""
    _, group = np.unique([caption_key(text) for text in texts], return_inverse=True)
    if not len(values):
        return {"mean": None, "low": None, "high": None, "n": 0}
    sums, counts = np.bincount(group, weights=np.asarray(values, float)), np.bincount(group)
    drawn = np.random.default_rng(seed).integers(0, len(sums), (resamples, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"mean": float(np.mean(values)), "low": float(low), "high": float(high), "n": len(values)}
