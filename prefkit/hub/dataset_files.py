"""Writes the files of a dataset repository locally before a push: one folder per split of the default config, and one
per further config (candidates, comparisons, and any ties and lists that `pair` made)."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.errors import StoreError, UsageError
from prefkit.hub.edit_inputs import EditInputs
from prefkit.hub.pair_reader import pair_image
from prefkit.hub.takedown import Removed
from prefkit.output import note
from prefkit.store.parquet import Shards, read_rows
from prefkit.store.reader import CandidateReader
from prefkit.types import digest

if TYPE_CHECKING:
    import pyarrow as pa

    from prefkit.store import Store

#: folders under pairs/NAME that become dataset configs, not splits
FURTHER = ("ties", "lists")
SPLIT = re.compile(r"\w+(\.\w+)*")  # split names that Hugging Face `datasets` accepts
SHOWN = 12
DTYPES = {"double": "float64", "float": "float32"}  # Arrow's dtype names -> those of `datasets`


@dataclass
class StagedDataset:
    """The row counts and columns written for each config, and facts about the pairs for the card."""

    rows: dict[str, dict[str, int]] = field(default_factory=dict)  # config -> split -> rows
    columns: dict[str, dict[str, str]] = field(default_factory=dict)  # config -> column -> dtype in `datasets`
    gaps: list[float] = field(default_factory=list)
    requests: set[str] = field(default_factory=set)
    dropped: dict[str, int] = field(default_factory=dict)  # config -> rows left out by takedowns
    shown: list[tuple[bytes, bytes]] = field(default_factory=list)  # (winner, loser)


def stage_dataset(store: Store, name: str, folder: Path, removed: Removed) -> StagedDataset:
    """Write every config of the pairs `name` under `folder`, without rows that hold a removed image.

    Raises UsageError for unknown pairs, for a split name that `datasets` does not accept, and if no pair is left;
    StoreError for damaged files.
    """
    stage = _Stage(store, folder, removed)
    splits = {split: files for split, files in _by_split(store.pairs(name)).items() if split not in FURTHER}
    if not splits:
        known = ", ".join(store.names("pairs")) or "none yet, `prefkit pair` makes them"
        raise UsageError(f"{store.folder} has no pairs called {name!r}; it has: {known}.")
    if stage.inputs:
        note(f"push: the pairs hold the input images of their requests, in the columns {', '.join(stage.inputs)}.")
    for split, files in splits.items():
        stage.write("default", split, stage.with_inputs(_schema(files)), stage.pairs(name, split, files))
    if not any(stage.staged.rows["default"].values()):
        raise UsageError(f"pairs {name}: no pair is left after the takedowns in decisions.csv; nothing to push.")
    for config in FURTHER:
        for split, files in _by_split(store.pairs(name) / config).items():
            stage.write(config, split, _schema(files), stage.copied(config, files))
    stage.candidates()
    stage.comparisons()
    return stage.staged


def _by_split(folder: Path) -> dict[str, list[Path]]:
    """Return {split: files}. Each subfolder is a split; files in `folder` itself are in split train, which is first."""
    splits: dict[str, list[Path]] = {}
    for path in sorted([*folder.glob("*.parquet"), *folder.glob("*/*.parquet")]):
        splits.setdefault("train" if path.parent == folder else path.parent.name, []).append(path)
    return dict(sorted(splits.items(), key=lambda item: (item[0] != "train", item[0])))


def _rows(files: list[Path]) -> Iterator[dict[str, Any]]:
    """Stream the rows of files with one schema. Raises StoreError naming the file."""
    import pyarrow as pa

    for path in files:
        try:
            yield from read_rows(path)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> StoreError:
    text = " ".join(str(error).split())[:160].rstrip(".")
    return StoreError(f"{path} cannot be read as Parquet: {text}. Make these pairs again with `prefkit pair`.")


def _schema(files: list[Path]) -> pa.Schema:
    """Return the first file's schema, starting with jpg_0 and jpg_1 as bytes, even if the file has only their ids."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        fields = {f.name: f for f in pq.read_schema(files[0])}
    except (pa.ArrowException, OSError) as error:
        raise _damaged(files[0], error) from error
    images = [f"jpg_{i}" for i in (0, 1) if f"candidate_{i}" in fields or f"jpg_{i}" in fields]
    others = [f for name, f in fields.items() if name not in images]
    return pa.schema([*(pa.field(name, pa.binary()) for name in images), *others])


