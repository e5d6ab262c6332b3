"""Measure statistics of a run's images, for curation and audit, and store them in RUN/image_stats."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from prefkit.images import TRAITS, Background, rgb, traits
from prefkit.paths import read_regular
from prefkit.store import Store
from prefkit.store.latest import latest
from prefkit.store.table import Table

VERSION = 4  # if this number changes, all images are measured again
SIDE = 128  # pixels of the longer side of the copy on which brightness, saturation and extremes are measured
ROWS, CHUNK = 4096, 16  # rows of a part; images per thread that are read at once
COLUMNS = ["id", "image", "path"]
#: `error` of a candidate without an image, such as a mesh that was not rendered
NO_IMAGE = "a payload without an image"
FEATURES = ("file_size", "sharpness", "brightness", "saturation")
SCHEMA = pa.schema(
    [("id", pa.string()), ("error", pa.string()), ("hash", pa.uint64()), ("thumb", pa.binary(48))]
    + [(name, pa.float64()) for name in (*FEATURES, "std", "lightest", "extreme")]
    + [(name, pa.bool_()) for name in TRAITS]
)


def image_stats(store: Store, generators: Sequence[str], wanted: set[str], write: bool = True) -> pd.DataFrame | None:
    """Measure the images that have no stored row, and return one row per wanted candidate, indexed by id.

    hash: 64-bit difference hash; thumb: 4 x 4 RGB means; file_size: bytes; sharpness: variance of the Laplacian of the
    luma at full size; brightness, saturation: means in 0..1; std: standard deviation of the channel that varies most,
    in levels 0..255; lightest: 99th percentile of the luma in levels; extreme: fraction of pixels whose channels are
    all within 2 levels of 0 or 255; a bool per name in images.TRAITS; error: why an image could not be read.
    write=False: measure nothing, and return None if a row is missing.
    """
    table = Table(store.folder / "image_stats", SCHEMA)
    spec = {"image_stats": VERSION, "pixels": Background.rules()}
    if not write:
        complete = table.spec() == spec and wanted <= table.ids()
        return table.frame().set_index("id").loc[list(wanted)] if complete else None
    table.claim(spec, "Remove it.", empty=True)
    frame = table.frame()  # all columns, so that any damaged part is noticed and measured again
    missing = wanted - set(frame.id)
    if missing:
        _fill(store, table, generators, missing)
        frame = table.frame()
    return frame[frame.id.isin(wanted)].set_index("id")


def _fill(store: Store, table: Table, generators: Sequence[str], missing: set[str]) -> None:
    rows: list[dict[str, Any]] = []
    threads = usable_cores()  # Pillow and NumPy release the interpreter's lock while they decode and compute
    with ThreadPoolExecutor(threads) as pool:
        for part in latest([store.candidates(name) for name in generators], COLUMNS, missing):
            for batch in part.to_batches(max_chunksize=CHUNK * threads):
                rows += pool.map(measure, (item for item in batch.to_pylist() if item["id"] in missing))
                if len(rows) >= ROWS:
                    table.append(rows)
                    rows = []
    table.append(rows)


def usable_cores() -> int:
    """Return the number of cores that this process may use: its CPU affinity, and at most OMP_NUM_THREADS if set."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return min(cores, int(limit)) if limit.isdigit() and int(limit) else cores


def measure(item: dict[str, Any]) -> dict[str, Any]:
    """Measure an image and return its row. item: {id, image: encoded bytes or None, path: read if image is None}."""
    from PIL import Image

    name, data, path = (item[column] for column in COLUMNS)
    if data is None and path is None:
        return {"id": name, "error": NO_IMAGE}
    try:
        data = data if data is not None else read_regular(path or "")
        picture, present = rgb(data), traits(data)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        return {"id": name, "error": str(error)[:300] or type(error).__name__}
    luma = picture.convert("L")
    small = picture.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    pixels = np.asarray(small, np.float32)
    grey = np.asarray(small.convert("L"), np.float32)
    steps = np.asarray(luma.resize((9, 8), Image.Resampling.BOX), np.int16)
    bits = (steps[:, 1:] > steps[:, :-1]).ravel()
    return {
        "id": name,
        "hash": int(np.packbits(bits).view(">u8")[0]),
        "thumb": picture.resize((4, 4), Image.Resampling.BOX).tobytes(),
        "file_size": float(len(data)),
        "sharpness": _sharpness(np.asarray(luma, np.float32)),
        "brightness": float(grey.mean()) / 255,
        "saturation": float(np.asarray(small.convert("HSV"))[..., 1].mean()) / 255,
        "std": float(pixels.std(axis=(0, 1)).max()),
        "lightest": float(np.percentile(grey, 99)),
        "extreme": float(((pixels <= 2) | (pixels >= 253)).all(axis=2).mean()),
        **{name: name in present for name in TRAITS},
    }


def _sharpness(luma: np.ndarray) -> float:
    """Return the variance of the 4-neighbour Laplacian of luma [H, W]; 0 if a side is shorter than 3 pixels."""
    if min(luma.shape) < 3:
        return 0.0
    inner = luma[1:-1, 1:-1]
    return float((luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * inner).var())
