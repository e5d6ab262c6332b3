"""Find leaks between splits: prompts and images that also occur, exactly or nearly, in another split."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from prefkit.pair.block import distinct
from prefkit.pair.curate import NEAR_BITS, NEAR_LEVELS, thumbs_of
from prefkit.pair.pool import Pool


def leaks(pool: Pool, members: np.ndarray, stats: pd.DataFrame | None) -> dict[str, Any]:
    """Count the prompts and images that occur in more than one split, and return {prompts, examples, images}.

    prompts: number of requests whose prompt (as reduced by `prompt_keys`) also occurs in another split; examples: up to
    five of these prompts; images: number of paired candidates whose image also occurs in another split. members:
    indices of the paired candidates; stats: image statistics, which show near duplicates (None: compare SHA-256 only).
    """
    split = pool.requests["split"].combine_chunks().dictionary_encode().indices.to_numpy()
    if len(np.unique(split)) < 2:
        return {"prompts": 0, "examples": [], "images": 0}
    keys = prompt_keys(pool.requests["prompt"]).combine_chunks().dictionary_encode().indices.to_numpy()
    shared = _in_several(keys, split)
    examples = pool.requests["prompt"].take(pa.array(np.flatnonzero(shared)[:5])).to_pylist()
    images = _images(pool, distinct(members), split, stats)
    return {"prompts": int(shared.sum()), "examples": examples, "images": images}


def prompt_keys(prompts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Reduce prompts to lower-case words without punctuation, so that 'A red hat.' equals 'a  red hat'."""
    plain = pc.utf8_lower(pc.utf8_normalize(prompts, "NFKC"))
    return pc.utf8_trim(pc.replace_substring_regex(plain, r"[^\p{L}\p{N}]+", " "), " ")


def _in_several(keys: np.ndarray, split: np.ndarray) -> np.ndarray:
    """Return a mask [N]: True if the key occurs in more than one split."""
    splits = pd.Series(split).groupby(keys)
    return (splits.transform("min") != splits.transform("max")).to_numpy()


def _images(pool: Pool, members: np.ndarray, split: np.ndarray, stats: pd.DataFrame | None) -> int:
    frame = pool.frame.iloc[members]
    side = split[frame.request.to_numpy()]
    if not len(members) or len(np.unique(side)) < 2:
        return 0
    if stats is None:
        sha = pool.sha256.take(pa.array(frame.row.to_numpy())).combine_chunks().dictionary_encode().indices
        return int(_in_several(pc.fill_null(sha, -1).to_numpy(zero_copy_only=False), side).sum())
    rows = stats.iloc[members]
    return int(twins(rows["hash"].to_numpy().astype(np.uint64), thumbs_of(rows), side).sum())


def twins(hashes: np.ndarray, thumbs: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Return a mask [N] of the images that nearly equal an image in another split. side [N]: each image's split.

    Images are nearly equal if at most NEAR_BITS bits of their hashes ([N] uint64) differ, and no cell of their thumbs
    ([N, 48]) differs by more than NEAR_LEVELS. Their hashes then agree in at least one of NEAR_BITS + 1 bands of bits,
    so sorting by this band and by one thumbnail cell brings them close together.
    """
    twin = np.zeros(len(hashes), bool)
    cell = thumbs[:, int(np.argmax(thumbs.std(axis=0)))]
    for bits in np.array_split(np.arange(64, dtype=np.uint64), NEAR_BITS + 1):
        band = hashes & np.bitwise_or.reduce(np.uint64(1) << bits)
        order = np.lexsort((cell, band))
        start, step = np.arange(len(order) - 1), 1
        while len(start):
            i, j = order[start], order[start + step]
            together = (band[i] == band[j]) & (cell[j] - cell[i] <= NEAR_LEVELS)
            start, i, j = start[together], i[together], j[together]
            like = (side[i] != side[j]) & (np.bitwise_count(hashes[i] ^ hashes[j]) <= NEAR_BITS)
            i, j = i[like], j[like]
            near = np.abs(thumbs[i] - thumbs[j]).max(axis=1, initial=0) <= NEAR_LEVELS
            twin[i[near]] = twin[j[near]] = True
            step += 1
            start = start[start + step < len(order)]
    return twin
