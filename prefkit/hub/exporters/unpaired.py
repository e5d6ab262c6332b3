"""Single images with a label, as KTO wants them: image, caption, label (true: desirable)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefkit.hub.pair_reader import Pairs
from prefkit.hub.shards import finish, in_data

TEXT = "`image` for `caption`, with `label` true where it won a pair and false where it lost one."


@dataclass(frozen=True)
class UnpairedOptions:
    #: keep each image once per caption and label, however many pairs it stands in
    once: bool = True


class Unpaired:
    Options = UnpairedOptions

    def __init__(self, options: UnpairedOptions) -> None:
        self.options = options

    def write(self, pairs: Pairs, out: Path) -> dict[str, Any]:
        from datasets import Features, Image, Value

        schema = Features({"image": Image(), "caption": Value("string"), "label": Value("bool")}).arrow_schema
        writers = in_data(out, schema)
        seen: dict[bytes, int] = {}  # 16 bytes an image; bit 1: won, bit 2: lost
        found = {"pairs": 0, "desirable": 0, "undesirable": 0, "both": 0}
        for pair in pairs.rows():
            found["pairs"] += 1
            for data, label in ((pair.win, True), (pair.lose, False)):
                key = hashlib.sha256(data + pair.caption.encode()).digest()[:16]
                before, bit = seen.get(key, 0), 1 if label else 2
                seen[key] = before | bit
                if self.options.once and before & bit:
                    continue
                found["both"] += before == 3 - bit
                found["desirable" if label else "undesirable"] += 1
                row = {"image": {"bytes": data, "path": None}, "caption": pair.caption, "label": label}
                writers[pair.split].put(row)
        finish(writers, out, "Single images with labels", TEXT)
        return found


plugin = Unpaired
