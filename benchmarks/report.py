"""Time and page size of the report of a large run.

    python benchmarks/report.py --candidates 100000 [--side 64] [--folder DIR]

Builds a synthetic run (random images, two scorers, a quarter as many pairs, one evaluation without images), then
times `status`, `write_report` and one `contact_sheet`, and prints their peak resident memory.
"""

from __future__ import annotations

import argparse
import io
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from prefkit.report import contact_sheet, status, write_report
from prefkit.store import Store
from prefkit.store.files import write_json
from prefkit.store.table import candidate_row
from prefkit.types import Candidate, Request

PER_REQUEST, PART = 8, 256


def png(rng: np.random.Generator, side: int) -> bytes:
    from PIL import Image

    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize((side, side), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def build(folder: Path, count: int, side: int) -> Store:
    store, rng = Store.create(folder), np.random.default_rng(0)
    members = [Request(f"r{i:06d}", f"prompt number {i} of many") for i in range(count // PER_REQUEST)]
    store.write_requests(members)
    images = [png(rng, side) for _ in range(512)]
    rows = []
    for i in range(count):
        request, index = members[i // PER_REQUEST % len(members)], i % PER_REQUEST
        rows.append(candidate_row(Candidate(f"{i:020x}", request.request_id, index, i, image=images[i % 512])))
        if len(rows) == PART or i == count - 1:
            store.candidates("own").append(rows)
            rows = []
    for alias in ("align", "taste"):
        values = rng.normal(size=count)
        for start in range(0, count, 1024):
            block = range(start, min(start + 1024, count))
            store.scores(alias).append([{"id": f"{i:020x}", "value": values[i]} for i in block])
        write_json(store.scores(alias).folder / "spec.json", {"higher_is_better": True})
    pairs(store, images, count // 4, rng)
    return store


def pairs(store: Store, images: list[bytes], count: int, rng: np.random.Generator) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = store.pairs("main") / "train" / "part-0.parquet"
    path.parent.mkdir(parents=True)
    writer, gaps = None, rng.exponential(size=count)
    for start in range(0, count, 512):
        block = range(start, min(start + 512, count))
        table = pa.table(
            {
                "jpg_0": pa.array([images[i % 512] for i in block], pa.binary()),
                "jpg_1": pa.array([images[(i + 7) % 512] for i in block], pa.binary()),
                "label_0": [1.0] * len(block),
                "label_1": [0.0] * len(block),
                "caption": [f"prompt number {i}" for i in block],
                "score_gap": gaps[start : block.stop],
            }
        )
        writer = writer or pq.ParquetWriter(path, table.schema, use_dictionary=["caption"])
        writer.write_table(table)
    if writer:
        writer.close()


def timed(name: str, call) -> object:
    start = time.perf_counter()
    result = call()
    print(f"{name:16} {time.perf_counter() - start:7.2f} s")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=100_000)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--folder", type=Path, help="keep the run here instead of in a temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary) / "run"
        store = timed("build", lambda: build(folder, args.candidates, args.side))
        assert isinstance(store, Store)
        size = sum(path.stat().st_size for path in folder.rglob("*.parquet"))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        timed("status", lambda: status(store))
        path = timed("report", lambda: write_report(store))
        sheet = timed("contact sheet", lambda: contact_sheet(store, ["r000001"]))
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert isinstance(path, Path) and isinstance(sheet, Path)
        print(f"tables           {size / 2**20:7.1f} MiB on disk")
        print(f"report.html      {path.stat().st_size / 2**20:7.2f} MiB")
        print(f"contact.html     {sheet.stat().st_size / 2**20:7.2f} MiB")
        print(f"largest memory   {after / 1024:7.0f} MiB ({before / 1024:.0f} MiB after building)")


if __name__ == "__main__":
    main()
