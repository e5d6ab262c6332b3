"""Rows that train a judge with TRL's DPOTrainer on a vision model: two images, a question, right and wrong answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefkit.hub.pair_reader import PairOut, Pairs
from prefkit.hub.shards import write_rows

TEXT = "For a judge: two images, the question which one fits the prompt better, and the right and wrong answers."


@dataclass(frozen=True)
class TrlJudgeOptions:
    #: the question to the judge; {prompt} is replaced by the prompt
    question: str = (
        "Image A is the first, image B the second. Which one is better for the prompt: {prompt}\nAnswer A or B."
    )


@dataclass(frozen=True)
class TrlJudge:
    options: TrlJudgeOptions
    Options = TrlJudgeOptions

    def write(self, pairs: Pairs, out: Path) -> dict[str, Any]:
        from datasets import Image, List, Value

        messages = List({"role": Value("string"), "content": Value("string")})
        features = {"images": List(Image()), "prompt": messages, "chosen": messages, "rejected": messages}
        rows = ((pair.split, self._row(pair)) for pair in pairs.rows())
        return write_rows(rows, features, out, "Which image is better", TEXT)

    def _row(self, pair: PairOut) -> dict[str, Any]:
        right, wrong = ("B", "A") if pair.side else ("A", "B")
        return {
            "images": [{"bytes": data, "path": None} for data in pair.images],
            "prompt": [{"role": "user", "content": self.options.question.replace("{prompt}", pair.caption)}],
            "chosen": [{"role": "assistant", "content": right}],
            "rejected": [{"role": "assistant", "content": wrong}],
        }


plugin = TrlJudge
