"""Preference pairs from a run, a folder of Parquet files, or a datasets id; checked before anything is loaded.

Columns, as in Pick-a-Pic: jpg_0, jpg_1 (encoded images), label_0, label_1 (0 or 1), caption. More that are used where
they are there: candidate_0/1 (their stored latents spare the encoding; the image may then be null), request_id,
image_0/1_uid, score_gap, p.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
FURTHER = ("candidate_0", "candidate_1", "request_id", "image_0_uid", "image_1_uid", "score_gap", "p")
IMAGES = ("jpg_0", "jpg_1")
SCORE = "score_0_"
COMPARED = "comparisons"  # the strategy whose winners were chosen by verdicts
HELD_OUT = ("test", "val", "eval")


@dataclass(frozen=True)
class PairImage:
    """One image of a pair.

    key: sha256 of its bytes; column: 0 or 1, as in jpg_0; candidate: its id in the run's candidates, if it has one.
    frame: (height, width) that the image is brought to, whole: (height, width) before; the key then names the image in
    this frame. flip: the mirrored image (prefkit.train.data.augment), under a key of its own; plain is then the key without.
    """

    key: str
    column: int
    candidate: str | None = None
    frame: tuple[int, int] | None = None
    whole: tuple[int, int] | None = None
    plain: str | None = None
    flip: bool = False


@dataclass(frozen=True)
class PairRow:
    """A pair without its images. The id does not depend on which side won: draws of t and noise follow the id."""

    id: str
    row: int
    prompt: str
    request_id: str | None
    win: PairImage
    lose: PairImage
    score_gap: float | None = None
    p: float = 1.0

    @property
    def sides(self) -> tuple[PairImage, PairImage]:
        return self.win, self.lose

    @property
    def labels(self) -> tuple[float, float]:
        return 1.0, 0.0

    def flipped(self) -> PairRow:
        return replace(self, win=self.lose, lose=self.win)


class PairSource:
    """Where pairs come from: Parquet files, or one Arrow table. run: holds the images that the pairs only name."""

    def __init__(
        self, name: str, files: Sequence[Path] = (), table: pa.Table | None = None, run: Store | None = None
    ) -> None:
        self.name, self.files, self.table, self.run = name, files, table, run

    @classmethod
    def find(cls, store: Store, name: str) -> PairSource:
        """A name under pairs of the run, a folder, or owner/name[:split]. Raises UsageError."""
        if not name:
            known = ", ".join(store.names("pairs")) or "none yet, `prefkit pair` makes them"
            raise UsageError(f"train.pairs is not set: give a name under {store.folder / 'pairs'} ({known}), a folder, or "
                             "a datasets id such as owner/name.")  # fmt: skip
        folders = [folder for folder in (store.folder / "pairs" / name, Path(name)) if name and folder.is_dir()]
        if folders:
            return cls(name, files=_parquet_files(folders[0]), run=run_of(folders[0]))
        if re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", name):
            return cls(name, table=_from_hub(name))
        known = ", ".join(store.names("pairs")) or "none yet, `prefkit pair` makes them"
        raise NotYet(
            f"train.pairs: {name!r} is neither a name under {store.folder / 'pairs'} ({known}), nor a folder, nor a "
            "datasets id such as owner/name.",
            "pair",
            [name],
        )

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
        """Names of the scores, or of the tables of verdicts, that chose the winners; None where that is not known.

        The pairs' own spec.json says it. For pairs from elsewhere the columns score_0_NAME do, unless verdicts chose the
        winners (strategy `comparisons`): then the scores only stand beside them.
        """
        spec = self._spec()
        if spec.get("weights"):
            return list(spec["weights"])
        if isinstance(spec.get("comparisons"), list):
            return spec["comparisons"]
        if any(row.get("strategy") == COMPARED for row in islice(self.rows(["strategy"]), 1)):
            return None
        return [name.removeprefix(SCORE) for name in self.columns() if name.startswith(SCORE)] or None

    def _spec(self) -> dict[str, Any]:
        path = self.files[0].parent.parent / "spec.json" if self.files else None
        return read_json(path).get("spec") or {} if path is not None and path.is_file() else {}

    def rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Rows in order, as dicts of the given columns that exist."""
        import pyarrow as pa

        if self.table is not None:
            there = [name for name in columns if name in self.table.column_names]
            for batch in self.table.select(there).to_batches(max_chunksize=READ_ROWS):
                yield from batch.to_pylist()
            return
        for path in self.files:
            try:
                yield from read_rows(path, columns)
            except (pa.ArrowException, OSError) as error:
                raise self._damaged(path, error) from error

    def _damaged(self, path: Path, error: Exception) -> UsageError:
        text = " ".join(str(error).split())[:160].rstrip(".")
        return UsageError(f"pairs {self.name}: {path} cannot be read as Parquet with the same columns as the first "
                          f"file: {text}. Remove {path.parent.parent} and make the pairs again.")  # fmt: skip

    def images(self) -> Iterator[tuple[int, bytes | None, bytes | None]]:
        """(row, encoded image 0, encoded image 1)"""
        names = [f"candidate_{i}" for i in (0, 1)] if self.run is not None else []
        reader: CandidateReader | None = None
        for number, row in enumerate(self.rows([*IMAGES, *(name for name in names if name in self.columns())])):
            both = [_encoded(row[name]) for name in IMAGES]
            for i, name in enumerate(names):
                if self.run is not None and both[i] is None and row.get(name):
                    reader = reader or CandidateReader(self.run)
                    both[i] = reader.image(row[name]) if row[name] in reader else None
            if not all(image is None or isinstance(image, bytes) for image in both):
                raise UsageError(
                    f"pairs {self.name}, row {number}: jpg_0 and jpg_1 must hold encoded images (bytes, or the image type "
                    f"of datasets), not {type(both[0]).__name__}."
                )
            yield number, both[0], both[1]


