"""Preference pairs from a run, a folder of Parquet files, or the Hugging Face Hub, validated before a model is loaded.

Required columns, as in Pick-a-Pic: jpg_0, jpg_1 (encoded images), label_0, label_1 (0 or 1), caption. Optional columns:
candidate_0/1 (ids of candidates in the run, whose stored latents or images are used, so that jpg_0/1 may be null),
request_id, image_0/1_uid, score_gap, p.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from prefkit.errors import NotYet, UsageError
from prefkit.output import warn
from prefkit.paths import read_regular
from prefkit.store.files import read_json
from prefkit.store.parquet import READ_ROWS, read_rows
from prefkit.store.reader import CandidateReader, run_of
from prefkit.types import Request, digest

if TYPE_CHECKING:
    import pyarrow as pa

    from prefkit.store import Store

REQUIRED = ("jpg_0", "jpg_1", "label_0", "label_1", "caption")
OPTIONAL = ("candidate_0", "candidate_1", "request_id", "image_0_uid", "image_1_uid", "score_gap", "p")
IMAGES = ("jpg_0", "jpg_1")
SCORE = "score_0_"
COMPARED = "comparisons"  # the strategy that chooses winners by comparisons
HELD_OUT = ("test", "val", "eval")


@dataclass(frozen=True)
class PairImage:
    """One image of a pair.

    key: sha256 of the image's bytes, hashed again with its bucket and its flip, if any; column: 0 or 1, as in jpg_0;
    candidate: id of a candidate in the run, if known. bucket: (height, width) that the image is fitted to;
    original_size: (height, width) before fitting. flip: True if the image is mirrored; unflipped is then the key of
    the unmirrored image.
    """

    key: str
    column: int
    candidate: str | None = None
    bucket: tuple[int, int] | None = None
    original_size: tuple[int, int] | None = None
    flip: bool = False
    unflipped: str | None = None


@dataclass(frozen=True)
class Group:
    """Images of one request, the best first, that share one time and one noise. labels: 1 if desirable, else 0.

    row: row of the pair table that the group comes from. The id determines the draws of time and noise. advantages:
    of the images, for objectives that need them.
    """

    id: str
    row: int
    prompt: str
    request_id: str | None
    images: tuple[PairImage, ...]
    labels: tuple[float, ...] = (1.0, 0.0)
    score_gap: float | None = None
    p: float = 1.0
    advantages: tuple[float, ...] | None = None

    def flipped(self) -> Self:
        return replace(self, images=self.images[::-1])


class PairRow(Group):
    """A pair (winner, loser) without pixels. The id does not depend on which image won."""

    @property
    def win(self) -> PairImage:
        return self.images[0]

    @property
    def lose(self) -> PairImage:
        return self.images[1]


@dataclass(eq=False)
class PairSource:
    """A table of pairs: Parquet files or one Arrow table. run: the run that holds the images of rows without pixels."""

    name: str
    files: Sequence[Path] = ()
    table: pa.Table | None = None
    run: Store | None = None

    @classmethod
    def find(cls, store: Store, name: str) -> PairSource:
        """Return a table of pairs. name: a name under the run's pairs/, a folder, or a Hub id owner/name[:split].

        Raises UsageError, NotYet.
        """
        entry = (
            f"a name under {store.folder / 'pairs'} ({', '.join(store.names('pairs')) or 'empty: run prefkit pair'})"
        )
        if not name:
            raise UsageError(f"train.pairs is not set: give {entry}, a folder, or a Hub dataset such as owner/name.")
        folders = [folder for folder in (store.folder / "pairs" / name, Path(name)) if folder.is_dir()]
        if folders:
            return cls(name, files=_parquet_files(folders[0]), run=run_of(folders[0]))
        if re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", name):
            return cls(name, table=_from_hub(name))
        text = f"train.pairs: {name!r} is neither {entry}, nor a folder, nor a Hub dataset such as owner/name."
        raise NotYet(text, "pair", [name])

    def columns(self) -> list[str]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self.table is not None:
            return self.table.column_names
        try:
            return pq.read_schema(self.files[0]).names
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(self.files[0], error) from error

    def scorers(self) -> list[str] | None:
        """Return the names of the scores, or of the comparison tables, that chose the winners; None if unknown.

        The names are read from the pairs' spec.json. Without that file, they are read from the columns score_0_NAME,
        unless the strategy `comparisons` chose the winners.
        """
        path = self.files[0].parent.parent / "spec.json" if self.files else None
        spec = read_json(path).get("spec") or {} if path is not None and path.is_file() else {}
        if spec.get("weights"):
            return list(spec["weights"])
        if isinstance(spec.get("comparisons"), list):
            return spec["comparisons"]
        if any(row.get("strategy") == COMPARED for row in islice(self.rows(["strategy"]), 1)):
            return None
        return [name.removeprefix(SCORE) for name in self.columns() if name.startswith(SCORE)] or None

    def rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield the rows in order, as dicts of the given columns that exist."""
        import pyarrow as pa

        if self.table is not None:
            present = [name for name in columns if name in self.table.column_names]
            for batch in self.table.select(present).to_batches(max_chunksize=READ_ROWS):
                yield from batch.to_pylist()
            return
        for path in self.files:
            try:
                yield from read_rows(path, columns)
            except (pa.ArrowException, OSError) as error:
                raise self._damaged(path, error) from error

    def _damaged(self, path: Path, error: Exception) -> UsageError:
        reason = " ".join(str(error).split())[:160].rstrip(".")
        return UsageError(
            f"pairs {self.name}: {path} cannot be read as Parquet with the same columns as the first file: {reason}. "
            f"Replace the file or, if `prefkit pair` made it, remove {path.parent.parent} and make the pairs again."
        )

    def images(self) -> Iterator[tuple[int, bytes | None, bytes | None]]:
        """Yield (row, encoded image 0, encoded image 1); an image is None if neither the row nor the run has it."""
        columns = self.columns() if self.run is not None else []
        names = [name for name in ("candidate_0", "candidate_1") if name in columns]
        reader: CandidateReader | None = None
        for number, row in enumerate(self.rows([*IMAGES, *names])):
            images = [_encoded(row[name]) for name in IMAGES]
            for name in names:
                i = int(name[-1])
                if self.run is not None and images[i] is None and row[name]:
                    reader = reader or CandidateReader(self.run)
                    images[i] = reader.image(row[name]) if row[name] in reader else None
            if not all(image is None or isinstance(image, bytes) for image in images):
                raise UsageError(
                    f"pairs {self.name}, row {number}: jpg_0 and jpg_1 must hold encoded images (bytes, or the image "
                    f"type of Hugging Face datasets), not {type(images[0]).__name__}."
                )
            yield number, images[0], images[1]


