"""Thumbnails as data URIs. Only row groups that hold a requested image are read. Meshes without an image are drawn."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from prefkit.images import rgb
from prefkit.output import warn
from prefkit.store import Store
from prefkit.store.seal import check, open_sealed

THREADS = 4


def thumbnails(store: Store, ids: Iterable[str], side: int) -> dict[str, str | None]:
    """Return {id: data URI of a thumbnail}, at most `side` pixels wide and high; None for a damaged image.

    Meshes without a stored image are drawn. Unknown ids and failed candidates are absent.
    """
    wanted = set(ids)
    images: dict[str, str | None] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        for generator in store.names("candidates") if wanted else []:
            for path in store.candidates(generator).parts():
                jobs = {name: pool.submit(thumbnail, source, side) for name, source in _sources(path, wanted)}
                images |= {name: job.result() for name, job in jobs.items()}
    return images | dict(_drawn(store, wanted - images.keys(), side))


def thumbnail(source: bytes | str, side: int) -> str | None:
    """Return a WebP thumbnail as a data URI; None if the image is damaged. source: encoded bytes, or a file's path."""
    from PIL import Image

    try:
        small = rgb(source, draft=side)
        small.thumbnail((side, side), Image.Resampling.BOX, reducing_gap=2.0)
        return data_uri(webp(small, 74))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _drawn(store: Store, ids: set[str], side: int) -> Iterator[tuple[str, str]]:
    """Yield (id, data URI) for each candidate in `ids` whose payload is a mesh."""
    if not ids:
        return
    from prefkit.mesh.picture import picture_of_payload

    for candidate in store.iter_candidates([], ids, ("id", "request_id", "index", "seed", "error", "payload")):
        image = picture_of_payload(candidate.payload, candidate.extra, side)
        if image is not None:
            yield candidate.id, data_uri(webp(image, 74))


def webp(image: Any, quality: int) -> bytes:
    """Encode a PIL image as WebP without metadata."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=2)
    return buffer.getvalue()


def data_uri(data: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(data).decode()


def _sources(path: Path, wanted: set[str]) -> list[tuple[str, bytes | str]]:
    """Return (id, image bytes or path) of the wanted candidates in a part file, up to the first damaged row group."""
    import pyarrow as pa

    sources = []
    try:
        with open_sealed(path, ["id"]) as file:
            for group in range(file.num_row_groups):
                mask = [name in wanted for name in file.read_row_group(group, ["id"]).column("id").to_pylist()]
                if not any(mask):
                    continue
                check(path, file.metadata, ["image", "path"], group)
                for row in file.read_row_group(group, ["id", "image", "path"]).filter(pa.array(mask)).to_pylist():
                    source = row["image"] if row["image"] is not None else row["path"]
                    if source is not None:
                        sources.append((row["id"], source))
    except (pa.ArrowException, OSError) as error:
        warn(f"{path} is damaged ({' '.join(str(error).split())[:120]}): some of its images are not shown.")
    return sources