class _Stage:
    """Writes configs under `folder`, and records in `staged` the rows and columns that it wrote."""

    def __init__(self, store: Store, folder: Path, removed: Removed) -> None:
        self.store, self.folder, self.removed = store, folder, removed
        self.reader, self.staged, self.edited = CandidateReader(store), StagedDataset(), EditInputs(store)
        self.inputs = [f"input_{i}" for i in range(self.edited.most)]  # columns of the pairs
        self.best: list[tuple[int, int, bytes, bytes]] = []  # heap of the pairs with the smallest hashes, largest first

    def write(self, config: str, split: str, schema: pa.Schema, rows: Iterable[dict[str, Any]]) -> None:
        if not SPLIT.fullmatch(split):  # one invalid split name makes every config unloadable
            raise UsageError(
                f"{'pairs' if config == 'default' else config}: Hugging Face datasets does not accept {split!r} "
                "as a split name (use letters, digits, underscores). Rename it in the requests' source and run "
                "`prefkit generate` and `prefkit pair` again."
            )
        self.staged.columns[config] = {f.name: DTYPES.get(str(f.type), str(f.type)) for f in schema}
        folder = self.folder / split if config == "default" else self.folder / config / split
        splits = self.staged.rows.setdefault(config, {})
        splits[split] = 0
        with Shards(folder, schema) as shards:
            for row in rows:
                shards.put(row)
        splits[split] = shards.rows

    def copied(self, config: str, files: list[Path]) -> Iterator[dict[str, Any]]:
        """Yield the rows of `files` with embedded images, without rows that hold a removed image."""
        sides = [i for i in (0, 1) if f"jpg_{i}" in _schema(files).names]
        for row in _rows(files):
            if self.removed.hits([{k: v for k, v in row.items() if k != "caption"}, self.edited.ids(row)]):
                self.staged.dropped[config] = self.staged.dropped.get(config, 0) + 1
            else:
                yield row | {f"jpg_{i}": pair_image(row, i, self._candidate_image) for i in sides}

    def with_inputs(self, schema: pa.Schema) -> pa.Schema:
        """Return the schema of pairs with the columns of input images."""
        import pyarrow as pa

        others = [field for field in schema if field.name not in self.inputs]
        return pa.schema([*others, *(pa.field(name, pa.binary()) for name in self.inputs)])

    def _candidate_image(self, cid: str) -> bytes | None:
        return self.reader.image(cid) if cid in self.reader else None

    def pairs(self, name: str, split: str, files: list[Path]) -> Iterator[dict[str, Any]]:
        """Yield the pairs of a split. Records gaps, requests and, in the first split, the pairs to show on the card."""
        first = split == next(iter(self.staged.rows["default"]))
        for number, row in enumerate(self.copied("default", files)):
            if not (isinstance(row.get("jpg_0"), bytes) and isinstance(row.get("jpg_1"), bytes)):
                raise StoreError(
                    f"pairs {name}, split {split}, row {number} lacks an image: its candidate is not in this run, or "
                    "is a mesh that was not rendered. Make the pairs again from candidates of this run with images."
                )
            if row.get("score_gap") is not None:
                self.staged.gaps.append(row["score_gap"])
            self.staged.requests.add(str(row.get("request_id") or row.get("caption")))
            row |= self._input_images(row, f"push: pair {number} of split {split}")
            if first:
                win, lose = (row["jpg_0"], row["jpg_1"]) if row.get("label_0") == 1 else (row["jpg_1"], row["jpg_0"])
                key = int(digest("shown", row.get("candidate_0"), row.get("candidate_1"), row.get("caption")), 16)
                heapq.heappush(self.best, (-key, number, win, lose))
                if len(self.best) > SHOWN:
                    heapq.heappop(self.best)
            yield row
        self.staged.shown = [(win, lose) for _, _, win, lose in sorted(self.best, reverse=True)]

    def _input_images(self, row: dict[str, Any], pair: str) -> dict[str, bytes]:
        self.edited.check(row, pair)
        return {name: self.edited.image(image) for name, image in zip(self.inputs, self.edited.ids(row))}

    def candidates(self) -> None:
        """Write one row per image, with all its raw scores, ordered by request, generator and index."""
        import pandas as pd
        import pyarrow as pa

        store, names = self.store, self.store.names("candidates")
        requests = {request.request_id: (i, request) for i, request in enumerate(store.requests())}
        columns = ["id", "request_id", "index", "seed", "sha256", "error"]
        frames = [store.candidates(g).frame(columns).assign(generator=g, model=_model_name(store, g)) for g in names]
        if not frames:
            return
        frame = pd.concat(frames, ignore_index=True)
        frame = frame[frame.error.isna() & frame.request_id.isin(requests)]
        removed = frame.id.isin(self.removed.ids) | frame.sha256.isin(self.removed.files)
        if removed.any():
            self.staged.dropped["candidates"] = int(removed.sum())
        frame = frame[~removed].assign(position=lambda f: f.request_id.map(lambda r: requests[r][0]))
        scores = [f"score_{alias}" for alias in store.names("scores")]
        for score in scores:
            values = store.scores(score.removeprefix("score_")).frame(["id", "value"]).set_index("id").value
            frame[score] = frame.id.map(values).astype("float64")
        frame["decision"] = frame.id.map(store.decisions().set_index("id").verdict)
        frame["caption"] = frame.request_id.map(lambda r: requests[r][1].prompt)
        frame["split"] = frame.request_id.map(lambda r: requests[r][1].split)
        frame = frame.sort_values(["position", "generator", "index"], kind="stable")
        texts = ("id", "request_id", "caption", "generator", "model", "sha256", "decision")
        fields = [("image", pa.binary()), *((name, pa.string()) for name in texts), ("index", pa.int64())]
        schema = pa.schema([*fields, ("seed", pa.int64()), *((score, pa.float64()) for score in scores)])
        splits = sorted(frame.groupby("split", sort=True), key=lambda item: (item[0] != "train", str(item[0])))
        for split, part in splits:
            rows = (self._candidate(row, schema.names) for row in part.to_dict("records"))
            self.write("candidates", str(split), schema, rows)

    def _candidate(self, row: dict[Any, Any], names: list[str]) -> dict[str, Any]:
        """Return the row with None for NaN. `image` is None for a candidate without one; its payload is not pushed."""
        stored = self.reader[row["id"]]
        image = None if stored["image"] is None and stored["path"] is None else self.reader.image(row["id"])
        values = {name: row.get(name) for name in names} | {"image": image}
        return {name: None if isinstance(value, float) and value != value else value for name, value in values.items()}

    def comparisons(self) -> None:
        """Write the verdicts on candidates of the run, without times, ordered by table and id.

        Leaves out failed verdicts, and verdicts on the images of an evaluation.
        """
        import pyarrow as pa

        texts = ("id", "id_a", "id_b", "outcome", "judge", "order", "aspect")
        rows = []
        for alias in self.store.names("comparisons"):
            frame = self.store.comparisons(alias).frame([*texts, "probability"]).sort_values("id")
            frame = frame.astype(object).where(frame.notna(), None)
            known = frame.id_a.isin(self.reader.where) & frame.id_b.isin(self.reader.where)
            kept = frame[frame.outcome.notna() & known].assign(table=alias)
            rows += [{str(key): value for key, value in row.items()} for row in kept.to_dict("records")]
        pushed = [row for row in rows if not self.removed.hits([row["id_a"], row["id_b"]])]
        if len(pushed) < len(rows):
            self.staged.dropped["comparisons"] = len(rows) - len(pushed)
        if pushed:
            fields = [("table", pa.string()), *((name, pa.string()) for name in texts), ("probability", pa.float64())]
            self.write("comparisons", "train", pa.schema(fields), pushed)


def _model_name(store: Store, generator: str) -> str:
    spec = store.candidates(generator).spec() or {}
    return f"{generator}@{spec.get('model') or spec.get('code') or 'unknown'}"