def request_of(pair: Any, requests: Mapping[str, Request]) -> Request:
    """Return the pair's request from `requests`; if it is missing or its prompt differs, make one from the caption."""
    known = requests.get(pair.request_id or "")
    return known if known and known.prompt == pair.prompt else Request(digest(pair.prompt), pair.prompt)


def read_pairs(source: PairSource) -> list[PairRow]:
    """Read all pairs, without images. Raises UsageError for missing columns, ties, an empty table or invalid rows."""
    columns = source.columns()
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        raise UsageError(
            f"pairs {source.name}: missing columns {', '.join(missing)} (the table has {', '.join(columns)}). A pair "
            "dataset has jpg_0 and jpg_1 (encoded images), label_0 and label_1 (0 or 1) and caption."
        )
    rows = list(source.rows([name for name in (*REQUIRED, *OPTIONAL) if name in columns and name not in IMAGES]))
    if not rows:
        raise UsageError(f"pairs {source.name}: the table is empty. Check the output of `prefkit pair` for ties.")
    _check_labels(source.name, rows)
    return [_pair(*numbered, keys) for numbered, keys in zip(enumerate(rows), _image_keys(source, rows), strict=True)]


def _pair(number: int, row: dict[str, Any], keys: tuple[str, str]) -> PairRow:
    images = tuple(PairImage(key, i, row.get(f"candidate_{i}")) for i, key in enumerate(keys))
    return PairRow(
        id=digest(row["caption"], sorted(keys)),
        row=number,
        prompt=row["caption"],
        request_id=row.get("request_id"),
        images=images if row["label_0"] == 1 else images[::-1],
        score_gap=row.get("score_gap"),
        p=1.0 if row.get("p") is None else row["p"],
    )


