"""Makes pairs from imported verdicts: the majority wins, p is its fraction of the votes, ties are left out."""

from __future__ import annotations

import json
import sqlite3
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
from prefkit.store.parquet import Shards, feature_dtype
from prefkit.store.reader import CandidateReader
from prefkit.types import digest

if TYPE_CHECKING:
    import pyarrow as pa

WIN = {"a": 1.0, "tie": 0.5, "b": 0.0}
TALLY = """
PRAGMA journal_mode=OFF;
PRAGMA synchronous=OFF;
DROP TABLE IF EXISTS pair;
CREATE TABLE pair (n INTEGER PRIMARY KEY, a TEXT, b TEXT, share REAL, votes INTEGER, UNIQUE (a, b));
BEGIN;
"""
DECIDED = "SELECT a, b, share / votes FROM pair WHERE abs(share / votes - 0.5) >= 1e-9 ORDER BY n"
VOTE = (
    "INSERT INTO pair (a, b, share, votes) VALUES (?, ?, ?, 1) "
    "ON CONFLICT (a, b) DO UPDATE SET share = share + excluded.share, votes = votes + 1"
)


def write_pairs(store: Store, name: str) -> dict[str, int]:
    """Write or replace pairs/NAME atomically; return the number of pairs per split.

    Raises UsageError if no verdict prefers an image.
    """
    path = store.folder / ".imports" / "tally.sqlite"
    base = sqlite3.connect(path, isolation_level=None)
    try:
        ties = _tally(store, name, base)
        with whole_folder(store.pairs(name), manifest=False) as partial:
            counts = _write(store, partial, base)
            if not counts:
                raise UsageError(
                    f"import --pairs: no verdict of {name} prefers one image, so no pair can be made. In a "
                    "table, name the columns of the images (--map prompt=COLUMN,chosen=COLUMN,rejected=COLUMN) or of the "
                    "verdict (winner=COLUMN). Otherwise, omit --pairs."
                )
            _describe(name, counts, ties, partial)
            check_place(store, name)  # again, because writing takes long
            return counts
    finally:
        base.close()
        path.unlink(missing_ok=True)


def _describe(name: str, counts: dict[str, int], ties: int, partial: Path) -> None:
    """Write spec.json and README.md."""
    spec = {"settings": {"use": "imported verdicts"}, "weights": {}, "scorers": {}, "comparisons": name}
    totals = {"pairs": sum(counts.values()), "ties": ties, "splits": counts}
    write_json(partial / "spec.json", {"spec": spec, "counts": totals})
    text = (
        f"Verdicts imported as {name}: the majority wins, `p` is its fraction of the votes, {ties} ties are left out. "
        "`jpg_0` and `jpg_1` are encoded images, `label_0` and `label_1` are 1 for the winner and 0 for the loser, "
        "`caption` is the prompt. `load_dataset` decodes the images; in the config `bytes`, they stay encoded."
    )
    features = {field.name: feature_dtype(field.type) for field in _schema()}
    card(partial, name, text, [(split, f"{split}/*.parquet") for split in counts], features)


def check_place(store: Store, name: str) -> None:
    """Raise UsageError if pairs/NAME holds files that the import `name` did not write."""
    folder = store.pairs(name)
    check_pairs(folder)
    spec = read_json(folder / "spec.json") if (folder / "spec.json").exists() else {}
    if files_in(folder) and spec.get("spec", {}).get("comparisons") != name:
        raise UsageError(f"import --pairs: {store.pairs(name)} was not made by this import. Give another --name.")


def _tally(store: Store, name: str, base: sqlite3.Connection) -> int:
    """Count the votes on each pair of candidates, in order of appearance; return the number of ties."""
    base.executescript(TALLY)
    for part in latest([store.comparisons(name)], ["id_a", "id_b", "outcome", "probability"]):
        for row in part.to_pylist():
            if row["outcome"] is None or row["id_a"] == row["id_b"]:
                continue
            share = row["probability"] if row["probability"] is not None else WIN[row["outcome"]]
            a, b = row["id_a"], row["id_b"]
            if a > b:
                a, b, share = b, a, 1 - share
            base.execute(VOTE, (a, b, share))
    base.execute("COMMIT")
    return base.execute("SELECT COUNT(*) FROM pair WHERE abs(share / votes - 0.5) < 1e-9").fetchone()[0]


def _write(store: Store, partial: Path, base: sqlite3.Connection) -> dict[str, int]:
    reader = CandidateReader(store)
    requests = {row["request_id"]: (row["prompt"], row["split"]) for row in stored_requests(store)}
    schema = _schema()
    writers = BySplit(lambda split: Shards(partial / split, schema))
    for a, b, p in base.execute(DECIDED):
        a, b, p = (a, b, p) if p > 0.5 else (b, a, 1 - p)  # the winner first
        rows = {cid: reader[cid] for cid in (a, b)}
        if rows[a]["request_id"] != rows[b]["request_id"]:
            continue
        caption, split = requests[rows[a]["request_id"]]
        flipped = int(digest("side", a, b, length=8), 16) % 2
        sides = (b, a) if flipped else (a, b)
        pair: dict[str, Any] = {"caption": caption, "request_id": rows[a]["request_id"], "p": p, "agreement": p}
        pair["strategy"] = "imported verdicts"
        for i, cid in enumerate(sides):
            model = str(json.loads(rows[cid]["extra"] or "{}").get("model", "unknown"))
            image = reader.image(cid)
            pair |= {f"jpg_{i}": image and shown(image), f"label_{i}": float(cid == a), f"candidate_{i}": cid}
            pair |= {f"image_{i}_uid": rows[cid]["sha256"], f"seed_{i}": rows[cid]["seed"], f"model_{i}": model}
        writers[split].put(pair)
    return writers.close()


def _schema() -> pa.Schema:
    import pyarrow as pa

    text, number = pa.string(), pa.float64()
    both = {"jpg": pa.binary(), "label": number, "candidate": text, "seed": pa.int64(), "model": text}
    sides = [(f"{name}_{i}", kind) for name, kind in both.items() for i in (0, 1)] + [("image_0_uid", text)]
    texts = [(name, text) for name in ("image_1_uid", "caption", "request_id", "strategy")]
    return pa.schema([*sides, *texts, ("p", number), ("agreement", number)])
