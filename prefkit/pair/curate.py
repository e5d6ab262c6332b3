"""What is taken out before pairing: the curator's word, images that show nothing, candidates that equal another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from prefkit.config import Pair
from prefkit.errors import UsageError
from prefkit.pair.block import blocks
from prefkit.pair.look import looks
from prefkit.pair.pool import Pool
from prefkit.store import Store

NEAR_BITS = 2  # of the 64 of the difference hash
NEAR_LEVELS = 4  # of 255, in every cell of the 4 x 4 thumbnail: another colour is another image
BLANK_DEVIATION = 2.0  # levels
BLACK_LEVEL = 10.0
SATURATED = 0.95  # mean saturation, and share of pixels with all channels at their extremes


def curate(
    store: Store, pool: Pool, config: Pair, counts: dict[str, Any], write: bool = True
) -> tuple[Pool, pd.DataFrame | None]:
    """The pool without what is taken out, each kind counted, and the looks [N] of what is left (None: not looked at).

    A candidate that decisions.csv keeps is kept whatever it looks like. Of equal candidates the first one stays.
    write: False reads no image, for a dry run: where one was not looked at yet, none is taken out by its look.
    """
    for key, known in (("duplicates", ("near", "exact", "keep")), ("degenerate", ("drop", "keep"))):
        if getattr(config, key) not in known:
            raise UsageError(f"pair: {key} {getattr(config, key)!r} is not known; choose one of {', '.join(known)}.")
    decisions = store.decisions()
    counts["flagged_by_safety_checker"] = pool.flagged
    for verdict in ("reject", "remove"):
        out = pool.where(decisions.id[decisions.verdict == verdict].tolist())
        counts[f"decided_{verdict}"] = int(out.sum())
        pool = pool.without(out)
    kept = decisions.id[decisions.verdict == "keep"].tolist()
    if config.duplicates != "keep":
        out = exact_duplicates(pool) & ~pool.where(kept)
        counts["exact_duplicates"] = int(out.sum())
        pool = pool.without(out)
    if config.degenerate == "keep" and config.duplicates != "near":
        return pool, None
    names = pool.ids.take(pa.array(pool.frame.row.to_numpy())).to_pylist()
    found = looks(store, pool.generators, set(names), write)
    if found is None:
        return pool, None
    seen = found.reindex(names)
    reasons = {"unreadable": seen.error.notna().to_numpy()}
    if config.degenerate == "drop":
        reasons |= degenerate(seen)
    gone = np.zeros(len(pool), bool)
    for reason, holds in reasons.items():
        out = holds & ~gone & (~pool.where(kept) | (reason == "unreadable"))
        counts[reason] = int(out.sum())
        gone |= out
    pool, seen = pool.without(gone), seen[~gone]
    if config.duplicates == "near":
        out = near_duplicates(pool.frame.request.to_numpy(), seen) & ~pool.where(kept)
        counts["near_duplicates"] = int(out.sum())
        pool, seen = pool.without(out), seen[~out]
    return pool, seen


def degenerate(seen: pd.DataFrame) -> dict[str, np.ndarray]:
    """black: 99 % of the pixels below BLACK_LEVEL; blank: one colour; saturated: nearly all pixels a pure hue."""
    black = (seen.lightest < BLACK_LEVEL).to_numpy()
    blank = (seen.deviation < BLANK_DEVIATION).to_numpy() & ~black
    saturated = ((seen.saturation > SATURATED) & (seen.extreme > SATURATED)).to_numpy() & ~black & ~blank
    return {"black": black, "blank": blank, "saturated": saturated}


def exact_duplicates(pool: Pool) -> np.ndarray:
    """[N] bool: the same bytes as an earlier candidate of the request. A candidate without sha256 equals none."""
    keys, groups = _keys(pool.sha256)[pool.frame.row.to_numpy()], pool.frame.request.to_numpy()
    suspects = np.zeros(len(pool), bool)
    for members in blocks(groups):
        inside = np.sort(keys[members], axis=1)
        suspects[members[(inside[:, 1:] == inside[:, :-1]).any(axis=1)]] = True
    found = np.zeros(len(pool), bool)
    rows = np.flatnonzero(suspects)
    if len(rows):
        sha = pd.Series(pool.sha256.take(pa.array(pool.frame.row.to_numpy()[rows])).to_pylist(), dtype=object)
        table = pd.DataFrame({"request": groups[rows], "sha": sha})
        found[rows] = (table.duplicated() & table.sha.notna()).to_numpy()
    return found


def _keys(texts: pa.ChunkedArray) -> np.ndarray:
    """[N] uint64: equal texts have equal keys; different ones nearly always different ones."""
    lengths = pc.min_max(pc.binary_length(texts)).as_py()
    if texts.null_count or not len(texts) or lengths["min"] != lengths["max"] or lengths["min"] < 16:
        codes = texts.combine_chunks().dictionary_encode().indices
        return pc.fill_null(codes, -1).to_numpy(zero_copy_only=False).astype(np.uint64)
    width, found = lengths["min"], []
    for chunk in texts.chunks:
        start, data = np.frombuffer(chunk.buffers()[1], np.int64)[chunk.offset], chunk.buffers()[2]
        letters = np.frombuffer(data, np.uint8, len(chunk) * width, start).reshape(-1, width)
        words = np.ascontiguousarray(letters[:, :16]).view(np.uint64)
        found.append(words[:, 0] * np.uint64(0x9E3779B97F4A7C15) ^ words[:, 1])
    return np.concatenate(found)


def near_duplicates(groups: np.ndarray, seen: pd.DataFrame) -> np.ndarray:
    """[N] bool: alike to an earlier candidate of the request that stays."""
    hashes = seen["hash"].to_numpy().astype(np.uint64)
    thumbs = thumbs_of(seen)
    found = np.zeros(len(groups), bool)
    for members in blocks(groups):
        inside, cells = hashes[members], thumbs[members]
        for j in range(1, members.shape[1]):
            for i in range(j):
                near = np.bitwise_count(inside[:, i] ^ inside[:, j]) <= NEAR_BITS
                near &= np.abs(cells[:, i] - cells[:, j]).max(axis=1) <= NEAR_LEVELS
                found[members[near & ~found[members[:, i]], j]] = True
    return found


def thumbs_of(seen: pd.DataFrame) -> np.ndarray:
    """[N, 48] int16"""
    return np.frombuffer(b"".join(seen.thumb), np.uint8).reshape(-1, 48).astype(np.int16)
