"""Imported verdicts as pairs/NAME at once: the majority wins, its share is p, ties are left out. No score is involved."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.errors import UsageError
from prefkit.hub.importing.index import stored_requests
from prefkit.hub.shards import BySplit, card
from prefkit.images import shown
from prefkit.store import Store
from prefkit.store.files import read_json, write_json
from prefkit.store.folders import check_pairs, files_in, whole_folder
from prefkit.store.latest import latest
from prefkit.store.parquet import Shards
from prefkit.store.reader import CandidateReader
from prefkit.types import digest

if TYPE_CHECKING:
    import pyarrow as pa

SHARE = {"a": 1.0, "tie": 0.5, "b": 0.0}


def write_pairs(store: Store, name: str, test_share: float) -> dict[str, int]:
    """Pairs per split. Replaces pairs/NAME at once or not at all. Raises UsageError where no verdict prefers anything."""
    folder = store.pairs(name)
    base = sqlite3.connect(store.folder / ".imports" / "tally.sqlite", isolation_level=None)
    try:
        with whole_folder(folder, manifest=False) as partial:
            return _fill(store, name, partial, base)
    finally:
        base.close()
        (store.folder / ".imports" / "tally.sqlite").unlink(missing_ok=True)


def _fill(store: Store, name: str, partial: Path, base: sqlite3.Connection) -> dict[str, int]:
    ties = _tally(store, name, base)
    counts = _write(store, name, partial, base)
    if not counts:
        raise UsageError(
            f"import --pairs: no verdict of {name} prefers one image, so there is no pair. Name the column with the winner "
            "(--as table: --map ...,winner=COLUMN), or leave --pairs out."
        )
    spec = {"settings": {"use": "imported verdicts"}, "weights": {}, "scorers": {}, "comparisons": name}
    write_json(
        partial / "spec.json", {"spec": spec, "counts": {"pairs": sum(counts.values()), "ties": ties, "splits": counts}}
    )
    text = (
        f"Verdicts imported as {name}: the majority wins, `p` is its share, {ties} ties are left out. `jpg_0` and `jpg_1` "
        "are encoded images, `label_0` and `label_1` are 1 for the winner and 0 for the loser, `caption` is the prompt."
    )
    card(partial, name, text, [(split, f"{split}/*.parquet") for split in counts])
    check_place(store, name)  # again: writing takes long
    return counts


def check_place(store: Store, name: str) -> None:
    """Raises UsageError where pairs/NAME holds pairs that were made otherwise, or files of somebody else."""
    folder = store.pairs(name)
    check_pairs(folder)
    spec = read_json(folder / "spec.json") if (folder / "spec.json").exists() else {}
    if files_in(folder) and spec.get("spec", {}).get("comparisons") != name:
        raise UsageError(
            f"import --pairs: the pairs {name} of {store.folder} were not made by this import. Give the import another --name."
        )


def _tally(store: Store, name: str, base: sqlite3.Connection) -> int:
    """Votes per pair of candidates, in order of appearance. Returns how many pairs are tied."""
    base.execute("PRAGMA journal_mode=OFF")
    base.execute("PRAGMA synchronous=OFF")
    base.execute("DROP TABLE IF EXISTS pair")
    base.execute("CREATE TABLE pair (n INTEGER PRIMARY KEY, a TEXT, b TEXT, share REAL, votes INTEGER, UNIQUE (a, b))")
    base.execute("BEGIN")
    for part in latest([store.comparisons(name)], ["id_a", "id_b", "outcome", "probability"]):
        for row in part.to_pylist():
            if row["outcome"] is None or row["id_a"] == row["id_b"]:
                continue
            share = row["probability"] if row["probability"] is not None else SHARE[row["outcome"]]
            a, b = row["id_a"], row["id_b"]
            if a > b:
                a, b, share = b, a, 1 - share
            base.execute(
                "INSERT INTO pair (a, b, share, votes) VALUES (?, ?, ?, 1) "
                "ON CONFLICT (a, b) DO UPDATE SET share = share + excluded.share, votes = votes + 1",
                (a, b, share),
            )
    base.execute("COMMIT")
    return base.execute("SELECT COUNT(*) FROM pair WHERE abs(share / votes - 0.5) < 1e-9").fetchone()[0]


def _write(store: Store, name: str, partial: Path, base: sqlite3.Connection) -> dict[str, int]:
    reader = CandidateReader(store)
    asked = {row["request_id"]: (row["prompt"], row["split"]) for row in stored_requests(store)}
    schema = _schema()
    writers = BySplit(lambda split: Shards(partial / split, schema))
    for a, b, p in _preferred(base):
        rows = {cid: reader[cid] for cid in (a, b)}
        if rows[a]["request_id"] != rows[b]["request_id"]:
            continue
        caption, split = asked[rows[a]["request_id"]]
        flipped = int(digest("side", a, b, length=8), 16) % 2
        sides = (b, a) if flipped else (a, b)
        found: dict[str, Any] = {"caption": caption, "request_id": rows[a]["request_id"], "p": p, "agreement": p}
        for i, cid in enumerate(sides):
            found |= {f"jpg_{i}": shown(reader.image(cid)), f"label_{i}": float(cid == a), f"candidate_{i}": cid}
            found |= {
                f"image_{i}_uid": rows[cid]["sha256"],
                f"seed_{i}": rows[cid]["seed"],
                f"model_{i}": _model(rows[cid]),
            }
        found["strategy"] = "imported verdicts"
        writers[split].put(found)
    return writers.close()


def _preferred(base: sqlite3.Connection) -> Iterator[tuple[str, str, float]]:
    """(winner, loser, the winner's share)"""
    for a, b, share in base.execute("SELECT a, b, share / votes FROM pair ORDER BY n"):
        if abs(share - 0.5) >= 1e-9:
            yield (a, b, share) if share > 0.5 else (b, a, 1 - share)


def _model(row: dict[str, Any]) -> str:
    import json

    return str(json.loads(row["extra"] or "{}").get("model", "unknown"))


def _schema() -> pa.Schema:
    import pyarrow as pa

    both = [
        ("jpg", pa.binary()),
        ("label", pa.float64()),
        ("candidate", pa.string()),
        ("seed", pa.int64()),
        ("model", pa.string()),
    ]
    sides = [(f"{name}_{i}", kind) for name, kind in both for i in (0, 1)] + [("image_0_uid", pa.string())]
    texts = [(name, pa.string()) for name in ("image_1_uid", "caption", "request_id", "strategy")]
    return pa.schema([*sides, *texts, ("p", pa.float64()), ("agreement", pa.float64())])
