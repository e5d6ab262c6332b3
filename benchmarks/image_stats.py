"""Time to measure image statistics (`prefkit pair`'s audit) with one thread and with several, in turns.

    python benchmarks/image_stats.py [--images 480] [--side 512] [--threads 2] [--rounds 4]

The images are smooth with a little noise, as PNG. Prints the wall and CPU seconds of every round.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from prefkit.pair.image_stats import image_stats
from prefkit.store import Store
from prefkit.store.table import candidate_row
from prefkit.types import Candidate, Request


def build(folder: Path, images: int, side: int) -> Store:
    store, rng = Store.create(folder), np.random.default_rng(0)
    store.write_requests([Request("r", "x")])
    rows = []
    for i in range(images):
        small = Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8))
        pixels = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC)).astype(int)
        pixels += rng.integers(-6, 7, pixels.shape)
        buffer = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
        rows.append(candidate_row(Candidate(f"c{i}", "r", i, i, image=buffer.getvalue())))
    for start in range(0, images, 40):
        store.candidates("own").append(rows[start : start + 40])
    return store


def measured(store: Store, threads: int) -> tuple[float, float]:
    """Return the wall and CPU seconds for all images."""
    shutil.rmtree(store.folder / "image_stats", ignore_errors=True)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    image_stats(store, ["own"], store.candidates("own").ids())
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("images", 480), ("side", 512), ("threads", 2), ("rounds", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        store = build(Path(temporary) / "run", args.images, args.side)
        measured(store, 1)
        for _ in range(args.rounds):
            (one, busy), (several, in_all) = measured(store, 1), measured(store, args.threads)
            print(
                f"1 thread {one:.2f} s ({busy:.2f} of CPU), {args.threads} {several:.2f} s ({in_all:.2f}): {several / one:.2f}"
            )


if __name__ == "__main__":
    main()
