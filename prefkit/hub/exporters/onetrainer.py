"""chosen/SPLIT and rejected/SPLIT with captions and concepts.json, for the DPO of OneTrainer's pull request 1403.

The layout is the one that the pull request's curation window writes, and its data loader reads: Nerogar/OneTrainer,
pull/1403/head at 8c664c79, modules/util/dpo_curation_util.py, dpo_pattern_util.py and config/ConceptConfig.py. It was
not merged when this was written. A concept has the path of OUT and the patterns chosen/SPLIT/{} and rejected/SPLIT/{};
both images of a pair have the same {}. The caption is the chosen image's .txt, in one line, because each line is read
as an alternative. Splits other than the one to train on become concepts of the type VALIDATION, which are used if DPO
validation is on. OneTrainer has no input images.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefkit.errors import UsageError
from prefkit.hub.pair_files import one_line, write_image
from prefkit.hub.pair_reader import Pairs

VERSION = 3  # of ConceptConfig


@dataclass(frozen=True)
class OneTrainerOptions:
    #: the split to train on
    split: str = "train"
    #: the export's path on the machine that trains, for concepts.json (empty: the absolute path of OUT)
    root: str = ""


@dataclass(frozen=True)
class OneTrainer:
    options: OneTrainerOptions
    Options = OneTrainerOptions

    def write(self, pairs: Pairs, out: Path) -> dict[str, Any]:
        counts: dict[str, Any] = {"pairs": 0, "captions_joined": 0}
        splits: dict[str, int] = {}
        for pair in pairs.rows():
            name = f"{pair.number:07d}"
            path = write_image(out / "chosen" / pair.split, name, pair.win)
            write_image(out / "rejected" / pair.split, name, pair.lose)
            caption = one_line(pair.caption)
            if caption:  # an image without a caption file is trained without a prompt
                path.with_suffix(".txt").write_text(caption, encoding="utf-8")
            counts["pairs"] += 1
            counts["captions_joined"] += caption != pair.caption
            splits[pair.split] = splits.get(pair.split, 0) + 1
        if splits and self.options.split not in splits:
            raise UsageError(
                f"export --as onetrainer: no pair is in the split {self.options.split!r}. Choose another one with "
                f"--split: {', '.join(sorted(splits))}."
            )
        concepts = [self._concept(split) for split in sorted(splits)]
        (out / "concepts.json").write_text(json.dumps(concepts, indent=2), encoding="utf-8")
        return counts | splits

    def _concept(self, split: str) -> dict[str, Any]:
        """Return a concept; OneTrainer fills in the settings that it lacks."""
        patterns = {f"dpo_{side}_pattern": f"{side}/{split}/{{}}" for side in ("chosen", "rejected")}
        kind = "STANDARD" if split == self.options.split else "VALIDATION"
        concept = {"__version": VERSION, "name": f"DPO {split}", "path": self.options.root, "type": kind}
        return concept | {"enabled": True, "include_subdirectories": True} | patterns


plugin = OneTrainer
