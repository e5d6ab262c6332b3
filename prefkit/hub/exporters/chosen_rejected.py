"""Dataset with the columns prompt, chosen and rejected, as in open-image-preferences; `load_dataset(OUT)` reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefkit.hub.pair_reader import PairOut, Pairs
from prefkit.hub.shards import write_rows

TEXT = "Preference pairs: `chosen` won over `rejected` for `prompt`; `p` is the probability that `chosen` is better."


@dataclass(frozen=True)
class ChosenRejectedOptions:
    #: name of the column that holds the prompt
    prompt: str = "prompt"


@dataclass(frozen=True)
class ChosenRejected:
    options: ChosenRejectedOptions
    Options = ChosenRejectedOptions
    keeps = frozenset({"p"})

    def write(self, pairs: Pairs, out: Path) -> dict[str, Any]:
        from datasets import Image, Value

        text, number = Value("string"), Value("float64")
        features = {self.options.prompt: text, "chosen": Image(), "rejected": Image(), "chosen_model": text,
                    "rejected_model": text, "p": number, "score_gap": number}  # fmt: skip
        rows = ((pair.split, self._row(pair)) for pair in pairs.rows())
        return write_rows(rows, features, out, "Chosen and rejected images", TEXT)

    def _row(self, pair: PairOut) -> dict[str, Any]:
        return {
            self.options.prompt: pair.caption,
            "chosen": {"bytes": pair.win, "path": None},
            "rejected": {"bytes": pair.lose, "path": None},
            "chosen_model": pair.of("model", True),
            "rejected_model": pair.of("model", False),
            "p": pair.p,
            "score_gap": pair.columns.get("score_gap"),
        }


plugin = ChosenRejected
