"""Flow-Factory's offline DPO: train.jsonl with the pairs of one split, and test.jsonl with the prompts of the others.

A line of train.jsonl is a "V2 record" with preference supervision, as src/flow_factory/data_utils/schema.py and
offline_dataset.py check it (guidance/datasets.md in X-GenGroup/Flow-Factory at 442134ee):

    {"schema_version": 2, "input": {"prompt": "...", "media": []},
     "supervision": {"type": "preference", "chosen": {"media": [{"type": "image", "path": "images/0000000_win.png"}]},
                     "rejected": {"media": [{"type": "image", "path": "images/0000000_lose.png"}]}}, "metadata": {}}

Unknown keys are errors there. The paths are relative to the dataset's folder. `media` of the input holds the input
images of an edit, in order. Flow-Factory trains on pairs and evaluates by generating from prompts; it has no held-out
pairs. So test.jsonl holds only prompts, with input images relative to images/. Set

    data: {datasets: [{name: prefkit, dataset_dir: OUT, train: {weight: 1}, eval: {}}]}
    train: {trainer_type: offline-dpo}
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefkit.errors import UsageError
from prefkit.hub.pair_files import write_image
from prefkit.hub.pair_reader import PairOut, Pairs
from prefkit.output import warn

METADATA = ("request_id", "strategy", "p", "score_gap")


@dataclass(frozen=True)
class FlowFactoryOptions:
    #: the split to train on
    split: str = "train"


class FlowFactory:
    """Writes train.jsonl, test.jsonl and images/."""

    Options = FlowFactoryOptions
    keeps = frozenset({"inputs"})

    def __init__(self, options: FlowFactoryOptions) -> None:
        self.options = options

    def write(self, pairs: Pairs, out: Path) -> dict[str, Any]:
        counts = {"pairs": 0, "with_inputs": 0, "held_out_pairs": 0}
        prompts: dict[str, None] = {}  # lines of test.jsonl, each once
        others: set[str] = set()
        folder, written = out / "images", dict[str, str]()
        with (out / "train.jsonl").open("w", encoding="utf-8") as file:
            for pair in pairs.rows():
                inputs = self._inputs(pairs, pair, folder, written)
                if pair.split == self.options.split:
                    file.write(_line(_record(pair, inputs, folder)))
                    counts["pairs"] += 1
                    counts["with_inputs"] += bool(inputs)
                else:
                    counts["held_out_pairs"] += 1
                    prompts[_line(_request(pair, inputs))] = None
                    others.add(pair.split)
        if not counts["pairs"] and others:
            raise UsageError(
                f"export --as flow_factory: no pair is in the split {self.options.split!r}. Choose another one with "
                f"--split: {', '.join(sorted(others))}."
            )
        if prompts:
            (out / "test.jsonl").write_text("".join(prompts), encoding="utf-8")
        if 0 < counts["with_inputs"] < counts["pairs"]:
            warn(
                f"export: pairs without an input image: {counts['pairs'] - counts['with_inputs']} of {counts['pairs']}. "
                "Flow-Factory's editing models need one for every pair, and its text-to-image models accept none."
            )
        return {**counts, "held_out_prompts": len(prompts)}

    def _inputs(self, pairs: Pairs, pair: PairOut, folder: Path, written: dict[str, str]) -> list[str]:
        """Write the input images of a pair that are not `written`; return their paths relative to images/."""
        pairs.edited.check(pair.columns, f"export: pair {pair.number} ({pair.caption[:80]!r})")
        names = pairs.edited.ids(pair.columns)
        for name in names:
            if name not in written:
                path = write_image(folder, f"inputs/{name}", pairs.edited.image(name))
                written[name] = path.relative_to(folder).as_posix()
        return [written[name] for name in names]


def _record(pair: PairOut, inputs: list[str], folder: Path) -> dict[str, Any]:
    """Return a V2 record, and write its two images."""

    def media(*names: str) -> list[dict[str, str]]:
        return [{"type": "image", "path": f"images/{name}"} for name in names]

    win, lose = (
        write_image(folder, f"{pair.number:07d}_{side}", data).name
        for side, data in (("win", pair.win), ("lose", pair.lose))
    )
    supervision = {"type": "preference", "chosen": {"media": media(win)}, "rejected": {"media": media(lose)}}
    known = {name: pair.columns.get(name) for name in METADATA}
    metadata = {k: v for k, v in known.items() if isinstance(v, str) or (isinstance(v, float) and math.isfinite(v))}
    request = {"prompt": pair.caption, "media": media(*inputs)}
    return {"schema_version": 2, "input": request, "supervision": supervision, "metadata": metadata}


def _request(pair: PairOut, inputs: list[str]) -> dict[str, Any]:
    """Return a row that Flow-Factory generates from."""
    return {"prompt": pair.caption} | ({"images": inputs} if inputs else {})


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


plugin = FlowFactory
