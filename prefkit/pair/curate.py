"""Remove candidates before pairing: those rejected by a decision or `filter`, degenerate images, and duplicates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from prefkit.config import Pair
from prefkit.pair.block import blocks
from prefkit.pair.image_stats import NO_IMAGE, image_stats
from prefkit.pair.pool import Pool, add_scores
from prefkit.store import Store
from prefkit.store.query import column, in_query, matching

NEAR_BITS = 2  # bits of the 64-bit difference hash in which near duplicates may differ
NEAR_LEVELS = 4  # levels (of 255) by which the cells of their 4 x 4 thumbnails may differ
BLANK_STD = 2.0  # levels (of 255)
BLACK_LEVEL = 10.0
SATURATED = 0.95  # limit for the mean saturation, and for the fraction of pixels with all channels at their extremes


def curate(
    store: Store, pool: Pool, config: Pair, counts: dict[str, Any], write: bool = True
) -> tuple[Pool, pd.DataFrame | None]:
    """Return (the pool without the removed candidates, image statistics [N] or None if not all images were measured).

    Adds the number of removed candidates per reason to `counts`. A candidate with the decision `keep` stays unless its
    image cannot be read. The first of several duplicates stays. write=False (dry run): read no images; stored
    statistics are used if they are complete.
    """
    decisions = store.decisions()
    counts["flagged_by_safety_checker"] = pool.flagged
    for verdict in ("reject", "remove"):
        out = pool.where(decisions.id[decisions.verdict == verdict].tolist())
        counts[f"decided_{verdict}"] = int(out.sum())
        pool = pool.without(out)
    kept = decisions.id[decisions.verdict == "keep"].tolist()
    if config.filter:
        out = ~meets_filter(store, pool, config.filter) & ~pool.where(kept)
        counts["filtered"] = int(out.sum())
        pool = pool.without(out)
    if config.duplicates != "keep":
        out = exact_duplicates(pool) & ~pool.where(kept)
        counts["exact_duplicates"] = int(out.sum())
        pool = pool.without(out)
    if config.degenerate == "keep" and config.duplicates != "near":
        return pool, None
    ids = pool.ids.take(pa.array(pool.frame.row.to_numpy())).to_pylist()
    table = image_stats(store, pool.generators, set(ids), write)
    if table is None:
        return pool, None
    stats = table.reindex(ids)
    if (stats.error == NO_IMAGE).any():  # for example, meshes that were not rendered
        counts["without_image"] = int((stats.error == NO_IMAGE).sum())
        return pool, None
    reasons = {"unreadable": stats.error.notna().to_numpy()}
    if config.degenerate == "drop":
        reasons |= degenerate(stats)
    removed = np.zeros(len(pool), bool)
    for reason, mask in reasons.items():
        out = mask & ~removed & (~pool.where(kept) | (reason == "unreadable"))
        counts[reason] = int(out.sum())
        removed |= out
    pool, stats = pool.without(removed), stats[~removed]
    if config.duplicates == "near":
        out = near_duplicates(pool.frame.request.to_numpy(), stats) & ~pool.where(kept)
        counts["near_duplicates"] = int(out.sum())
        pool, stats = pool.without(out), stats[~out]
    return pool, stats


def meets_filter(store: Store, pool: Pool, query: str) -> np.ndarray:
    """Return a mask [N] of the candidates that have all scores in `query` and match it. Raises UsageError."""
    names = store.names("scores")
    used = in_query(names, query)
    frame = add_scores(store, pool, used)[0].frame
    requests = pool.requests["request_id"].to_pandas().to_numpy()
    scores = {column(a): frame[a].to_numpy() if a in used else np.full(len(frame), np.nan) for a in names}
    table = frame[["index", "seed"]].assign(
        generator=np.asarray(pool.generators, object)[frame.generator.to_numpy()],
        request_id=requests[frame.request.to_numpy()],
        **scores,
    )
    return matching(table, query, "pair: filter").to_numpy() & frame[used].notna().all(axis=1).to_numpy()


def degenerate(stats: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return {kind: mask [N]} of degenerate images: black (99 % of pixels below BLACK_LEVEL), blank (one colour), and
    saturated (only pure colours)."""
    black = (stats.lightest < BLACK_LEVEL).to_numpy()
    blank = (stats["std"] < BLANK_STD).to_numpy() & ~black
    saturated = ((stats.saturation > SATURATED) & (stats.extreme > SATURATED)).to_numpy() & ~black & ~blank
    return {"black": black, "blank": blank, "saturated": saturated}


def exact_duplicates(pool: Pool) -> np.ndarray:
    """Return a mask [N] of the images with the SHA-256 of an earlier image of their request."""
    rows, groups = pool.frame.row.to_numpy(), pool.frame.request.to_numpy()
    keys = _heads(pool.sha256)[rows] + groups.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    ordered = np.sort(keys)
    repeated_keys = ordered[1:][ordered[1:] == ordered[:-1]]
    suspects = np.flatnonzero(np.isin(keys, repeated_keys))  # few; only these become Python objects
    sha = pool.sha256.take(pa.array(rows[suspects])).to_pandas()
    repeated = pd.DataFrame({"request": groups[suspects], "sha": sha}).duplicated() & sha.notna()
    duplicates = np.zeros(len(pool), bool)
    duplicates[suspects[repeated]] = True
    return duplicates


def _heads(texts: pa.ChunkedArray) -> np.ndarray:
    """Return the first eight ASCII characters of each text as uint64 [N]; shorter texts are padded."""
    heads = pc.ascii_rpad(pc.utf8_slice_codeunits(pc.fill_null(texts, ""), 0, 8), 8).combine_chunks()
    return np.frombuffer(heads.buffers()[2] or b"", np.uint64, len(heads))


def near_duplicates(groups: np.ndarray, stats: pd.DataFrame) -> np.ndarray:
    """Return a mask [N] of the images that are nearly equal to an earlier, unmasked image of their request."""
    hashes = stats["hash"].to_numpy().astype(np.uint64)
    thumbs = thumbs_of(stats)
    duplicates = np.zeros(len(groups), bool)
    for members in blocks(groups):
        row_hashes, cells = hashes[members], thumbs[members]
        for j in range(1, members.shape[1]):
            for i in range(j):
                near = np.bitwise_count(row_hashes[:, i] ^ row_hashes[:, j]) <= NEAR_BITS
                near &= np.abs(cells[:, i] - cells[:, j]).max(axis=1) <= NEAR_LEVELS
                duplicates[members[near & ~duplicates[members[:, i]], j]] = True
    return duplicates


def thumbs_of(stats: pd.DataFrame) -> np.ndarray:
    """Return the thumbnails as [N, 48] int16."""
    return np.frombuffer(b"".join(stats.thumb), np.uint8).reshape(-1, 48).astype(np.int16)
