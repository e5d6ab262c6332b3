"""What an image looks like in a few numbers, read once and kept beside the run (RUN/looks), for curation and audit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

VERSION = 3  # a new one reads all images again
SIDE = 128  # pixels of the longer side on which brightness, saturation and extremes are measured
THREADS, ROWS = 4, 4096
FEATURES = ("file_size", "sharpness", "brightness", "saturation")
SCHEMA = pa.schema(
    [("id", pa.string()), ("error", pa.string()), ("hash", pa.uint64()), ("thumb", pa.binary(48))]
    + [(name, pa.float64()) for name in (*FEATURES, "deviation", "lightest", "extreme")]
    + [(name, pa.bool_()) for name in TRAITS]
)


def looks(store: Store, generators: Sequence[str], wanted: set[str], write: bool = True) -> pd.DataFrame | None:
    """One row per wanted candidate, indexed by id; images that were not looked at yet are read, part by part.

    hash: difference hash, 64 bits; thumb: 4 x 4 RGB means; file_size in bytes; sharpness: variance of the Laplacian of
    the luma at full size; brightness, saturation: means in 0..1; deviation: the largest standard deviation of a channel
    in levels of 255; lightest: 99th percentile of the luma in levels; extreme: share of pixels whose channels are all
    within 2 levels of 0 or 255; of images.TRAITS, which hold. error: why an image could not be read.
    write: False gives None where an image was not looked at yet.
    """
    table = Table(store.folder / "looks", SCHEMA)
    spec = {"looks": VERSION, "pixels": Background.rules()}
    if not write:
        known = table.spec() == spec and wanted <= table.ids()
        return table.frame().set_index("id").loc[list(wanted)] if known else None
    table.claim(spec, "Remove it.", empty=True)
    frame = table.frame()  # whole: a part whose ids alone are sound is damaged as well, and is made again
    missing = wanted - set(frame.id)
    if missing:
        _fill(store, table, generators, missing)
        frame = table.frame()
    return frame[frame.id.isin(wanted)].set_index("id") if len(frame) != len(wanted) else frame.set_index("id")


def _fill(store: Store, table: Table, generators: Sequence[str], missing: set[str]) -> None:
    rows: list[dict[str, Any]] = []
    with ThreadPoolExecutor(THREADS) as pool:
        for part in latest([store.candidates(name) for name in generators], ["id", "image", "path"], missing):
            for found in pool.map(look_of, _images(part, missing)):
                rows.append(found)
                if len(rows) >= ROWS:
                    table.append(rows)
                    rows = []
    table.append(rows)


def _images(part: pa.Table, missing: set[str]) -> Iterator[tuple[str, bytes | None, str | None]]:
    for batch in part.to_batches(max_chunksize=64):
        names = batch.column("id").to_pylist()
        for i, name in enumerate(names):
            if name in missing:
                yield name, batch.column("image")[i].as_py(), batch.column("path")[i].as_py()


def look_of(key: tuple[str, bytes | None, str | None]) -> dict[str, Any]:
    """A row of the table, of (id, encoded image or None, path or None)."""
    from PIL import Image

    name, data, path = key
    try:
        data = data if data is not None else read_regular(path or "")
        picture, held = rgb(data), traits(data)
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
        "sharpness": sharpness(np.asarray(luma, np.float32)),
        "brightness": float(grey.mean()) / 255,
        "saturation": float(np.asarray(small.convert("HSV"))[..., 1].mean()) / 255,
        "deviation": float(pixels.std(axis=(0, 1)).max()),
        "lightest": float(np.percentile(grey, 99)),
        "extreme": float(((pixels <= 2) | (pixels >= 253)).all(axis=2).mean()),
        **{name: name in held for name in TRAITS},
    }


def sharpness(luma: np.ndarray) -> float:
    """Variance of the 4-neighbour Laplacian. luma [H, W] in levels; 0 for images below 3 x 3."""
    if min(luma.shape) < 3:
        return 0.0
    inner = luma[1:-1, 1:-1]
    return float((luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * inner).var())