def _check_labels(name: str, rows: Sequence[dict[str, Any]]) -> None:
    labels = [(row["label_0"], row["label_1"]) for row in rows]
    ties = sum(a == b or a == 0.5 or b == 0.5 for a, b in labels if a is not None and b is not None)
    if ties:
        raise UsageError(
            f"pairs {name}: {ties} of {len(rows)} rows are ties (equal labels, or 0.5), which a preference loss cannot "
            "learn from. Remove these rows, for example with dataset.filter(lambda row: row['label_0'] in (0, 1) and "
            "row['label_0'] != row['label_1'])."
        )
    for number, (row, pair) in enumerate(zip(rows, labels, strict=True)):
        if None in pair or set(pair) != {0, 1}:
            raise UsageError(
                f"pairs {name}, row {number}: the labels are {pair[0]} and {pair[1]}; one must be 1 and the other 0."
            )
        if not isinstance(row["caption"], str):
            raise UsageError(f"pairs {name}, row {number}: the caption is not a string. Fill it in or remove the row.")
        p = row.get("p")
        if p is not None and not 0 <= p <= 1:
            raise UsageError(f"pairs {name}, row {number}: `p` is {p}; it must be a probability from 0 to 1.")


def _image_keys(source: PairSource, rows: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return (key of image 0, key of image 1) per row: the stored sha256 if every row has both, else computed ones."""
    stored = [(str(row.get("image_0_uid")), str(row.get("image_1_uid"))) for row in rows]
    if all(re.fullmatch("[0-9a-f]{64}", uid) for uids in stored for uid in uids):
        return stored
    keys = []
    for number, *images in source.images():
        if None in images:
            raise UsageError(f"pairs {source.name}, row {number}: an image is missing. Remove the row or fill it in.")
        first, second = (hashlib.sha256(image).hexdigest() for image in images if image is not None)
        keys.append((first, second))
    return keys


def _encoded(value: Any) -> bytes | None:
    """Return the encoded image in a value of an image column (bytes, or the struct of `datasets`); None if missing."""
    if not isinstance(value, dict):
        return value
    if value.get("bytes") is not None or value.get("path") is None:
        return value.get("bytes")
    path = Path(value["path"])
    return read_regular(path) if path.is_file() else None


def _parquet_files(folder: Path) -> list[Path]:
    """Return the Parquet files of the training split, in the folder layout of prefkit or of Hugging Face `datasets`.

    Raises UsageError.
    """
    for pattern in ("train/*.parquet", "data/train*.parquet", "train*.parquet", "*.parquet"):
        files = sorted(folder.glob(pattern))
        held_out = [path.name for path in files if path.name.casefold().startswith(HELD_OUT)]
        if held_out and len(held_out) == len(files):
            raise UsageError(
                f"pairs {folder}: the names of all its Parquet files mark them as held out ({', '.join(held_out[:3])})."
                " Rename the training files to train*.parquet."
            )
        if held_out and "train" not in pattern:
            warn(f"pairs {folder}: {', '.join(held_out[:3])} ignored, because the names mark these files as held out.")
            files = [path for path in files if path.name not in held_out]
        if files:
            return files
    raise UsageError(f"pairs {folder}: no Parquet files in this folder (looked for train/*.parquet and *.parquet).")


def _from_hub(name: str) -> pa.Table:
    import datasets
    from datasets.exceptions import DatasetsError

    repository, _, split = name.partition(":")
    try:
        dataset = datasets.load_dataset(repository, split=split or "train")
    except (OSError, ValueError, ConnectionError, DatasetsError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UsageError(
            f"train.pairs: {repository} is not a folder, and loading it as a dataset failed: {reason}"
        ) from error
    assert isinstance(dataset, datasets.Dataset)
    return dataset.flatten_indices().data.table
