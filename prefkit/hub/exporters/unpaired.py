"""Single images with a label, for KTO: image, caption, label (true: desirable)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefkit.hub.pair_reader import Pairs
from prefkit.hub.shards import write_rows

TEXT = "`image` for `caption`, with `label` true where it won a pair and false where it lost one."


@dataclass(frozen=True)
class UnpairedOptions:
    #: keep each image once per caption and label, even if it is in several pairs
    once: bool = True


@dataclass(frozen=True)
class Unpaired:
    options: UnpairedOptions
    Options = UnpairedOptions

    def write(self, pairs: Pairs, out: Path) -> dict[str, Any]:
        from datasets import Image, Value

        counts = {"pairs": 0, "desirable": 0, "undesirable": 0, "both": 0}
        features = {"image": Image(), "caption": Value("string"), "label": Value("bool")}
        write_rows(self._rows(pairs, counts), features, out, "Single images with labels", TEXT)
        return counts

    def _rows(self, pairs: Pairs, counts: dict[str, int]) -> Iterator[tuple[str, dict[str, Any]]]:
        seen: dict[bytes, int] = {}  # 16-byte key of image and caption -> 1: won, 2: lost, 3: both
        for pair in pairs.rows():
            counts["pairs"] += 1
            for data, label in ((pair.win, True), (pair.lose, False)):
                key = hashlib.sha256(data + pair.caption.encode()).digest()[:16]
                before, bit = seen.get(key, 0), 1 if label else 2
                seen[key] = before | bit
                if self.options.once and before & bit:
                    continue
                counts["both"] += before == 3 - bit
                counts["desirable" if label else "undesirable"] += 1
                yield pair.split, {"image": {"bytes": data, "path": None}, "caption": pair.caption, "label": label}


plugin = Unpaired
