"""Rows to train a vision-language judge with TRL's DPOTrainer: two images, a question, the right and wrong answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefkit.hub.pair_reader import PairOut, Pairs
from prefkit.hub.shards import write_rows

TEXT = "To train a judge: two images, the question which of them is better, and the right and the wrong answer."


@dataclass(frozen=True)
class TrlJudgeOptions:
    #: the question that the judge answers; {prompt} is replaced by the prompt
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
