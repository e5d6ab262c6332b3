"""The files of a dataset repository, written locally first: one folder per split of the default config, and one per
further config (candidates, comparisons, and ties and lists where `pair` made them)."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.errors import StoreError, UsageError
from prefkit.hub.takedown import Removed
from prefkit.images import shown
from prefkit.store.parquet import Shards, read_rows
from prefkit.store.reader import CandidateReader
from prefkit.types import digest

if TYPE_CHECKING:
    import pyarrow as pa

    from prefkit.store import Store

#: folders under pairs/NAME that are configs of their own, not splits
FURTHER = ("ties", "lists")
SPLIT = re.compile(r"\w+(\.\w+)*")  # what datasets takes as the name of a split
SHOWN = 12


@dataclass
class Staged:
    """What was written: rows by config and split, columns by config, and what a card needs to know of the pairs."""

    rows: dict[str, dict[str, int]] = field(default_factory=dict)
    columns: dict[str, dict[str, str]] = field(default_factory=dict)  # config -> column -> datasets' dtype
    gaps: list[float] = field(default_factory=list)
    requests: set[str] = field(default_factory=set)
    dropped: dict[str, int] = field(default_factory=dict)  # config -> rows left out by takedowns
    shown: list[tuple[bytes, bytes]] = field(default_factory=list)  # winner, loser


def stage_dataset(store: Store, name: str, folder: Path, out: Removed) -> Staged:
    """Write every config of the pairs `name` under `folder`. Rows that hold a removed image are left out everywhere.

    Raises UsageError (no such pairs, a split that datasets refuses, nothing left) and StoreError (damaged files).
    """
    source, staged, reader = store.pairs(name), Staged(), CandidateReader(store)
    splits = pair_files(store, name)
    for split, files in splits.items():
        _pairs(source, files, folder / split, split, (reader, out), staged)
    if not any(staged.rows.get("default", {}).values()):
        raise UsageError(
            f"pairs {name}: no pair is left after the takedowns in decisions.csv; there is nothing to push."
        )
    for config in FURTHER:
        for split, files in _by_split(source / config).items():
            _copy(config, files, folder / config / split, split, (reader, out), staged)
    _candidates(store, folder / "candidates", (reader, out), staged)
    _comparisons(store, folder / "comparisons" / "train", (reader, out), staged)
    return staged


def pair_files(store: Store, name: str) -> dict[str, list[Path]]:
    """Split -> files of the pairs. Raises UsageError."""
    found = {split: files for split, files in _by_split(store.pairs(name)).items() if split not in FURTHER}
    if not found:
        known = ", ".join(store.names("pairs")) or "none yet, `prefkit pair` makes them"
        raise UsageError(f"there are no pairs called {name!r} in {store.folder}; there are: {known}.")
    for split in found:
        _check_split(f"pairs {name}", split)
    return found


def _check_split(what: str, split: str) -> None:
    """Raises UsageError. One such name in any config, and no config can be loaded."""
    if not SPLIT.fullmatch(split):
        raise UsageError(
            f"{what}: datasets does not take {split!r} as the name of a split (letters, digits, underscore). "
            "Rename the split in the requests' source and run `prefkit generate` and `prefkit pair` again."
        )


def _by_split(folder: Path) -> dict[str, list[Path]]:
    """Files in the folder count as split train; folders in it are splits. The training split comes first."""
    found: dict[str, list[Path]] = {}
    for path in sorted([*folder.glob("*.parquet"), *folder.glob("*/*.parquet")]):
        found.setdefault("train" if path.parent == folder else path.parent.name, []).append(path)
    return dict(sorted(found.items(), key=lambda item: (item[0] != "train", item[0])))


def _rows(files: list[Path]) -> Iterator[dict[str, Any]]:
    """Rows of files with one schema, a few at a time. Raises StoreError naming the file."""
    import pyarrow as pa

    for path in files:
        try:
            yield from read_rows(path)
        except (pa.ArrowException, OSError) as error:
            raise StoreError(
                f"{path} cannot be read as Parquet: {' '.join(str(error).split())[:160].rstrip('.')}. Make these pairs "
                "again with `prefkit pair`."
            ) from error


def _schema(files: list[Path]) -> pa.Schema:
    """That of the first file, with images as bytes: jpg_0 and jpg_1 stand first where only candidates are named."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        fields = {f.name: f for f in pq.read_schema(files[0])}
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{files[0]} cannot be read as Parquet: {error}. Make these pairs again.") from error
    images = [f"jpg_{i}" for i in (0, 1) if f"candidate_{i}" in fields or f"jpg_{i}" in fields]
    plain = [f for name, f in fields.items() if name not in images]
    return pa.schema([*(pa.field(name, pa.binary()) for name in images), *plain])