def request_of(pair: Any, requests: Mapping[str, Request]) -> Request:
    """The pair's own, of the run's requests by id, or one that its caption alone makes."""
    known = requests.get(pair.request_id or "")
    return known if known and known.prompt == pair.prompt else Request(digest(pair.prompt), pair.prompt)


def read_pairs(source: PairSource) -> list[PairRow]:
    """All pairs, without images. Raises UsageError for another schema, ties, no rows, and rows that make no sense."""
    have = source.columns()
    missing = [name for name in REQUIRED if name not in have]
    if missing:
        raise UsageError(
            f"pairs {source.name}: missing columns {', '.join(missing)} (it has {', '.join(have)}). A pair dataset has "
            "jpg_0 and jpg_1 (encoded images), label_0 and label_1 (0 or 1) and caption."
        )
    rows = list(source.rows([name for name in (*REQUIRED, *FURTHER) if name in have and name not in IMAGES]))
    if not rows:
        raise UsageError(f"pairs {source.name}: there is not one pair in it. See what `prefkit pair` says about ties.")
    _check_labels(source.name, rows)
    keys = _image_keys(source, rows)
    return [_pair(number, row, keys[number]) for number, row in enumerate(rows)]


def _pair(number: int, row: dict[str, Any], keys: tuple[str, str]) -> PairRow:
    sides = [PairImage(key, i, row.get(f"candidate_{i}")) for i, key in enumerate(keys)]
    win, lose = sides if row["label_0"] == 1 else sides[::-1]
    p = row.get("p")
    return PairRow(
        id=digest(row["caption"], sorted(keys)),
        row=number,
        prompt=row["caption"],
        request_id=row.get("request_id"),
        win=win,
        lose=lose,
        score_gap=row.get("score_gap"),
        p=1.0 if p is None else p,
    )


def _check_labels(name: str, rows: Sequence[dict[str, Any]]) -> None:
    labels = [(row["label_0"], row["label_1"]) for row in rows]
    ties = sum(a == b or a == 0.5 or b == 0.5 for a, b in labels if a is not None and b is not None)
    if ties:
        raise UsageError(
            f"pairs {name}: {ties} of {len(rows)} rows are ties (equal labels, or 0.5). A tie says nothing to a "
            "preference loss, and taking it for a win would teach noise: remove these rows, for example with "
            "dataset.filter(lambda row: row['label_0'] in (0, 1) and row['label_0'] != row['label_1'])."
        )
    for number, (row, pair) in enumerate(zip(rows, labels, strict=True)):
        if None in pair or set(pair) != {0, 1}:
            raise UsageError(f"pairs {name}, row {number}: labels {pair[0]} and {pair[1]}; one must be 1, the other 0.")
        if not isinstance(row["caption"], str):
            raise UsageError(f"pairs {name}, row {number}: the caption is not a text. Fill it in or remove the row.")
        p = row.get("p")
        if p is not None and not 0 <= p <= 1:
            raise UsageError(f"pairs {name}, row {number}: p is {p}; it is a probability, between 0 and 1.")


def _image_keys(source: PairSource, rows: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Per row the keys of image 0 and 1: sha256 as stored by prefkit; of foreign data it is computed."""
    stored = [(str(row.get("image_0_uid")), str(row.get("image_1_uid"))) for row in rows]
    if all(re.fullmatch("[0-9a-f]{64}", uid) for uids in stored for uid in uids):
        return stored
    found = []
    for number, *images in source.images():
        if None in images:
            raise UsageError(f"pairs {source.name}, row {number}: an image is missing. Remove the row or fill it in.")
        first, second = (hashlib.sha256(image).hexdigest() for image in images if image is not None)
        found.append((first, second))
    return found


def _encoded(value: Any) -> bytes | None:
    """Bytes of an image column: plain binary, or the struct that datasets stores images as."""
    if not isinstance(value, dict):
        return value
    if value.get("bytes") is not None or value.get("path") is None:
        return value.get("bytes")
    path = Path(value["path"])
    return read_regular(path) if path.is_file() else None


def _parquet_files(folder: Path) -> list[Path]:
    """The files of the training split, by where datasets and prefkit put them. Raises UsageError."""
    for pattern in ("train/*.parquet", "data/train*.parquet", "train*.parquet", "*.parquet"):
        files = sorted(folder.glob(pattern))
        held_out = [path.name for path in files if path.name.casefold().startswith(HELD_OUT)]
        if held_out and len(held_out) == len(files):
            raise UsageError(
                f"pairs {folder}: by their names all its Parquet files are held out ({', '.join(held_out[:3])}). Rename "
                "those to train on to train*.parquet."
            )
        if held_out and "train" not in pattern:
            warn(f"pairs {folder}: {', '.join(held_out[:3])} left out, as held out by name.")
            files = [path for path in files if path.name not in held_out]
        if files:
            return files
    raise UsageError(f"pairs {folder}: there are no Parquet files in it (looked for train/*.parquet and *.parquet).")


def _from_hub(name: str) -> pa.Table:
    import datasets
    from datasets.exceptions import DatasetsError

    repository, _, split = name.partition(":")
    try:
        found = datasets.load_dataset(repository, split=split or "train")
    except (OSError, ValueError, ConnectionError, DatasetsError) as error:
        text = " ".join(str(error).split())[:300]
        raise UsageError(
            f"train.pairs: {repository} is no folder here, and loading it as a dataset failed: {text}"
        ) from error
    assert isinstance(found, datasets.Dataset)
    return found.flatten_indices().data.table
