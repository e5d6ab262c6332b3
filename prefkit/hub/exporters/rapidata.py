"""Rapidata's columns: prompt, image1, image2, votes_image1, votes_image2, model1, model2, detailed_results."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefkit.hub.importing.image_check import suffix_of
from prefkit.hub.pair_reader import PairOut, Pairs
from prefkit.hub.shards import write_rows

TEXT = (
    "`image1` and `image2` for `prompt`, with the votes for each image, derived from its probability of being better."
)


@dataclass(frozen=True)
class RapidataOptions:
    #: number of votes per pair, divided between the two images in proportion to p
    votes: int = 1


@dataclass(frozen=True)
class Rapidata:
    options: RapidataOptions
    Options = RapidataOptions
    keeps = frozenset({"p"})

    def write(self, pairs: Pairs, out: Path) -> dict[str, Any]:
        from datasets import Image, Value

        text, integer = Value("string"), Value("int64")
        features: dict[str, Any] = {"prompt": text, "image1": Image(), "image2": Image(), "votes_image1": integer}
        features |= {"votes_image2": integer} | dict.fromkeys(("model1", "model2", "image1_path", "image2_path"), text)
        rows = ((pair.split, self._row(pair)) for pair in pairs.rows())
        return write_rows(rows, features | {"detailed_results": text}, out, "Votes on pairs of images", TEXT)

    def _row(self, pair: PairOut) -> dict[str, Any]:
        for_winner = max(round(self.options.votes * pair.p), self.options.votes // 2 + 1)
        votes = [self.options.votes - for_winner, self.options.votes - for_winner]
        votes[pair.side] = for_winner
        row: dict[str, Any] = {"prompt": pair.caption}
        for i, data in enumerate(pair.images, 1):
            path = f"{pair.columns.get(f'image_{i - 1}_uid') or pair.number}{suffix_of(data)}"
            row |= {f"image{i}": {"bytes": data, "path": path}, f"image{i}_path": path, f"votes_image{i}": votes[i - 1]}
            row[f"model{i}"] = pair.columns.get(f"model_{i - 1}")
        metadata = {k: pair.columns.get(k) for k in ("p", "score_gap", "strategy", "request_id")}
        row["detailed_results"] = json.dumps({"votes": [], "metadata": metadata}, ensure_ascii=False)
        return row


plugin = Rapidata