def _pairs(source: Path, files: list[Path], folder: Path, split: str, how: Any, staged: Staged) -> None:
    best: list[tuple[int, int, bytes, bytes]] = []  # of the smallest hashes, the largest first
    for number, row in enumerate(_copy("default", files, folder, split, how, staged, yielding=True)):
        if not (isinstance(row.get("jpg_0"), bytes) and isinstance(row.get("jpg_1"), bytes)):
            raise StoreError(
                f"pairs {source.name}, split {split}, row {number}: an image is missing, and its candidate is not in this "
                "run. Make the pairs again from candidates that are there."
            )
        if row.get("score_gap") is not None:
            staged.gaps.append(row["score_gap"])
        staged.requests.add(str(row.get("request_id") or row.get("caption")))
        if split == next(iter(staged.rows["default"])):
            win, lose = (row["jpg_0"], row["jpg_1"]) if row.get("label_0") == 1 else (row["jpg_1"], row["jpg_0"])
            key = int(digest("shown", row.get("candidate_0"), row.get("candidate_1"), row.get("caption")), 16)
            heapq.heappush(best, (-key, number, win, lose))
            if len(best) > SHOWN:
                heapq.heappop(best)
    if best:
        staged.shown = [(win, lose) for _, _, win, lose in sorted(best, reverse=True)]


def _copy(config: str, files: list[Path], folder: Path, split: str, how: Any, staged: Staged, yielding: bool = False) -> Any:  # fmt: skip
    rows = _copied(config, files, folder, split, how, staged)
    return rows if yielding else sum(1 for _ in rows)


