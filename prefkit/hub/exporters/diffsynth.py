"""SPLIT.jsonl with image, lose_image and prompt, for the DPO task of DiffSynth-Studio's branch `dpo`.

The keys are those of examples/qwen_image/model_training/lora/Qwen-Image-DPO.sh and train.py (`forward_dpo`) in
modelscope/DiffSynth-Studio, branch dpo at 1e8c201d; branch dpo-refined (6737dbfc) has the same. The main branch has no
DPO. diffsynth/trainers/unified_dataset.py resolves the paths against --dataset_base_path. Train with

    --dataset_base_path OUT --dataset_metadata_path OUT/train.jsonl --data_file_keys image,lose_image --task dpo

`forward_dpo` passes only the prompt and the image to the pipeline, so it cannot train editing models. It adds the noise
of the winner's shape to the loser, so the images of a pair need one size, or --height and --width.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefkit.hub.pair_files import write_image
from prefkit.hub.pair_reader import PairOut, Pairs
from prefkit.images import size
from prefkit.output import warn


@dataclass(frozen=True)
class DiffSynthOptions:
    pass


@dataclass(frozen=True)
class DiffSynth:
    options: DiffSynthOptions
    Options = DiffSynthOptions

    def write(self, pairs: Pairs, out: Path) -> dict[str, Any]:
        """Write pair N to OUT/images/SPLIT/N_win.png and N_lose.png, and its row to OUT/SPLIT.jsonl."""
        counts: dict[str, Any] = {"pairs": 0}
        different = 0
        for pair in pairs.rows():
            row = {"prompt": pair.caption} | self._images(pair, out)
            with (out / f"{pair.split}.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")  # ASCII, because the reader opens it in the system's encoding
            counts["pairs"] += 1
            counts[pair.split] = counts.get(pair.split, 0) + 1
            different += size(pair.win) != size(pair.lose)
        if different:
            warn(
                f"export: pairs whose images differ in size: {different}. DiffSynth's DPO needs equal sizes: pass --height "
                "and --width to its train.py."
            )
        return counts | ({"different_sizes": different} if different else {})

    def _images(self, pair: PairOut, out: Path) -> dict[str, str]:
        folder = out / "images" / pair.split
        sides = (("image", "win", pair.win), ("lose_image", "lose", pair.lose))
        files = {key: write_image(folder, f"{pair.number:07d}_{side}", data) for key, side, data in sides}
        return {key: path.relative_to(out).as_posix() for key, path in files.items()}


plugin = DiffSynth
