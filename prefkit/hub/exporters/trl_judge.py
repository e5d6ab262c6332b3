"""Rows to train a judge with TRL's DPOTrainer on a vision model: images [A, B], prompt asks, chosen says which."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefkit.hub.pair_reader import Pairs
from prefkit.hub.shards import finish, in_data

TEXT = "For a judge: two images, the question which answers the prompt better, and the right and the wrong answer."


@dataclass(frozen=True)
class TrlJudgeOptions:
    #: what the judge is asked; {prompt} is put in
    question: str = (
        "Image A is the first, image B the second. Which one is better for the prompt: {prompt}\nAnswer A or B."
    )


class TrlJudge:
    Options = TrlJudgeOptions

    def __init__(self, options: TrlJudgeOptions) -> None:
        self.options = options

    def write(self, pairs: Pairs, out: Path) -> dict[str, Any]:
        from datasets import Features, Image, List, Value

        said = List({"role": Value("string"), "content": Value("string")})
        schema = Features({"images": List(Image()), "prompt": said, "chosen": said, "rejected": said}).arrow_schema
        writers = in_data(out, schema)
        for pair in pairs.rows():
            right, wrong = ("B", "A") if pair.side else ("A", "B")
            row = {
                "images": [{"bytes": data, "path": None} for data in pair.images],
                "prompt": [{"role": "user", "content": self.options.question.replace("{prompt}", pair.caption)}],
                "chosen": [{"role": "assistant", "content": right}],
                "rejected": [{"role": "assistant", "content": wrong}],
            }
            writers[pair.split].put(row)
        return finish(writers, out, "Which image is better", TEXT)


plugin = TrlJudge