def _copied(config: str, files: list[Path], folder: Path, split: str, how: Any, staged: Staged) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Write the rows of `files`, images embedded where they are not, and hand each on."""
    reader, out = how
    schema = _schema(files)
    _note(staged, config, split, schema)
    with Shards(folder, schema) as shards:
        for row in _rows(files):
            if out.hits({k: v for k, v in row.items() if k != "caption"}):
                staged.dropped[config] = staged.dropped.get(config, 0) + 1
                continue
            for i in (0, 1):
                if f"jpg_{i}" in schema.names:
                    row[f"jpg_{i}"] = _image(row, i, reader)
            shards.put(row)
            yield row
    staged.rows[config][split] = shards.rows


def _image(row: dict[str, Any], side: int, reader: CandidateReader) -> bytes | None:
    stored = row.get(f"jpg_{side}")
    if isinstance(stored, dict):  # the struct that datasets stores images as
        stored = stored.get("bytes")
    candidate = row.get(f"candidate_{side}")
    if stored is None and candidate is not None and candidate in reader:
        stored = reader.image(candidate)
    return shown(stored) if isinstance(stored, bytes) else stored


def _candidates(store: Store, folder: Path, how: Any, staged: Staged) -> None:
    """A row per image, with every raw score, in the order of requests, generators and indices."""
    import pandas as pd
    import pyarrow as pa

    reader, out = how
    requests = {request.request_id: (i, request) for i, request in enumerate(store.requests())}
    frames = [store.candidates(g).frame(["id", "request_id", "index", "seed", "sha256", "error"]).assign(generator=g) for g in store.names("candidates")]  # fmt: skip
    if not frames:
        return
    frame = pd.concat(frames, ignore_index=True)
    frame = frame[frame.error.isna() & frame.request_id.isin(requests)]
    gone = frame.id.isin(out.ids) | frame.sha256.isin(out.files)
    if gone.any():
        staged.dropped["candidates"] = int(gone.sum())
    frame = frame[~gone].assign(position=lambda f: f.request_id.map(lambda r: requests[r][0]))
    aliases = store.names("scores")
    for alias in aliases:
        values = store.scores(alias).frame(["id", "value"]).set_index("id").value
        frame[f"score_{alias}"] = frame.id.map(values).astype("float64")
    decisions = store.decisions().set_index("id").verdict
    frame["decision"] = frame.id.map(decisions)
    frame["model"] = frame.generator.map({g: model_name(store, g) for g in store.names("candidates")})
    frame = frame.sort_values(["position", "generator", "index"], kind="stable")
    texts = ("id", "request_id", "caption", "generator", "model", "sha256", "decision")
    scores = [(f"score_{alias}", pa.float64()) for alias in aliases]
    schema = pa.schema([("image", pa.binary()), *((t, pa.string()) for t in texts), ("index", pa.int64()), ("seed", pa.int64()), *scores])  # fmt: skip
    frame["split"] = frame.request_id.map(lambda r: requests[r][1].split)
    for split, part in sorted(frame.groupby("split", sort=True), key=lambda item: (item[0] != "train", str(item[0]))):
        _note(staged, "candidates", str(split), schema)
        with Shards(folder / str(split), schema) as shards:
            for row in part.to_dict("records"):
                row = {str(k): None if isinstance(v, float) and v != v else v for k, v in row.items()}
                row |= {"image": _shown(reader, row["id"]), "caption": requests[row["request_id"]][1].prompt}
                shards.put({name: row.get(name) for name in schema.names})
        staged.rows["candidates"][str(split)] = shards.rows


def _shown(reader: CandidateReader, name: str) -> bytes | None:
    """None for a candidate that is no picture (its payload stays at home)."""
    row = reader[name]
    return None if row["image"] is None and row["path"] is None else reader.image(name)


def _comparisons(store: Store, folder: Path, how: Any, staged: Staged) -> None:
    """Verdicts that were reached on candidates of the run, in the order of their ids; when they were given stays at home,
    and so do those on an evaluation's images, which are not pushed."""
    import pyarrow as pa

    reader, out = how
    texts = ("id", "id_a", "id_b", "outcome", "judge", "order", "aspect")
    schema = pa.schema([("table", pa.string()), *((t, pa.string()) for t in texts), ("probability", pa.float64())])
    rows = []
    for alias in store.names("comparisons"):
        frame = store.comparisons(alias).frame([*texts, "probability"]).sort_values("id")
        frame = frame.astype(object).where(frame.notna(), None)
        frame = frame[frame.outcome.notna() & frame.id_a.isin(reader.where) & frame.id_b.isin(reader.where)]
        rows += [row | {"table": alias} for row in frame.to_dict("records")]
    kept = [row for row in rows if not out.hits({key: row[key] for key in ("id_a", "id_b")})]
    if len(kept) < len(rows):
        staged.dropped["comparisons"] = len(rows) - len(kept)
    if not kept:
        return
    _note(staged, "comparisons", "train", schema)
    with Shards(folder, schema) as shards:
        for row in kept:
            shards.put({str(key): value for key, value in row.items()})
    staged.rows["comparisons"]["train"] = shards.rows


def model_name(store: Store, generator: str) -> str:
    spec = store.candidates(generator).spec() or {}
    return f"{generator}@{spec.get('model') or spec.get('code') or 'unknown'}"


def _note(staged: Staged, config: str, split: str, schema: pa.Schema) -> None:
    _check_split(config, split)
    names = {"double": "float64", "float": "float32"}
    staged.rows.setdefault(config, {})[split] = 0
    staged.columns[config] = {f.name: names.get(str(f.type), str(f.type)) for f in schema}
