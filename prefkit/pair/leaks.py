"""Whether splits share what should tell them apart: prompts that are nearly one, images that are nearly one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from prefkit.pair.curate import NEAR_LEVELS, thumbs_of
from prefkit.pair.pool import Pool


def leaks(pool: Pool, members: np.ndarray, seen: pd.DataFrame | None) -> dict[str, Any]:
    """prompts: requests of the run whose prompt, read as letters and digits alone, stands in another split too;
    examples of them; images: of `members` (places of paired candidates), those that are in another split too."""
    split = pool.requests["split"].combine_chunks().dictionary_encode().indices.to_numpy()
    if len(np.unique(split)) < 2:
        return {"prompts": 0, "examples": [], "images": 0}
    keys = prompt_keys(pool.requests["prompt"]).combine_chunks().dictionary_encode().indices.to_numpy()
    shared = _in_several(keys, split)
    examples = pool.requests["prompt"].take(pa.array(np.flatnonzero(shared)[:5])).to_pylist()
    return {
        "prompts": int(shared.sum()),
        "examples": examples,
        "images": _images(pool, np.unique(members), split, seen),
    }


def prompt_keys(prompts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Lower case, NFKC, everything but letters and digits as one space: 'A red hat.' and 'a  red hat' are one."""
    plain = pc.utf8_lower(pc.utf8_normalize(prompts, "NFKC"))
    return pc.utf8_trim(pc.replace_substring_regex(plain, r"[^\p{L}\p{N}]+", " "), " ")


def _in_several(keys: np.ndarray, split: np.ndarray) -> np.ndarray:
    """[N] bool: the key occurs under more than one split."""
    low, high = np.full(keys.max() + 1, np.iinfo(np.int32).max), np.full(keys.max() + 1, -1)
    np.minimum.at(low, keys, split)
    np.maximum.at(high, keys, split)
    return (low != high)[keys]


def _images(pool: Pool, members: np.ndarray, split: np.ndarray, seen: pd.DataFrame | None) -> int:
    frame = pool.frame.iloc[members]
    side = split[frame.request.to_numpy()]
    if not len(members) or len(np.unique(side)) < 2:
        return 0
    if seen is None:
        sha = pool.sha256.take(pa.array(frame.row.to_numpy())).combine_chunks().dictionary_encode().indices
        return int(_in_several(pc.fill_null(sha, -1).to_numpy(zero_copy_only=False) + 1, side).sum())
    looked = seen.iloc[members]
    codes = pd.factorize(looked["hash"])[0]
    suspects = np.flatnonzero(_in_several(codes, side))
    thumbs = thumbs_of(looked.iloc[suspects])
    twins = set()
    for rows in pd.Series(np.arange(len(suspects))).groupby(codes[suspects]).indices.values():
        near = np.abs(thumbs[rows][:, None] - thumbs[rows][None, :]).max(axis=2) <= NEAR_LEVELS
        other = side[suspects[rows]][:, None] != side[suspects[rows]][None, :]
        twins |= set(rows[(near & other).any(axis=1)].tolist())
    return len(twins)
