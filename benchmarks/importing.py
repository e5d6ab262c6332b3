"""Memory of `prefkit import` by the size of the source.

    python benchmarks/importing.py [--megabytes 80 460 1800] [--group 100] [--pairs] [--folder DIR]

Makes sources in the Pick-a-Pic layout (PNG noise of 196 kB per image, shards of 500 MB, row groups of --group rows),
imports each with the command in a separate process, and prints its peak resident memory and seconds.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SIZE = 256  # pixels a side
SHARD_BYTES = 500 << 20


def build(folder: Path, megabytes: int, group: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng, number, written, writer = np.random.default_rng(0), 0, 0, None
    folder.mkdir(parents=True)
    while written < megabytes << 20:
        columns = {f"jpg_{i}": [picture(rng) for _ in range(group)] for i in (0, 1)}
        rows = range(number, number + group)
        table = pa.table(
            {
                **columns,
                "label_0": [float(row % 2) for row in rows],
                "label_1": [1.0 - row % 2 for row in rows],
                "caption": [f"a photograph of thing number {row // 4}" for row in rows],
                "has_label": [True] * group,
                "image_0_uid": [f"u{row}" for row in rows],
                "image_1_uid": [f"v{row}" for row in rows],
            }
        )
        if writer is None:
            names = list(table.column_names)
            plain = {name: "NONE" if name.startswith("jpg") else "snappy" for name in names}
            path = folder / f"train-{number:07d}.parquet"
            writer = pq.ParquetWriter(path, table.schema, compression=plain, use_dictionary=names[2:])
        writer.write_table(table, row_group_size=group)
        number += group
        written += sum(len(data) for column in columns.values() for data in column)
        if path.stat().st_size > SHARD_BYTES:
            writer.close()
            writer = None
    if writer is not None:
        writer.close()


def picture(rng: np.random.Generator) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(out, "PNG", compress_level=0)
    return out.getvalue()


def measure(source: Path, run: Path, pairs: bool) -> tuple[float, float]:
    """(peak resident MB, seconds)"""
    words = [sys.executable, "-m", "prefkit", "import", str(source), str(run), "--as", "pickapic", "-q"]
    start = time.perf_counter()
    process = subprocess.Popen([*words, *(["--pairs"] if pairs else [])], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the import of {source} failed")
    return usage.ru_maxrss / 1024, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[80, 460, 1800])
    parser.add_argument("--group", type=int, default=100, help="rows in a row group of the source")
    parser.add_argument("--pairs", action="store_true", help="import with --pairs")
    parser.add_argument("--folder", type=Path, help="keep the sources here instead of in a temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for megabytes in args.megabytes:
            source = (args.folder or Path(temporary)) / f"{megabytes}-{args.group}"
            if not source.exists():
                build(source, megabytes, args.group)
            with tempfile.TemporaryDirectory() as run:
                memory, seconds = measure(source, Path(run) / "run", args.pairs)
            print(
                f"{megabytes:6} MB, row groups of {args.group}: {memory:5.0f} MB at most, {seconds:5.1f} s", flush=True
            )


if __name__ == "__main__":
    main()
